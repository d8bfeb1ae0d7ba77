"""What to label next, from what the run has measured: for the promise, for training, for narrower intervals.

Nothing here asks the model. Which pictures of a pool it is unsure about, `natix-hf predict` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from natix_hf.metrics.confusion import Confusion
from natix_hf.metrics.intervals import exact_interval
from natix_hf.report.facts import RunFacts
from natix_hf.report.findings import percent
from natix_hf.results.evaluation import Evaluation, SliceFigures
from natix_hf.results.out_of_fold import OUT_OF_FOLD
from natix_hf.runs.graph import PHASES
from natix_hf.subnet.marks import SLICE_ROWS

_SHOWN = 3  # values of each kind
_LEVEL = 0.95
_WIDE = 0.05  # half an interval of MCC that is worth halving


@dataclass(frozen=True)
class Step:
    """One thing to label. `command` is a line to run in the run folder, or ""."""

    title: str
    text: str
    command: str = ""


def find_steps(facts: RunFacts) -> list[Step]:
    """What to label next, what is missing for the promise first. Empty without an evaluation on test."""
    evaluation = facts.results.evaluation
    if evaluation is None:
        return []
    return [
        *_for_promise(facts),
        *_of_a_kind(evaluation, facts),
        *_of_slices(evaluation),
        *_unsure(evaluation, facts),
        *_again(facts),
    ]


def _for_promise(facts: RunFacts) -> Iterator[Step]:
    report = facts.results.promise
    if report is None or report.feasible:
        return
    for name, part in report.parts.items():
        if part.feasible:
            continue
        of = "" if len(report.parts) == 1 else f", {name}"
        if part.needed is None:
            yield Step(
                f"Not for the promise{of}",
                f"More rows of val_calib alone would not bring a promise of {percent(report.alpha)}: too many of the "
                "most confident answers are wrong. Pictures for training would, or a larger alpha.",
            )
        elif 0 < part.accepted < part.needed and part.eligible:
            more = math.ceil(part.eligible * part.needed / part.accepted) - part.eligible
            counted = {"fnr": f' labelled "{facts.labels.yes}"', "fpr": f' labelled "{facts.labels.no}"'}
            kind = "" if report.classwise else counted.get(report.loss, "")
            yield Step(
                f"For the promise{of}: about {more:,} more groups{kind} in val_calib",
                f"{part.accepted:,} of its {part.eligible:,} groups{kind} count so far and {part.needed:,} would do, "
                f"if the new ones are answered like these.{_share_of_calib(facts)}",
            )


def _share_of_calib(facts: RunFacts) -> str:
    counts = facts.metrics(0).get("counts", {})
    divided = sum(count["groups"] for count in counts.values())
    groups = counts.get("val_calib", {}).get("groups", 0)
    return f" val_calib has {percent(groups / divided)} of all groups of this run." if groups and divided else ""


def _of_a_kind(evaluation: Evaluation, facts: RunFacts) -> Iterator[Step]:
    of = evaluation.confusion
    if of is None or of.missed is None or of.interval.low is None or of.interval.high is None:
        return
    cells, names = of.answers, facts.labels
    if of.interval.low > 0.5:
        yield Step(
            f'For training: pictures labelled "{names.yes}"',
            f"Most of the {cells.errors:,} wrong answers on test are misses ({cells.fn:,}; their share is "
            f"{of.told_missed}).",
        )
    elif of.interval.high < 0.5:
        yield Step(
            f'For training: pictures labelled "{names.no}" that look like "{names.yes}"',
            f"Most of the {cells.errors:,} wrong answers on test are false alarms ({cells.fp:,}; the share of misses "
            f"is {of.told_missed}).",
        )


def _of_slices(evaluation: Evaluation) -> Iterator[Step]:
    found = [
        (f"{column} = {value}", figures, figures.confusion)
        for column, values in evaluation.slices.items()
        for value, figures in values.items()
        if figures.confusion is not None
    ]
    whole = evaluation.confusion
    if whole is not None:
        level = 1 - (1 - _LEVEL) / max(1, len(found))
        weak = [(name, of) for name, _, of in found if of is not None and _worse(of, whole, level)]
        for name, of in sorted(weak, key=lambda one: -one[1].answers.errors / one[1].answers.answers)[:_SHOWN]:
            yield Step(
                f"For training: {name}",
                f"{of.answers.errors:,} of its {of.answers.answers:,} answers on test are wrong "
                f"({percent(of.answers.errors / of.answers.answers)}; {percent(_rate(whole))} of all). That is more "
                f"than chance explains, with {len(found)} values compared.",
            )
    wide = [(half, name, of) for name, row, of in found if of is not None and (half := _half(row)) >= _WIDE]
    for half, name, of in sorted(wide, key=lambda one: (-one[0], one[1]))[:_SHOWN]:
        yield Step(
            f"For test: {name}",
            f"Its MCC is known to about {half:.2f} on either side, from {of.groups:,} groups. About "
            f"{3 * of.groups:,} more would halve that.",
        )
    small = [
        (rows, f"{column} = {value}")
        for column, values in (evaluation.slices_left_out or {}).items()
        for value, rows in values.items()
    ]
    for rows, name in sorted(small, key=lambda one: (-one[0], one[1]))[:_SHOWN]:
        yield Step(
            f"For test: {name}",
            f"It has {rows:,} rows, too few for figures: at least {SLICE_ROWS - rows} more give it some.",
        )


def _rate(of: Confusion) -> float:
    return of.answers.errors / max(1, of.answers.answers)


def _worse(of: Confusion, whole: Confusion, level: float) -> bool:
    """Whether the exact bounds of a value's error rate lie above the rate of all. A group is one trial; all groups
    count as equally large, because their sizes are not stored."""
    errors, answers = of.answers.errors, of.answers.answers
    if errors / answers <= _rate(whole):
        return False
    wrong = np.arange(answers) < errors
    low, _ = exact_interval(wrong, groups=np.arange(answers) % of.groups, level=level)
    return low > _rate(whole)


def _half(row: SliceFigures) -> float:
    low, high = row.figure("mcc").interval
    return 0.0 if low is None or high is None else (high - low) / 2


def _unsure(evaluation: Evaluation, facts: RunFacts) -> Iterator[Step]:
    policy, of = facts.results.policy, evaluation.confusion
    if policy is None:
        return
    pool = facts.metrics(4).get("unlabelled")
    have = f" Phase 4 read {pool:,} images without labels: begin with these." if pool else ""
    spread = " Label a few of each group, such as a video: the next frame teaches little."
    if policy.promise.feasible:
        told = ""
        if of is not None and of.abstained is not None and of.abstained.answers:
            left, every = of.abstained, of.answers
            told = (
                f"On test {left.errors:,} of {left.answers:,} such answers would be wrong, against "
                f"{every.errors - left.errors:,} of the {every.answers - left.answers:,} accepted ones. "
            )
        yield Step(
            "For training: new pictures that the bundle abstains from",
            f"{told}The line below lists them.{spread}{have}",
            f"natix-hf predict {facts.bundle} FOLDER --only abstain --out abstained.csv",
        )
    else:
        cut = float(policy.probability(np.array([policy.threshold_logit]))[0])
        yield Step(
            "For training: new pictures that the bundle is unsure about",
            f"It abstains from none. Those with a probability next to {cut:.2f}, where the decision changes, come "
            f"first.{spread}{have}",
            f"natix-hf predict {facts.bundle} FOLDER --out answers.csv",
        )


def _again(facts: RunFacts) -> Iterator[Step]:
    if not facts.phases[1].counts:
        return
    if (facts.folder / PHASES[1].folder / OUT_OF_FOLD).is_file():
        text, command = "The audit lists the rows of train and val_select whose label looks wrong.", "natix-hf audit ."
    else:
        text, command = "The audit finds wrong labels. It needs out-of-fold answers: set phase1.folds, such as 5.", ""
    yield Step("To look at again: labels that look wrong", text, command)
