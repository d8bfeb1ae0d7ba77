"""Two confidences of the same answers at a bounded share of missed positives: which accepts more, with fewer alarms?

Answers are accepted above a cut. The cut is the loosest at which the rate of false negatives among the accepted
positives is at most alpha, with the correction of conformal risk control for one more row (arXiv:2208.02814):

    (errors + 1) / (accepted + 1) <= alpha

Here accepted and errors count the accepted positives and the false negatives among them. The figure serves to compare
and to train, and guarantees nothing: this rate need not fall as the cut rises, and the cut was chosen on the same
rows. A guarantee comes from [`fit_risk_control`] on other rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from natix_hf.errors import UsageError
from natix_hf.metrics.arrays import Floats, as_floats, as_labels, check_lengths
from natix_hf.metrics.bootstrap import percentile_interval
from natix_hf.metrics.groups import group_weights

_ROUNDING = 1e-9


class AtFnr(NamedTuple):
    """Figures at the cut, float64 [b] each.

    Attributes:
        fpr, fnr: Share of wrong answers among the accepted negatives and positives; NaN if none is accepted.
        abstained: Mean of the refused shares of positives and negatives, so that no figure depends on the prior.
        cost: `fpr + abstention_cost * abstained`. Where no negative is accepted there is no false alarm.
    """

    fpr: Floats
    fnr: Floats
    abstained: Floats
    cost: Floats


def loosest(accepted: Any, errors: Any, alpha: float, nearest: bool = False) -> npt.NDArray[np.int64]:
    """The last of the cuts at which `(errors + 1) / (accepted + 1)` is at most alpha; -1 if it is so at none.

    Args:
        accepted, errors (`np.ndarray` of shape `(b, n)` or `(n,)`): Counts at n cuts from strict to loose.
        alpha (`float`): In (0, 1).
        nearest (`bool`, defaults to `False`): Where no cut reaches alpha, the last of those that come nearest.

    Returns:
        `np.ndarray` of int64 of shape `(b,)`, or a number.
    """
    rate = (errors + 1) / (accepted + 1)
    limit = np.maximum(alpha, rate.min(axis=-1, keepdims=True)) if nearest else alpha
    reached = rate <= limit + _ROUNDING
    last = rate.shape[-1] - 1 - np.argmax(reached[..., ::-1], axis=-1)
    found: npt.NDArray[np.int64] = np.where(reached.any(axis=-1), last, -1)
    return found


def figures_at_fnr(
    confidence: Any, wrong: Any, labels: Any, alpha: float, abstention_cost: float = 0.5, counts: Any | None = None
) -> AtFnr:
    """Compute the figures of a confidence at the loosest cut whose corrected rate of false negatives reaches alpha.

    Rows of equal confidence are accepted together. If no cut reaches alpha, nothing is accepted. O(n log n) time.

    Args:
        confidence (`array-like` of shape `(n,)`): Any finite numbers.
        wrong, labels (`array-like` of shape `(n,)`): 0 or 1; wrong is 1 where the answer is not the label.
        alpha (`float`): Largest corrected rate of false negatives among the accepted positives, in (0, 1).
        abstention_cost (`float`, defaults to 0.5): As in [`AtFnr`].
        counts (`np.ndarray` of shape `(b, n)`, *optional*): How often each row occurs in each of b resamples.

    Returns:
        [`AtFnr`]: One value for each resample, or a single one.

    Raises:
        [`DataError`]: an array has a wrong shape or value. [`UsageError`]: an argument is out of range.

    Example:
        >>> found = figures_at_fnr([4, 3, 2, 1], wrong=[0, 0, 1, 1], labels=[1, 0, 0, 1], alpha=0.5)
        >>> found.abstained.tolist(), found.fpr.tolist(), found.cost.tolist()
        ([0.25], [0.5], [0.625])
    """
    if not 0 < alpha < 1:
        raise UsageError(f"alpha must be between 0 and 1, both excluded, found {alpha}")
    c, lost, y = as_floats(confidence, "confidence"), as_labels(wrong, "wrong"), as_labels(labels)
    check_lengths(confidence=c, wrong=lost, labels=y)
    order = np.argsort(-c, kind="stable")
    c, lost, y = c[order], lost[order], y[order]
    times = np.ones((1, c.size)) if counts is None else np.asarray(counts, dtype=np.float64)[:, order]
    ends = np.append(np.flatnonzero(c[1:] != c[:-1]), c.size - 1)
    positives, misses, negatives, alarms = (
        np.cumsum(times * kept, axis=1) for kept in (y == 1, (y == 1) & (lost == 1), y == 0, (y == 0) & (lost == 1))
    )
    cut = loosest(positives[:, ends], misses[:, ends], alpha)
    last, some = ends[np.maximum(cut, 0)], cut >= 0
    rows = np.arange(len(times))
    accepted = [np.where(some, total[rows, last], 0) for total in (positives, misses, negatives, alarms)]
    with np.errstate(invalid="ignore"):
        fnr, fpr = accepted[1] / accepted[0], accepted[3] / accepted[2]
        abstained = 1 - (accepted[0] / positives[:, -1] + accepted[2] / negatives[:, -1]) / 2
    return AtFnr(fpr, fnr, abstained, np.nan_to_num(fpr) + abstention_cost * abstained)


def paired_difference_at_fnr(
    confidence_a: Any,
    confidence_b: Any,
    wrong: Any,
    labels: Any,
    groups: Any,
    alpha: float,
    abstention_cost: float = 0.5,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Compute the differences of two confidences of the same answers in the figures of [`figures_at_fnr`].

    Each resample finds the cut of each confidence anew.

    Args:
        confidence_a, confidence_b, wrong, labels, alpha, abstention_cost: As for [`figures_at_fnr`].
        groups, n_resamples, level, seed: As for [`bootstrap_intervals`].

    Returns:
        `dict`: for `cost`, `fpr` and `abstained` each, `a`, `b`, `difference` (b - a), and `low` and `high` of its
        interval. All are NaN where the figure is undefined in more than `1 - level` of the resamples: then one of the
        confidences may reach alpha at no cut at all.

    Raises:
        As [`figures_at_fnr`].
    """
    pair = [
        (figures_at_fnr(confidence, wrong, labels, alpha, abstention_cost), confidence)
        for confidence in (confidence_a, confidence_b)
    ]
    names = ("cost", "fpr", "abstained")
    resampled: dict[str, list[Floats]] = {name: [] for name in names}
    for counts in group_weights(groups, labels, n_resamples, seed):
        a, b = (figures_at_fnr(each, wrong, labels, alpha, abstention_cost, counts) for _, each in pair)
        for name, values in resampled.items():
            values.append(getattr(b, name) - getattr(a, name))
    result = {}
    for name in names:
        differences = np.concatenate(resampled[name])
        defined = np.isnan(differences).mean() <= 1 - level
        a_value, b_value = (float(getattr(found, name)[0]) if defined else float("nan") for found, _ in pair)
        low, high = percentile_interval(differences, level) if defined else (float("nan"), float("nan"))
        result[name] = {"a": a_value, "b": b_value, "difference": b_value - a_value, "low": low, "high": high}
    return result
