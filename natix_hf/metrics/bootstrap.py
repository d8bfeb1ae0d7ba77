"""Percentile intervals of the metrics (Efron and Tibshirani 1993, chapter 13), from groups resampled within class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from natix_hf.errors import UsageError
from natix_hf.metrics.arrays import (
    Floats,
    Labels,
    as_floats,
    as_labels,
    as_probabilities,
    as_weights,
    check_lengths,
    check_level,
    check_threshold,
)
from natix_hf.metrics.classification import matthews
from natix_hf.metrics.compute import rates_from_counts
from natix_hf.metrics.groups import group_weights
from natix_hf.metrics.selective import augrc, aurc
from natix_hf.metrics.table import METRICS, Score, interval_names, scores


def _confusion_columns(called: npt.NDArray[np.bool_], labels: Labels) -> npt.NDArray[np.bool_]:
    """The columns tp, fp, tn and fn, of shape (n, 4), in the order that rates take them."""
    positive = labels == 1
    return np.stack([called & positive, called & ~positive, ~called & ~positive, ~called & positive], axis=1)


def percentile_interval(values: Floats, level: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not defined.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_intervals(
    probabilities: Any,
    labels: Any,
    groups: Any,
    threshold: float = 0.5,
    sample_weight: Any | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
) -> dict[str, tuple[float, float]]:
    """Compute a percentile interval for each metric of [`compute_metrics`], from the resamples of [`group_weights`].

    With few groups, or where all answers are right, low and high are equal and mean nothing: [`metric_intervals`]
    gives exact bounds there, or the reason why there is no interval.

    Args:
        probabilities, labels, threshold, sample_weight: As for [`compute_metrics`]. The weight of a row is multiplied
            by the number of times that its group was drawn.
        groups (`array-like` of shape `(n,)`): Name of the group of each row.
        n_resamples (`int`, defaults to 1000): How many resamples to draw.
        level (`float`, defaults to 0.95): Coverage of the interval, within (0, 1).
        seed (`int`, defaults to 0): Not negative.
        metrics (`Sequence[str]`, *optional*, defaults to all rates, `brier`, `nll`, `auroc` and `ece`):
            Which metrics: those of [`compute_metrics`], and `mce`, `smooth_ece` and `ece_equal_mass`. The default
            leaves out `auprc` and `smooth_ece`, the slowest (10 ms per resample). The rates, `brier` and `nll` cost
            one matrix product together, `auroc` one sort; each of the others costs about a sort per resample.

    Returns:
        `dict[str, tuple[float, float]]`: low and high of each metric, in the order asked for. A resample in which a
        metric is NaN is left out of its interval, which is `(nan, nan)` where none is left.

    Raises:
        [`DataError`]: an array has a wrong shape or value. [`UsageError`]: an argument is out of range, or a metric
        is unknown.

    Example:
        >>> bootstrap_intervals([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0], ["a", "b", "c", "d"], metrics=["recall"])
        {'recall': (1.0, 1.0)}
    """
    check_level(level)
    check_threshold(threshold)
    names = interval_names() if metrics is None else tuple(metrics)
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UsageError(f"no interval for {', '.join(unknown)}: known are {', '.join(METRICS)}")
    p, y, w = as_probabilities(probabilities), as_labels(labels), as_weights(sample_weight)
    check_lengths(probabilities=p, labels=y, sample_weight=w)
    base = np.ones(y.size) if w is None else w
    losses = {name: score.row_losses(p, y) for name, score in scores().items() if score.row_losses is not None}
    columns = np.column_stack([_confusion_columns(p > threshold, y), *losses.values()]) * base[:, None]
    others = {name: _resampled(score, p, y) for name, score in scores().items() if name in {*names} - {*losses}}
    parts: dict[str, list[Any]] = {name: [] for name in names}
    for drawn in group_weights(groups, y, n_resamples, seed):
        tp, fp, tn, fn, *sums = (drawn.astype(np.float64) @ columns).T
        with np.errstate(invalid="ignore"):
            means = {name: total / (tp + fp + tn + fn) for name, total in zip(losses, sums, strict=True)}
        together = rates_from_counts(tp, fp, tn, fn) | means
        for name, values in parts.items():
            values.append(together[name] if name in together else others[name](drawn * base))
    return {name: percentile_interval(np.concatenate(values), level) for name, values in parts.items()}


def _resampled(score: Score, p: Floats, y: Labels) -> Callable[[Floats], Floats]:
    """The score of each of many weightings, [b, n] -> [b]."""
    if score.of_resamples is not None:
        return score.of_resamples(p, y)
    return lambda weights: np.array([score.function(p, y, row) for row in weights])


def paired_difference(
    scores_a: Any,
    scores_b: Any,
    labels: Any,
    groups: Any,
    threshold_a: float,
    threshold_b: float,
    sample_weight: Any | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Compute the difference of two classifiers' MCC on the same rows, with an interval from paired resamples.

    Args:
        scores_a, scores_b (`array-like` of shape `(n,)`): Any finite numbers, each with its own threshold.
        labels, groups, sample_weight, n_resamples, level, seed: As for [`bootstrap_intervals`].
        threshold_a, threshold_b (`float`): A row is called positive iff `score > threshold`, strictly.

    Returns:
        `dict[str, float]`: `difference`, MCC(b) - MCC(a) on the given rows, and `low` and `high` of its interval.

    Raises:
        [`DataError`]: an array has a wrong shape or value. [`UsageError`]: an argument is out of range.
    """
    check_level(level)
    check_threshold(threshold_a, "threshold_a")
    check_threshold(threshold_b, "threshold_b")
    a, b = as_floats(scores_a, "scores_a"), as_floats(scores_b, "scores_b")
    y, w = as_labels(labels), as_weights(sample_weight)
    check_lengths(scores_a=a, scores_b=b, labels=y, sample_weight=w)
    base = np.ones(y.size) if w is None else w
    columns = np.hstack([_confusion_columns(a > threshold_a, y), _confusion_columns(b > threshold_b, y)])
    weighted = columns * base[:, None]

    def difference(weights: Any) -> Any:
        counts = (weights.astype(np.float64) @ weighted).T
        return matthews(*counts[4:]) - matthews(*counts[:4])

    resampled = np.concatenate([difference(drawn) for drawn in group_weights(groups, y, n_resamples, seed)])
    low, high = percentile_interval(resampled, level)
    return {"difference": float(difference(np.ones(y.size))), "low": low, "high": high}


