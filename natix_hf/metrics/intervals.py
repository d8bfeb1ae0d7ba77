"""Intervals that hold on small samples too: from resampled groups, else exact bounds, else the reason for none.

Resampling says nothing where a class has one to three groups, or where every resample gives the same value: 20 right
answers of 20 would get [1, 1]. A share then gets exact binomial bounds; another figure gets no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from natix_hf.metrics.arrays import (
    Floats,
    Labels,
    as_array,
    as_labels,
    as_probabilities,
    as_weights,
    check_lengths,
    check_level,
)
from natix_hf.metrics.bootstrap import bootstrap_intervals
from natix_hf.metrics.groups import classes_of_groups
from natix_hf.metrics.table import METRICS, Rate

# With so few groups in a class there are at most ten different resamples of it.
TOO_FEW_GROUPS = 3
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Interval:
    """An interval, or why there is none.

    Attributes:
        low, high (`float`, *optional*): The bounds; `None` if there is no interval.
        exact (`bool`): They are exact binomial bounds, not from resamples.
        reason (`str`): Why there is no interval. Empty if there is one, or if the figure itself is undefined.
    """

    low: float | None = None
    high: float | None = None
    exact: bool = False
    reason: str = ""


def exact_interval(
    hits: Any,
    counted: Any | None = None,
    groups: Any | None = None,
    sample_weight: Any | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute exact binomial bounds of a share (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404).

    A group counts as one trial, however many rows it has. Groups of unequal weight count as
    `(sum of weights)² / sum of squared weights` trials (Kish 1965), put into the same bounds as Korn and Graubard
    (1998) do for surveys. With equal groups this is the number of groups.

    Args:
        hits (`array-like` of shape `(n,)`): 1 where the row is a hit, else 0. Only hits that are counted matter.
        counted (`array-like` of shape `(n,)`, *optional*): 1 where it is in the denominator; `None` counts all rows.
        groups (`array-like` of shape `(n,)`, *optional*): Group of each row; `None`: each row is its own.
        sample_weight (`array-like` of shape `(n,)`, *optional*): Weight of each row.
        level (`float`, defaults to 0.95): Coverage of the interval, within (0, 1).

    Returns:
        `tuple[float, float]`: low and high, in [0, 1]; NaN if no row is counted.

    Raises:
        [`DataError`]: an array has a wrong shape or value. [`UsageError`]: the level is out of range.

    Example:
        >>> [round(bound, 3) for bound in exact_interval([1] * 20)]
        [0.832, 1.0]
    """
    from scipy.special import betaincinv

    check_level(level)
    hit = as_labels(hits, "hits").astype(np.float64)
    in_all = np.ones(hit.size) if counted is None else as_labels(counted, "counted").astype(np.float64)
    weights = as_weights(sample_weight)
    names = np.arange(hit.size) if groups is None else as_array(groups, "groups")
    check_lengths(hits=hit, counted=in_all, groups=names, sample_weight=weights)
    if weights is not None:
        in_all = in_all * weights
    of_group = np.bincount(np.unique(names, return_inverse=True)[1], in_all)
    total = of_group.sum()
    if total == 0:
        return float("nan"), float("nan")
    trials = total**2 / (of_group**2).sum()
    successes, tail = float(hit @ in_all) / total * trials, (1 - level) / 2
    failures = max(trials - successes, 0.0)
    low = betaincinv(successes, failures + 1, tail) if successes > _ROUNDING else 0.0
    high = betaincinv(successes + 1, failures, 1 - tail) if failures > _ROUNDING else 1.0
    return float(low), float(high)


def why_not_resampled(labels: Any, groups: Any, counted: Any | None = None) -> str:
    """Say why resampling groups within class gives no interval for a figure of the counted rows, or "".

    Args:
        labels, groups: As for [`group_weights`].
        counted (`np.ndarray` of bool, shape `(n,)`, *optional*): The rows of the figure; `None`: all.
    """
    y = as_labels(labels)
    numbers, positive = classes_of_groups(groups, y)
    seen = np.unique(numbers if counted is None else numbers[counted])
    if not seen.size:
        return ""
    members = {int(label): int((positive == label).sum()) for label in np.unique(positive[seen])}
    rarest = min(members, key=lambda label: members[label])
    if members[rarest] <= TOO_FEW_GROUPS:
        return f"cannot be estimated from {_groups(members[rarest])} with label {rarest}"
    return "" if seen.size > TOO_FEW_GROUPS else f"cannot be estimated from {_groups(seen.size)}"


