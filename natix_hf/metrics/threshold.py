"""The best threshold on a sample: exact, by one sort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import Floats, Labels, as_floats, as_labels, check_lengths
from natix_hf.metrics.classification import balanced_accuracy, f1, matthews
from natix_hf.metrics.prior import class_weights

Objective = Literal["mcc", "balanced_accuracy", "f1"]
# A score of the four counts tp, fp, tn and fn: arrays that broadcast, weighted or not. Larger is better.
CountScore = Callable[[Any, Any, Any, Any], Any]
OBJECTIVES: dict[str, CountScore] = {
    "mcc": matthews,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
}

# Counts with equal values in real numbers, such as mirror images, differ by about 1e-16 in floats. Values this close
# are ties, so that the gap decides, not the rounding.
TIE = 1e-12

# Number of candidates evaluated together: the temporaries stay in the cache.
CHUNK = 1 << 15


@dataclass(frozen=True)
class ThresholdResult:
    """A threshold, and its performance on the sample that it was fitted on.

    Args:
        threshold (`float`): On the scale of the scores; a row is called positive iff `score > threshold`, strictly.
        value (`float`): The objective there, at the target prior if one was given.
        objective (`str`): `"mcc"`, `"balanced_accuracy"`, `"f1"`, or the name of the function that was given.
        tpr, tnr (`float`): Recall and specificity there. They do not depend on a prior.
        n (`int`): Rows of the sample.
    """

    threshold: float
    value: float
    objective: str
    tpr: float
    tnr: float
    n: int


class _Candidates(NamedTuple):
    """Candidate k is between values[k] and values[k + 1]; fn[k] positives and tn[k] negatives are below it."""

    values: Floats
    fn: npt.NDArray[np.int64]
    tn: npt.NDArray[np.int64]
    positives: int
    negatives: int

    def thresholds(self, index: npt.NDArray[np.int64]) -> Floats:
        lower, upper = self.values[index], self.values[index + 1]
        middle = lower / 2 + upper / 2
        # Between adjacent floats the middle rounds to one of them. The lower one separates, because > is strict.
        return np.where(middle < upper, middle, lower)

    def evaluate(self, function: CountScore, target_prior: float | None, index: Any = slice(None)) -> Floats:
        positive, negative = class_weights(self.positives, self.negatives, target_prior)
        all_fn, all_tn = self.fn[index], self.tn[index]
        values = np.empty(all_fn.size)
        for start in range(0, values.size, CHUNK):
            part = slice(start, start + CHUNK)
            fn, tn = all_fn[part], all_tn[part]
            tp, fp = self.positives - fn, self.negatives - tn
            values[part] = function(tp * positive, fp * negative, tn * negative, fn * positive)
        return values

    def best(self, values: Floats) -> int:
        ties = np.flatnonzero(values >= values.max() - TIE)
        with np.errstate(over="ignore"):
            gaps = self.values[ties + 1] - self.values[ties]
        return int(ties[np.argmax(gaps)])


def _candidates(scores: Any, labels: Any) -> _Candidates:
    s, y = as_floats(scores, "scores"), as_labels(labels)
    check_lengths(scores=s, labels=y)
    positives = int(y.sum())
    if positives in (0, y.size):
        raise DataError(f"a threshold cannot be fitted on one class: all {y.size} labels are {int(positives > 0)}")
    return _sorted_candidates(s, y, positives)


def _sorted_candidates(s: Floats, y: Labels, positives: int) -> _Candidates:
    order = np.argsort(s)
    ordered = s[order]
    fn = np.cumsum(y[order], dtype=np.int64)
    del order
    last = np.flatnonzero(ordered[1:] != ordered[:-1])
    if last.size == 0:
        # All scores are equal: the only candidate calls every row negative.
        return _Candidates(ordered[[0, 0]], fn[-1:], y.size - fn[-1:], positives, y.size - positives)
    if last.size < y.size - 1:
        ordered = ordered[np.append(last, y.size - 1)]
    fn = fn[last]
    last += 1
    last -= fn
    return _Candidates(ordered, fn, last, positives, y.size - positives)


def select_threshold(
    scores: Any, labels: Any, objective: Objective | CountScore = "mcc", target_prior: float | None = None
) -> ThresholdResult:
    """Find the threshold with the largest objective, exactly: O(n log n) time, O(n) memory.

    Every midpoint between two neighbouring distinct scores is a candidate (the lower score, if there is no float
    between them). No candidate calls all rows alike, with one exception: if all scores are equal, that score is the
    threshold, every row is negative and the MCC is 0. Of tied candidates (within 1e-12), the one in the widest gap
    wins, then the lowest.

    Args:
        scores (`array-like` of shape `(n,)`): Any finite numbers that grow with P(positive), usually logits.
        labels (`array-like` of shape `(n,)`): 0 or 1, both present.
        objective (`str` or `Callable`, defaults to `"mcc"`): `"mcc"`, `"balanced_accuracy"`, `"f1"`, or a function of
            the counts tp, fp, tn and fn, float64 of shape `(k,)` each and weighted to the prior, that returns one
            finite score for each of the k candidates.
        target_prior (`float`, *optional*): Share of positives to weight the classes to; `None` keeps it.

    Returns:
        [`ThresholdResult`].

    Raises:
        [`DataError`]: an array has a wrong shape or value, or all labels are of one class.
        [`UsageError`]: the objective is unknown or gives a score that is not finite, or the prior is outside (0, 1).
    """
    if not callable(objective) and objective not in OBJECTIVES:
        raise UsageError(f'objective must be one of {", ".join(OBJECTIVES)} or a function, found "{objective}"')
    function = objective if callable(objective) else OBJECTIVES[objective]
    candidates = _candidates(scores, labels)
    values = candidates.evaluate(function, target_prior)
    if not np.isfinite(values).all():
        raise UsageError(f"objective {_name(objective)} gives a score that is not finite for some thresholds")
    best = candidates.best(values)
    return ThresholdResult(
        threshold=float(candidates.thresholds(np.array([best]))[0]),
        value=float(values[best]),
        objective=_name(objective),
        tpr=float(candidates.positives - candidates.fn[best]) / candidates.positives,
        tnr=float(candidates.tn[best]) / candidates.negatives,
        n=candidates.positives + candidates.negatives,
    )


def _name(objective: str | CountScore) -> str:
    return objective if isinstance(objective, str) else getattr(objective, "__name__", type(objective).__name__)


def sweep(
    scores: Any, labels: Any, target_prior: float | None = None, max_points: int = 2000
) -> dict[str, npt.NDArray[np.float64]]:
    """Tabulate the objectives over the candidates of [`select_threshold`], for a file or a plot.

    Args:
        scores, labels, target_prior: As for [`select_threshold`].
        max_points (`int`, defaults to 2000):
            The most rows to return. Of more candidates, some are taken, evenly spaced by rank; the one nearest to the
            best MCC is replaced by the best.

    Returns:
        `dict[str, np.ndarray]` of float64, of equal length: `threshold` (rising), `mcc`, `balanced_accuracy`, `f1`,
        `tpr` and `tnr`.

    Raises:
        As [`select_threshold`]; [`UsageError`] if `max_points` is below 1.
    """
    if max_points < 1:
        raise UsageError(f"max_points must be at least 1, found {max_points}")
    candidates = _candidates(scores, labels)
    index = np.arange(candidates.fn.size)
    if index.size > max_points:
        best = candidates.best(candidates.evaluate(matthews, target_prior))
        index = np.linspace(0, index.size - 1, max_points).round().astype(np.int64)
        index[np.argmin(np.abs(index - best))] = best
    columns = {"threshold": candidates.thresholds(index)}
    columns |= {name: candidates.evaluate(score, target_prior, index) for name, score in OBJECTIVES.items()}
    columns["tpr"] = (candidates.positives - candidates.fn[index]) / candidates.positives
    columns["tnr"] = candidates.tn[index] / candidates.negatives
    return columns
