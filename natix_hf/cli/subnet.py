"""Commands for the StreetVision subnet: reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.errors import DataError
from natix_hf.terminal import say, tell

if TYPE_CHECKING:
    from natix_hf.bundle.examine import Examined
    from natix_hf.subnet.marks import ExamMarks, LevelRates

_WAYS = {
    "fitted": "with the bundle's threshold",
    "half": "with a cut at 0.5",
    "best": "with the best threshold for these pictures",
}
_HALVES = {
    "real": "real pictures",
    "synthetic": "generated pictures",
    "both": "pictures of both halves of the exam, each of which weighs one half",
}


@app.command(cls=Command)
def reward(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A bundle folder, a run folder or a Hub repository.")
    ],
    data: Annotated[str, typer.Option(help="Ask about the labelled pictures of this folder or Hub dataset.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="data.KEY=VALUE", help="Keys of the data section that differ from the bundle's."),
    ] = None,
    label_rule: Annotated[
        str | None,
        typer.Option(
            help="Label by the column (none) or by the validator's rule (scene_description). Default: as the bundle."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Take this branch, tag or commit of the bundle.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draw the views of the exam with this seed.")] = 0,
    synthetic_half: Annotated[
        str | None,
        typer.Option(help="Ask also about these labelled pictures that a model has generated: a folder or dataset."),
    ] = None,
) -> None:
    """Estimate the subnet's reward for a bundle.

    The labels are read as in the bundle's own data. Half of the subnet's pictures are real and half are generated.
    Without --synthetic-half the figures are about the real half only. data.slices=[COLUMN] adds figures by column.
    """
    from natix_hf.bundle.examine import data_keys, exam_rows, take_exam
    from natix_hf.bundle.load import load_bundle
    from natix_hf.data.config import DataConfig
    from natix_hf.data.reading import told_counts
    from natix_hf.data.splits import short_reason
    from natix_hf.recipe import data_config

    loaded = load_bundle(bundle, revision)
    own = data_keys(loaded)
    rule = [f"data.label_rule={label_rule}"] if label_rule is not None else []
    given = [f"data.seed={seed}", *rule, *(overrides or [])]
    config = data_config(data, given, own)
    if synthetic_half is not None:
        config = replace(config, exam=True, synthetic_half=synthetic_half)
    asked_for = {override.partition("=")[0].removeprefix("data.") for override in given}
    own = {key: value for key, value in own.items() if key not in asked_for}
    try:
        rows = exam_rows(config, if_known=own.keys() & {"positive_class", "exclude_classes"})
    except DataError as error:
        defaults = DataConfig()
        changed = [f"data.{key}={value}" for key, value in own.items() if value != getattr(defaults, key)]
        raise DataError(f"{error}; from the bundle: {', '.join(changed)}" if changed else str(error)) from None
    for note in rows.notes:
        tell(f"warning  {note}")
    for label, classes in enumerate(rows.classes):
        tell(f"label {label}  {told_counts(classes)}")
    if rows.generated is not None:
        reasons = Counter(short_reason(reason) for reason in rows.generated.left_out.values())
        for reason, count in reasons.items():
            tell(f"warning  generated pictures left out: {count} x {reason}")
        for row_id, reason in rows.generated.left_out.items():
            tell(f"         {row_id}: {reason}")
    _say_marks(take_exam(loaded, rows), loaded.policy.labels.yes)
    if not config.groups_known:
        say("95% intervals resample the pictures as if they were independent: data.group_by=COLUMN says which are not")


def _say_marks(found: Examined, yes: str) -> None:
    marks = found.marks
    for half, of_half in marks.halves.items():
        views = of_half.views // max(of_half.rows, 1)
        only = "; the real half only" if marks.others is None else ""
        many = "at four levels" if views == 4 else f"at {views} views of four levels"
        say(f"{of_half.rows} {_HALVES[half]}, {of_half.positives} labelled {yes}, each asked {many}{only}")
        _say_rates("level", of_half.levels, yes)
        _say_rewards(of_half)
    for column, values in found.slices.items():
        if values:
            _say_rates(column, values, yes)
        small = ", ".join(f"{value} ({rows})" for value, rows in found.left_out[column].items())
        if small:
            say(f"{column}: too few rows for figures: {small}")
    fitted = marks.halves[marks.paid_half].rewards["fitted"]
    if fitted.tpr is not None and fitted.tnr is not None:
        _say_wait(fitted.tpr, fitted.tnr)


def _say_rates(title: str, rates: Mapping[str, LevelRates], yes: str) -> None:
    from natix_hf.subnet.marks import rate_notes

    width = max(len(name) for name in (title, *rates))
    say(f"{title:{width}s} {'answers':>8s} {yes[:12]:>12s}  {'TPR':22s}{'TNR':22s}MCC")
    for name, of in rates.items():
        say(
            f"{name:{width}s} {of.answers or 0:8d} {of.positives or 0:12d}  "
            f"{of.told('tpr'):22s}{of.told('tnr'):22s}{of.told('mcc')}"
        )
    for note in rate_notes({f"{title} {name}": of for name, of in rates.items()}):
        say(note)


def _say_rewards(marks: ExamMarks) -> None:
    for name, way in _WAYS.items():
        paid = marks.rewards[name]
        low, high = paid.range
        if paid.expected is None or low is None or high is None:
            say(f"reward undefined {way}: pictures of one label only")
            continue
        say(
            f"reward {paid.expected:.3f} {way}; 95% of rewards lie in {low:.3f} to {high:.3f} "
            f"(TPR {paid.tpr:.3f}, TNR {paid.tnr:.3f})"
        )


def _say_wait(tpr: float, tnr: float) -> None:
    from natix_hf.subnet.payout import wait_until

    for share in (0.5, 0.95):
        wait = wait_until(share, tpr, tnr)
        if wait is not None:
            fast, slow = wait.hours
            after = f"{wait.questions} questions, in {fast:.0f} to {slow:.0f} hours"
            say(f"a new model has {share:.0%} of its final score after {after}")