def _groups(count: int) -> str:
    return f"{count} group" if count == 1 else f"{count} groups"


def has_width(low: float, high: float) -> bool:
    """Whether resamples differ by more than rounding. NaN has no width."""
    return high - low > _ROUNDING


def same_in_all(groups: Any) -> str:
    """The reason why resamples without any width give no interval."""
    return f"cannot be estimated from {_groups(len(np.unique(groups)))}: every resample gives the same value"


def share_interval(
    resampled: tuple[float, float],
    hits: Any,
    counted: Any,
    labels: Any,
    groups: Any,
    sample_weight: Any | None = None,
    level: float = 0.95,
) -> Interval:
    """Keep the resampled interval of a share where it can be trusted, else take its exact bounds.

    Args:
        resampled (`tuple[float, float]`): low and high of the resamples of [`group_weights`].
        hits, counted, groups, sample_weight, level: As for [`exact_interval`].
        labels (`array-like` of shape `(n,)`): 0 or 1.
    """
    if has_width(*resampled) and not why_not_resampled(labels, groups, np.asarray(counted, dtype=bool)):
        return Interval(*resampled)
    low, high = exact_interval(hits, counted, groups, sample_weight, level)
    return Interval() if low != low else Interval(low, high, exact=True)


def metric_intervals(
    probabilities: Any,
    labels: Any,
    groups: Any,
    threshold: float = 0.5,
    sample_weight: Any | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """Compute the intervals of [`bootstrap_intervals`], and replace those that resampling cannot give.

    Where it cannot, a rate that is a share of rows, such as accuracy or recall, gets the bounds of
    [`exact_interval`]. The other rates follow from TPR and TNR: with more than three groups in each class they take
    their smallest and largest value over the exact intervals of both, each at `(1 + level) / 2`, so that both hold
    together. Scores of probabilities get no interval.

    Args:
        probabilities, labels, groups, threshold, sample_weight, n_resamples, level, seed, metrics:
            As for [`bootstrap_intervals`].

    Returns:
        `dict[str, Interval]`: an [`Interval`] for each metric, in the order asked for.

    Raises:
        As [`bootstrap_intervals`].

    Example:
        >>> metric_intervals([0.9, 0.1], [1, 0], ["a", "b"], metrics=["mcc"])["mcc"].reason
        'cannot be estimated from 1 group with label 0'
    """
    resampled = bootstrap_intervals(
        probabilities, labels, groups, threshold, sample_weight, n_resamples, level, seed, metrics
    )
    p, y, w = as_probabilities(probabilities), as_labels(labels), as_weights(sample_weight)
    called, positive = p > threshold, y == 1
    cells = np.select([called & positive, called, ~positive], ["tp", "fp", "tn"], "fn")
    too_few, found = why_not_resampled(y, groups), {}
    for name, (low, high) in resampled.items():
        metric = METRICS[name]
        if isinstance(metric, Rate) and metric.share is not None:
            hits, counted = (np.isin(cells, part.split()) for part in metric.share)
            found[name] = share_interval((low, high), hits, counted, y, groups, w, level)
        elif low != low:
            found[name] = Interval()
        elif has_width(low, high) and not too_few:
            found[name] = Interval(low, high)
        elif isinstance(metric, Rate) and not too_few and positive.any() and not positive.all():
            found[name] = _from_both_rates(metric, called, y, groups, w, level)
        else:
            found[name] = Interval(reason=too_few or same_in_all(groups))
    return found


def _from_both_rates(
    metric: Rate, called: Any, labels: Labels, groups: Any, w: Floats | None, level: float
) -> Interval:
    positive, each = labels == 1, (1 + level) / 2
    of_tpr = exact_interval(called & positive, positive, groups, w, each)
    of_tnr = exact_interval(~called & ~positive, ~positive, groups, w, each)
    weights = np.ones(labels.size) if w is None else w
    yes, no = weights[positive].sum(), weights[~positive].sum()
    corners = [
        float(metric.function(yes * tpr, no * (1 - tnr), no * tnr, yes * (1 - tpr)))
        for tpr, tnr in product(of_tpr, of_tnr)
    ]
    return Interval(float(np.nanmin(corners)), float(np.nanmax(corners)), exact=True)
