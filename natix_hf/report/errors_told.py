"""Where the errors come from, in words and rows, for page and card."""

from __future__ import annotations

from dataclasses import dataclass

from natix_hf.labels import LabelNames
from natix_hf.metrics.confusion import Cells, Confusion
from natix_hf.results.evaluation import Evaluation


@dataclass(frozen=True)
class ErrorsRow:
    """One row of a table of errors, as text.

    Args:
        missed, alarms: Such as `12 of 240`.
        share: The share of the wrong answers that are misses, with its interval.
        abstained: Such as `300 (4 wrong)`; empty where nothing says what is accepted.
    """

    name: str
    missed: str
    alarms: str
    share: str
    abstained: str


def errors_by_level(evaluation: Evaluation, half: str) -> list[ErrorsRow]:
    """A row for each level of a half of the exam; none for a file of an older version and for both halves together."""
    return [_row(level, of) for level, of in (evaluation.level_confusion or {}).get(half, {}).items()]


def errors_by_value(evaluation: Evaluation, column: str) -> list[ErrorsRow]:
    """A row for each value of a column that has figures."""
    values = evaluation.slices.get(column, {})
    return [_row(value, row.confusion) for value, row in values.items() if row.confusion is not None]


def _row(name: str, of: Confusion) -> ErrorsRow:
    cells, left = of.answers, of.abstained
    return ErrorsRow(
        name,
        f"{cells.fn:,} of {cells.tp + cells.fn:,}",
        f"{cells.fp:,} of {cells.tn + cells.fp:,}",
        of.told_missed,
        f"{left.answers:,} ({left.errors:,} wrong)" if left is not None else "",
    )


def told_risk(name: str, labels: LabelNames) -> str:
    """A promised risk in words, by its name in evaluation.json."""
    told = {
        "error": "wrong answers",
        "fnr": f'pictures labelled "{labels.yes}" answered "{labels.no}"',
        "fpr": f'pictures labelled "{labels.no}" answered "{labels.yes}"',
    }
    return told.get(name) or f"wrong answers, {name.removeprefix('error of ')} alone"


def told_errors(evaluation: Evaluation, labels: LabelNames) -> str:
    """All answers in one paragraph: right and wrong, which kind of error is the more frequent, and what abstains."""
    found, of = evaluation.as_found.metrics, evaluation.confusion
    cells = of.answers if of is not None else Cells(*(int(found[name] or 0) for name in ("tp", "fp", "tn", "fn")))
    yes, no = cells.tp + cells.fn, cells.tn + cells.fp
    things = "views of pictures" if evaluation.exam is not None else "pictures"
    told = (
        f'Of {yes:,} {things} labelled "{labels.yes}", {cells.tp:,} {_was(cells.tp)} found and {cells.fn:,} '
        f'{_was(cells.fn)} missed. Of {no:,} labelled "{labels.no}", {cells.tn:,} {_was(cells.tn)} answered so and '
        f"{cells.fp:,} {'was a false alarm' if cells.fp == 1 else 'were false alarms'}."
    )
    if of is None:
        return told
    if of.missed is not None:
        told += f" The share of misses among the wrong answers is {of.told_missed}."
    if of.abstained is not None and of.abstained.answers:
        left = of.abstained
        told += f" The bundle abstains from {left.answers:,} of these answers; {left.errors:,} of them would be wrong."
    return told


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