def paired_selective_difference(
    confidence_a: Any,
    confidence_b: Any,
    losses: Any,
    labels: Any,
    groups: Any,
    sample_weight: Any | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Compute the difference of two confidences of the same answers in [`aurc`] and [`augrc`]. Below 0, b is better.

    Args:
        confidence_a, confidence_b, losses (`array-like` of shape `(n,)`): As for [`aurc`].
        labels, groups, sample_weight, n_resamples, level, seed: As for [`bootstrap_intervals`].

    Returns:
        `dict`: for `aurc` and `augrc` each, `a`, `b`, `difference` (b - a), and `low` and `high` of its interval.

    Raises:
        [`DataError`]: an array has a wrong shape or value. [`UsageError`]: an argument is out of range.
    """
    check_level(level)
    y, w = as_labels(labels), as_weights(sample_weight)
    check_lengths(labels=y, sample_weight=w)
    base = np.ones(y.size) if w is None else w
    drawn = np.concatenate(list(group_weights(groups, y, n_resamples, seed)))
    result = {}
    for name, area in (("aurc", aurc), ("augrc", augrc)):
        a, b = (area(confidence, losses, base) for confidence in (confidence_a, confidence_b))
        resampled = np.array(
            [area(confidence_b, losses, row * base) - area(confidence_a, losses, row * base) for row in drawn]
        )
        low, high = percentile_interval(resampled, level)
        result[name] = {"a": a, "b": b, "difference": b - a, "low": low, "high": high}
    return result
