"""Commands that plan ahead: plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from natix_hf.cli.app import Command, app
from natix_hf.errors import UsageError
from natix_hf.terminal import say

if TYPE_CHECKING:
    from natix_hf.calibration import Plan

_BAR = 20  # characters of a bar that stands for a probability of 1


@app.command(cls=Command)
def plan(
    alpha: Annotated[
        float | None, typer.Option(help="Allow at most this risk among the accepted answers. Default: that of --run.")
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Allow at most this probability that the promise is false. Default: that of --run."),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Plan to accept this share of the answers. Default: all; with --run, 0.9 of the largest share whose "
            "risk on val_select is at most alpha."
        ),
    ] = None,
    error_rate: Annotated[
        float | None, typer.Option(help="Expect this error rate of the planned share. Default: the floor.")
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            help="Expect this error rate of the most confident answers, such as the share of wrong labels. From there "
            "the error rises evenly over the planned share. Default: the error rate; both are 0 if not given."
        ),
    ] = None,
    rest: Annotated[
        float | None, typer.Option(help="Expect this error rate below the planned share. Default: 0.3.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Take the answers of this run on val_select as the model.")
    ] = None,
    groups: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Also say what to expect of N groups. It may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Simulate how many calibration groups a guarantee needs.

    Calibrations are drawn from a model of the answers, or from a run's own, and certified like in phase 5.
    """
    model = {"error_rate": error_rate, "floor": floor, "rest": rest}
    asked = list(groups or ())
    if run is not None:
        _plan_run(run, alpha, delta, coverage, [name for name, value in model.items() if value is not None], asked,
                  as_json)  # fmt: skip
        return
    from natix_hf.calibration import groups_needed

    if alpha is None or delta is None:
        raise UsageError(f"--{'alpha' if alpha is None else 'delta'} is missing: give --alpha and --delta, or --run")
    given = {name: value for name, value in model.items() if value is not None}
    share = 1.0 if coverage is None else coverage
    found = groups_needed(alpha, delta, coverage=share, groups=asked, **given)
    mean = error_rate if error_rate is not None else floor or 0.0
    model |= {"error_rate": mean, "floor": mean if floor is None else floor, "rest": 0.3 if rest is None else rest}
    if as_json:
        _say_json(found, model)
        return
    _say_answer(found, "groups")
    most = "the answers" if share == 1 else f"the most confident {share:g} of the answers"
    rising = "" if model["floor"] == mean else f", rising from {model['floor']:g} at the top"
    below = "" if share == 1 else f"; {model['rest']:g} of the rest"
    say(f"expected: {mean:g} of {most} wrong{rising}{below}")
    _say_table(found)


def _plan_run(
    run: Path,
    alpha: float | None,
    delta: float | None,
    coverage: float | None,
    model: Sequence[str],
    groups: Sequence[int],
    as_json: bool,
) -> None:
    from natix_hf.runs.planned import run_answers

    if model:
        raise UsageError(f"--{model[0].replace('_', '-')} describes answers, but --run brings its own: leave one out")
    answers = run_answers(run)
    if not answers.certified and (alpha is None or delta is None):
        raise UsageError(f"phase 5 has not finished in {run}, so nothing says what to plan for: give --alpha, --delta")
    risk = answers.risk
    found = answers.plan(alpha, delta, coverage, groups)
    if as_json:
        settings = {"run": str(run), "loss": risk.loss, "classwise": risk.classwise, "prior": answers.prior}
        counts = {"val_select_groups": answers.groups, "val_calib_groups": answers.calib_groups}
        _say_json(found, settings | counts | {"gate": answers.gate, "val_calib_usable": answers.calib_usable})
        return
    at_prior = "" if answers.prior is None else f" at a share of {answers.prior:g} of label 1"
    _say_answer(found, f"groups{at_prior}")
    kind = f"{risk.loss}, a threshold for each answer" if risk.classwise else risk.loss
    cross_fitted = ", cross-fitted" if answers.gate == "learned" else ""
    say(f"drawn from {answers.groups} groups of val_select ({answers.gate} confidence{cross_fitted}; loss {kind})")
    if coverage is None and found.coverage:
        say(f"planned coverage {found.coverage:.3f}: 0.9 of the largest one whose risk on val_select is at most "
            f"{found.alpha:g}")  # fmt: skip
    usable = (
        "" if answers.calib_usable == answers.calib_groups else f", about {answers.calib_usable} of them{at_prior}"
    )
    say(f"val_calib of this run has {answers.calib_groups} groups{usable}")
    _say_table(found, answers.calib_usable)


def _say_answer(found: Plan, what: str) -> None:
    from natix_hf.calibration.simulation import NEAR

    if found.groups is None:
        say(found.reason)
        return
    say(f"{found.groups} calibration {what} needed (a group is a video, or a row that stands alone)")
    say(
        f"with them {found.probability:.0%} of all draws certify a risk of at most {found.alpha:g} at a coverage of "
        f"{NEAR * found.coverage:.3g} or more"
    )
    say(f"the promise is false with probability at most {found.delta:g}; runs calibrate on 15% to 17.5% of the groups")


def _say_table(found: Plan, own: int | None = None) -> None:
    if not found.table:
        return
    say()
    say("probability of a certificate, of 0.95 of the planned coverage (the bar), and mean coverage:")
    say(" groups  certificate  planned  coverage")
    for row in found.table:
        bar = "#" * round(_BAR * row.reached)
        mark = " <" if row.groups == found.groups else " this run" if row.groups == own else ""
        say(f"{row.groups:7d} {row.certified:12.2f} {row.reached:8.2f} {row.coverage:9.3f}  |{bar:{_BAR}}|{mark}")


def _say_json(found: Plan, settings: dict[str, Any]) -> None:
    table = [
        {"groups": row.groups, "certificate": row.certified, "probability": row.reached, "coverage": row.coverage}
        for row in found.table
    ]
    content = {
        "groups": found.groups,
        "probability": found.probability,
        "coverage": found.coverage,
        "reason": found.reason,
        "alpha": found.alpha,
        "delta": found.delta,
    }
    say(json.dumps(content | settings | {"table": table}))
