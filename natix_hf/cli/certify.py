"""Commands about other models' answers: certify."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from natix_hf.cli.app import Command, app
from natix_hf.errors import UsageError, cut
from natix_hf.terminal import LABEL, say


@app.command(cls=Command)
def certify(
    answers: Annotated[
        Path,
        typer.Argument(metavar="ANSWERS", help="A csv, tsv, jsonl, parquet or npz file of answers and true labels."),
    ],
    alpha: Annotated[float, typer.Option(help="Allow at most this risk among the accepted answers.")] = 0.05,
    delta: Annotated[float, typer.Option(help="Allow at most this probability that the promise is false.")] = 0.1,
    loss: Annotated[str, typer.Option(help="Risk to bound: error, fnr (yes answered no) or fpr.")] = "error",
    prior: Annotated[
        str | None, typer.Option(help="Share of yes where the model is used, or an interval: 0.5 or 0.2,0.8.")
    ] = None,
    classwise: Annotated[bool, typer.Option("--classwise", help="Promise for each answer on its own.")] = False,
    min_coverage: Annotated[
        float | None, typer.Option(help="Promise nothing below this share of accepted answers.")
    ] = None,
    threshold: Annotated[
        str, typer.Option(help="mcc, balanced_accuracy, f1, or the decision threshold itself.")
    ] = "mcc",
    logit: Annotated[str | None, typer.Option(help="Column of the logit of yes, or two: NO,YES.")] = None,
    probability: Annotated[str | None, typer.Option(help="Column of the probability of yes, or two: NO,YES.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the true label.")] = None,
    group: Annotated[str | None, typer.Option(help="Column that says which rows belong together.")] = None,
    names: Annotated[str | None, typer.Option(help="Names of answers 0 and 1: NO,YES.")] = None,
    model: Annotated[str | None, typer.Option(help="Which model answered; the policy keeps it.")] = None,
    looks: Annotated[
        int,
        typer.Option(min=1, help="Share delta over so many fits of the same answers, with other options or seeds."),
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Draw the halves and the row of each group with this seed.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the policy here, such as policy.json.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw plots into this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Certify any model's answers: a guarantee for those that are accepted.

    One half of the groups gives temperature and threshold, the other half certifies. Exit code 1: nothing could be
    certified; a policy is written all the same, and it accepts every answer.
    """
    from natix_hf.intake.answers import read_answers
    from natix_hf.selective.classifier import SelectiveClassifier
    from natix_hf.selective.stated import label_names

    named = _pair(names, "names") if names is not None else None
    if named is not None:
        label_names(named)
    _check_places(answers, out, plot)
    read = read_answers(answers, logit, probability, label, group, named)
    classifier = SelectiveClassifier.fit(
        read.values,
        read.labels,
        read.groups,
        alpha=alpha,
        delta=delta,
        loss=loss,  # type: ignore[arg-type]  # it is checked there
        prior=None if prior is None else _prior(prior),
        classwise=classwise,
        min_coverage=min_coverage,
        looks=looks,
        seed=seed,
        names=named or ("no", "yes"),
        probabilities=read.probabilities,
        threshold=_number(threshold),
        model=model,
    )
    if out is not None:
        classifier.save(out)
    drawn = classifier.plot(plot) if plot is not None else []
    if as_json:
        say(json.dumps(_facts(classifier, out) | {"notes": read.notes}, ensure_ascii=False))
    else:
        for note in read.notes:
            say(f"note     {note}", hang=LABEL)
        columns = ", ".join(f"{what} from {' and '.join(found)}" for what, found in read.columns.items() if found)
        say(
            f"columns  {columns}{'' if read.groups is not None else '; no groups: each row counts as one'}", hang=LABEL
        )
        for line in classifier.describe().splitlines():
            say(line, hang=LABEL)
        say(f"policy   {out if out is not None else 'not written: say --out policy.json'}", hang=LABEL)
        for path in drawn:
            say(f"plot     {path}", hang=LABEL)
    if not classifier.feasible:
        raise typer.Exit(1)


def _facts(classifier: Any, out: Path | None) -> dict[str, Any]:
    from natix_hf.provenance.stored import to_json

    policy, evidence = classifier.policy, classifier.evidence
    return {
        "feasible": classifier.feasible,
        "guarantee": classifier.guarantee,
        "temperature": classifier.temperature,
        "threshold_logit": policy.threshold_logit,
        "risk_control": to_json(evidence.report.promise),
        "parts": to_json(evidence.report.parts),
        "made_from": to_json(policy.made_from),
        "policy": None if out is None else str(out),
    }


def _check_places(answers: Path, out: Path | None, plot: Path | None) -> None:
    """Refuse places where nothing can be written, before the work, and above all the file of answers itself."""
    from natix_hf.selective.written import PLOTS, check_file, check_folder

    if out is not None:
        check_file(out)
        if _same(out, answers):
            raise UsageError(f"--out {out} is the file of answers, which it would replace: name another file")
    if plot is not None:
        check_folder(plot)
        drawn = [plot / name for name in PLOTS]
        if out is not None and any(_same(out, path) for path in (plot, *plot.parents, *drawn)):
            raise UsageError(f"--out {out} and --plot {plot} need places of their own: one would replace the other")
        if any(_same(answers, path) for path in drawn):
            raise UsageError(f"--plot {plot} would replace the file of answers: name another folder")


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, by a link or another spelling too; they need not exist."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


def _pair(text: str, option: str) -> tuple[str, str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2:
        raise UsageError(f"--{option} is {cut(text)}: it must be two with a comma between them")
    return parts[0], parts[1]


def _prior(text: str) -> float | tuple[float, float]:
    try:
        if "," not in text:
            return _float(text)
        low, high = _pair(text, "prior")
        return _float(low), _float(high)
    except ValueError:
        raise UsageError(f"--prior is {cut(text)}: it must be a share such as 0.5, or two such as 0.2,0.8") from None


def _number(text: str) -> str | float:
    try:
        return _float(text)
    except ValueError:
        return text


def _float(text: str) -> float:
    """A number as people write it: 1_0, which Python reads as 10, is none."""
    if "_" in text:
        raise ValueError(text)
    return float(text)
