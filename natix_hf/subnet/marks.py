"""Marks of an exam: the rates at each level and slice, and the expected reward, for either half and for both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from natix_hf.errors import DataError
from natix_hf.metrics import Interval, metric_intervals, rates_from_counts
from natix_hf.metrics.confusion import Cells, Confusion, count_answers
from natix_hf.metrics.table import BY_CLASS
from natix_hf.provenance.stored import OPTIONAL
from natix_hf.subnet.challenge import LEVELS
from natix_hf.subnet.expectation import mean_reward
from natix_hf.subnet.rewards import expected_reward

REAL, SYNTHETIC, BOTH = "real", "synthetic", "both"
# With fewer rows than this, the interval of a slice is too wide to say anything.
SLICE_ROWS = 20
_ARRAYS = ("logits", "labels", "levels", "groups")
_RATES = {title.lower(): name for name, title in BY_CLASS.items()}


@dataclass(frozen=True)
class LevelRates:
    """Rates of the answers at one level of the exam, or in one slice. The MCC assumes a prior of 0.5.

    Args:
        tpr, tnr, mcc (`float`): None where no answer has the label that the rate is about.
        answers, positives (`int`): Number of answers, and of answers about pictures with label 1; None in older files.
        intervals (`dict[str, Interval]`): 95% intervals of tpr, tnr and mcc, where they are defined.
        cells (`Cells`): The counts behind the rates. None in older files, and for both halves together, where the
            answers do not weigh alike.
    """

    tpr: float | None
    tnr: float | None
    mcc: float | None
    answers: int | None = field(default=None, metadata=OPTIONAL)
    positives: int | None = field(default=None, metadata=OPTIONAL)
    intervals: dict[str, Interval] | None = field(default=None, metadata=OPTIONAL)
    cells: Cells | None = field(default=None, metadata=OPTIONAL)

    def bounds(self, name: str) -> tuple[float | None, float | None]:
        """The interval of a rate; (None, None) if it has none."""
        found = (self.intervals or {}).get(name)
        return (found.low, found.high) if found is not None else (None, None)

    def told(self, name: str) -> str:
        """A rate as text, such as `0.900 [0.850, 0.940]`."""
        value, (low, high) = getattr(self, name), self.bounds(name)
        told = "undefined" if value is None else f"{value:.3f}"
        return told if value is None or low is None else f"{told} [{low:.3f}, {high:.3f}]"


@dataclass(frozen=True)
class Paid:
    """Reward for a pair of rates: the mean, and the range that holds 95% of the single rewards. All is None where a
    label is missing."""

    tpr: float | None
    tnr: float | None
    expected: float | None
    range: tuple[float | None, float | None]


@dataclass(frozen=True)
class ExamMarks:
    """Results of a model in the exam, on real pictures unless `halves` is asked for another half.

    Args:
        rows, positives (`int`): Number of pictures, and of pictures with label 1.
        views (`int`): Number of answers.
        levels (`dict[str, LevelRates]`): Rates of levels "0" to "3" and of "all".
        rewards (`dict[str, Paid]`): Reward for each way to decide. `fitted` uses the given threshold. `half` cuts the
            model's probability at 0.5. `best` uses the threshold that pays best on these views; it is not known in
            advance.
        others (`dict[str, ExamMarks]`): Results on `synthetic` pictures, and on `both` halves, each of which weighs
            one half; None if there were no generated pictures.
    """

    rows: int
    positives: int
    views: int
    levels: dict[str, LevelRates]
    rewards: dict[str, Paid]
    others: dict[str, ExamMarks] | None = field(default=None, metadata=OPTIONAL)

    @property
    def halves(self) -> dict[str, ExamMarks]:
        """The results by half: `real`, and if generated pictures were asked about, `synthetic` and `both`."""
        return {REAL: replace(self, others=None), **(self.others or {})}

    @property
    def notes(self) -> list[str]:
        """What the intervals of the levels are where resampling gives none, one sentence each."""
        return rate_notes(
            {f"level {level}" if level != "all" else "all levels": r for level, r in self.levels.items()}
        )

    @property
    def paid_half(self) -> str:
        """The half that the headline is about: both, or the real half where only that is known."""
        return BOTH if self.others is not None else REAL


@dataclass(frozen=True)
class ExamAnswers:
    """Answers to the views of pictures: arrays of shape `(n,)`, and the number of views of each picture.

    Args:
        logits (`np.ndarray` of float): Label 1 over label 0.
        labels (`np.ndarray`): 0 or 1.
        levels (`np.ndarray`): Level of each view, 0 to 3.
        groups (`np.ndarray` of str): Pictures of one group are resampled together.
        views (`int`): Number of views per picture.
    """

    logits: np.ndarray
    labels: np.ndarray
    levels: np.ndarray
    groups: np.ndarray
    views: int


def rate_notes(rates: Mapping[str, LevelRates]) -> list[str]:
    """What intervals are where resampling gives none, one sentence each.

    Args:
        rates: By the name to print.
    """
    exact, lacking = [], dict[str, list[str]]()
    for name, of in rates.items():
        for rate, interval in (of.intervals or {}).items():
            told = f"{rate.upper()} of {name}"
            if interval.exact:
                exact.append(told)
            elif interval.reason:
                lacking.setdefault(interval.reason, []).append(told)
    notes = [f"Exact binomial bounds, where resampling gives none: {', '.join(exact)}"] if exact else []
    return notes + [f"No interval for {', '.join(names)}: it {reason}" for reason, names in lacking.items()]


def mark_exam(
    real: ExamAnswers, threshold_logit: float, synthetic: ExamAnswers | None = None, n_resamples: int = 1000
) -> ExamMarks:
    """Mark the answers to exam views. The answer is "roadwork" if the logit is above the threshold.

    Args:
        real ([`ExamAnswers`]): Answers about real pictures.
        threshold_logit (`float`): Decision threshold, as a logit.
        synthetic ([`ExamAnswers`], *optional*): Answers about generated pictures, the other half of the exam.
        n_resamples (`int`, defaults to 1000): Resamples of the group bootstrap behind the intervals.

    Returns:
        [`ExamMarks`]: Rates by level and rewards, for each half.
    """
    marks = _mark(real, np.ones(len(real.labels)), threshold_logit, n_resamples)
    if synthetic is None:
        return marks
    arrays = {name: np.concatenate([getattr(half, name) for half in (real, synthetic)]) for name in _ARRAYS}
    joined = ExamAnswers(**arrays, views=real.views)
    alone = _mark(synthetic, np.ones(len(synthetic.labels)), threshold_logit, n_resamples)
    # Half of the pictures of either label are real. A label that one half lacks says nothing about both.
    weights = np.concatenate([_half_weights(half.labels) for half in (real, synthetic)])
    one_sided = [label for label in (0, 1) if not all((half.labels == label).any() for half in (real, synthetic))]
    both = _mark(joined, weights, threshold_logit, n_resamples, one_sided)
    both = replace(both, levels={name: replace(rates, cells=None) for name, rates in both.levels.items()})
    return replace(marks, others={SYNTHETIC: alone, BOTH: both})


def confusion_by_level(
    answers: ExamAnswers, threshold_logit: float, accepted: np.ndarray | None, n_resamples: int = 1000
) -> dict[str, Confusion]:
    """Where the errors at each level come from; a level without answers has no entry.

    Args:
        accepted: True where the policy accepts the answer, bool [n]; None: nothing says which.

    Returns:
        The counts of levels "0" to "3" and of "all".
    """
    called, found = answers.logits > threshold_logit, {}
    of = {str(level): answers.levels == level for level in LEVELS} | {"all": np.ones(len(called), dtype=bool)}
    for name, at in of.items():
        if at.any():
            taken = accepted[at] if accepted is not None else None
            found[name] = count_answers(called[at], answers.labels[at], answers.groups[at], taken, n_resamples)
    return found


def mark_slice(
    answers: ExamAnswers, threshold_logit: float, row_values: Sequence[Any], n_resamples: int = 1000
) -> tuple[dict[str, LevelRates], dict[str, int]]:
    """Rates for each value of a column that has at least 20 rows.

    Args:
        row_values: One value per picture.

    Returns:
        Rates by value, and the number of rows of each value with too few.
    """
    values = np.repeat([str(value) for value in row_values], answers.views)
    called, weights = answers.logits > threshold_logit, np.ones(len(values))
    small = small_values(row_values)
    found = {
        str(value): _rates(called, answers, weights, values == value, n_resamples)
        for value in np.unique(values)
        if value not in small
    }
    return found, small


def small_values(row_values: Sequence[Any]) -> dict[str, int]:
    """The number of rows of each value that has too few of them for figures."""
    counts = Counter(str(value) for value in row_values)
    return {value: rows for value, rows in sorted(counts.items()) if rows < SLICE_ROWS}


def _half_weights(labels: np.ndarray) -> np.ndarray:
    """Weights by which each label of a half weighs as much as in another half of any size."""
    counts = np.bincount(labels, minlength=2)
    return np.asarray(1.0 / counts[labels])


def _mark(
    answers: ExamAnswers,
    weights: np.ndarray,
    threshold_logit: float,
    n_resamples: int,
    without: Sequence[int] = (),
) -> ExamMarks:
    labels = answers.labels
    called = answers.logits > threshold_logit
    of = {str(level): answers.levels == level for level in LEVELS} | {"all": np.ones(len(labels), dtype=bool)}
    levels = {name: _rates(called, answers, weights, at, n_resamples, without) for name, at in of.items()}
    known = not without and 0 < labels.sum() < len(labels)
    best = best_threshold(answers.logits, labels, weights) if known else np.nan
    ways = {"fitted": threshold_logit, "half": 0.0, "best": best}
    return ExamMarks(
        rows=len(labels) // answers.views,
        positives=int(labels.sum()) // answers.views,
        views=len(labels),
        levels=levels,
        rewards={name: _paid(*_shares(answers.logits > cut, labels, weights, without)) for name, cut in ways.items()},
    )


def _shares(
    called: np.ndarray, labels: np.ndarray, weights: np.ndarray, without: Sequence[int] = ()
) -> tuple[float | None, float | None]:
    """TPR and TNR; None for a label that is missing."""
    found = []
    for label in (1, 0):
        at = labels == label
        known = at.any() and label not in without
        # Rounding may push a mean of ones past 1.
        found.append(min(1.0, float(np.average(called[at] == label, weights=weights[at]))) if known else None)
    return found[0], found[1]


def _rates(
    called: np.ndarray,
    answers: ExamAnswers,
    weights: np.ndarray,
    at: np.ndarray,
    n_resamples: int,
    without: Sequence[int] = (),
) -> LevelRates:
    """Rates of some of the answers, with intervals from resampled groups."""
    called, labels, weights = called[at], answers.labels[at], weights[at]
    tpr, tnr = _shares(called, labels, weights, without)
    mcc = None
    if tpr is not None and tnr is not None:
        mcc = float(rates_from_counts(*(np.asarray(cell) for cell in (tpr, 1 - tnr, tnr, 1 - tpr)))["mcc"])
        # Both labels weigh one half, as the subnet asks about them.
        weights = weights / np.bincount(labels, weights, minlength=2)[labels] * len(labels) / 2
    defined = [name for name, value in {"tpr": tpr, "tnr": tnr, "mcc": mcc}.items() if value is not None]
    intervals = None
    if n_resamples and defined:
        wanted = [_RATES[name] for name in defined]
        found = metric_intervals(
            called.astype(np.float64), labels, answers.groups[at], 0.5, weights, n_resamples, metrics=wanted
        )
        intervals = {name: found[_RATES[name]] for name in defined}
    cells = Cells.of(called, labels == 1)
    return LevelRates(tpr, tnr, mcc, len(labels), int(labels.sum()), intervals, cells)


def _paid(tpr: float | None, tnr: float | None) -> Paid:
    if tpr is None or tnr is None:
        return Paid(tpr, tnr, None, (None, None))
    mean, low, high = expected_reward(tpr, tnr)
    return Paid(tpr, tnr, mean, (low, high))


def best_threshold(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The threshold with the largest expected reward of weighted rates. Both labels must occur.

    Raises:
        [`DataError`]: All labels are of one class.
    """
    order = np.argsort(logits, kind="stable")
    values, firsts = np.unique(logits[order], return_index=True)
    of_value = [np.add.reduceat((weights * (labels == label))[order], firsts) for label in (0, 1)]
    if not all(part.sum() > 0 for part in of_value):
        raise DataError("a threshold needs answers about pictures of both labels")
    no, yes = of_value
    if len(values) == 1:
        return float(values[0])
    # Elsewhere a step up or down changes the answers about one label only, for the better. The first and the last
    # have no such step, because no threshold may call all views alike.
    corners = (no[:-1] > 0) & (yes[1:] > 0)
    corners[[0, -1]] = True
    at = np.flatnonzero(corners)
    tnr, fnr = (np.clip(np.cumsum(part)[at] / part.sum(), 0, 1) for part in (no, yes))
    paid = mean_reward(1 - fnr, tnr)
    ties = at[paid >= paid.max() - 1e-12]
    chosen = ties[np.argmax(values[ties + 1] - values[ties])]
    lower, upper = values[chosen], values[chosen + 1]
    middle = lower / 2 + upper / 2
    return float(middle if middle < upper else lower)
