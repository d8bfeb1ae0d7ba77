"""Percentile intervals of the metrics (Efron and Tibshirani 1993, chapter 13), by resampling groups within class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
from natix_hf.metrics.calibration_error import ece, mce, smooth_ece
from natix_hf.metrics.classification import auprc, matthews, rates_from_counts
from natix_hf.metrics.groups import Ints, group_weights
from natix_hf.metrics.selective import augrc, aurc

RATES = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "fnr", "fpr", "f1", "mcc")
MEANS = ("brier", "nll")
RANKED = {"auprc": auprc, "ece": ece, "mce": mce, "smooth_ece": smooth_ece}
RANKED |= {"ece_equal_mass": partial(ece, binning="equal_mass")}
DEFAULT_METRICS = (*RATES, *MEANS, "auroc", "ece")


def _confusion_columns(called: npt.NDArray[np.bool_], labels: Labels) -> npt.NDArray[np.bool_]:
    """Columns tp, fp, tn, fn of shape (n, 4), in the order that the rates take them."""
    positive = labels == 1
    return np.stack([called & positive, called & ~positive, ~called & ~positive, ~called & positive], axis=1)


def _auroc(order: Ints, firsts: Ints, labels: Labels, weights: Floats) -> Floats:
    """Area under the ROC curve for each of many weightings, [b, n] -> [b]; NaN where either class has no weight.

    The scores are sorted once for all: `order` sorts the rows, `firsts` are the places in it where a score differs
    from the one before. The area is the share of the pairs of a positive and a negative row whose scores are in their
    order, equals counting half (Hanley and McNeil 1982).
    """
    weights, positive = weights[:, order], labels[order] == 1
    of_score = [np.add.reduceat(weights * chosen, firsts, axis=1) for chosen in (positive, ~positive)]
    with np.errstate(invalid="ignore"):
        p, n = (weight / weight.sum(axis=1, keepdims=True) for weight in of_score)
    return np.asarray((p * (np.cumsum(n, axis=1) - n / 2)).sum(axis=1))


def _interval(values: Floats, level: float) -> tuple[float, float]:
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
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> dict[str, tuple[float, float]]:
    """Percentile interval of each metric of [`compute_metrics`], by the resamples of [`group_weights`].

    Args:
        probabilities, labels, threshold, sample_weight: As for [`compute_metrics`]; a row's weight is multiplied by
            the number of times that its group was drawn.
        groups (`array-like` of shape `(n,)`): Name of the group of each row.
        n_resamples (`int`, defaults to 1000): How many resamples to draw.
        level (`float`, defaults to 0.95): Coverage of the interval, within (0, 1).
        seed (`int`, defaults to 0): Not negative.
        metrics (`Sequence[str]`, defaults to all rates, `brier`, `nll`, `auroc` and `ece`):
            Which metrics. Beside those of [`compute_metrics`] `mce`, `smooth_ece` and `ece_equal_mass`. `auprc` and
            `smooth_ece` (10 ms each resample) are left out by default, as the slowest. The rates, `brier` and `nll`
            cost one matrix product together and `auroc` one sort; the others a sort or so for each resample.

    Returns:
        `dict[str, tuple[float, float]]`: low and high of each metric, in the order asked for. Resamples in which a
        metric is NaN are left out of its interval, which is `(nan, nan)` where that leaves none.

    Raises:
        [`DataError`]: where an array is not what it must be. [`UsageError`]: for an argument that cannot be.
    """
    check_level(level)
    check_threshold(threshold)
    known = (*RATES, *MEANS, "auroc", *RANKED)
    unknown = [name for name in metrics if name not in known]
    if unknown:
        raise UsageError(f"no interval for {', '.join(unknown)}: known are {', '.join(known)}")
    p, y, w = as_probabilities(probabilities), as_labels(labels), as_weights(sample_weight)
    check_lengths(probabilities=p, labels=y, sample_weight=w)
    base = np.ones(y.size) if w is None else w
    epsilon = np.finfo(np.float64).eps
    of_label = np.where(y == 1, p, 1 - p).clip(epsilon, 1 - epsilon)
    columns = np.column_stack([_confusion_columns(p > threshold, y), (p - y) ** 2, -np.log(of_label)]) * base[:, None]
    order = np.argsort(p, kind="stable")
    firsts = np.flatnonzero(np.diff(p[order], prepend=-1.0))
    parts: dict[str, list[Any]] = {name: [] for name in metrics}
    for drawn in group_weights(groups, y, n_resamples, seed):
        tp, fp, tn, fn, brier, nll = (drawn.astype(np.float64) @ columns).T
        with np.errstate(invalid="ignore"):
            means = {"brier": brier / (tp + fp + tn + fn), "nll": nll / (tp + fp + tn + fn)}
        vectorised = rates_from_counts(tp, fp, tn, fn) | means
        for name, values in parts.items():
            if name == "auroc":
                values.append(_auroc(order, firsts, y, drawn * base))
            elif name in RANKED:
                values.append(np.array([RANKED[name](p, y, row * base) for row in drawn]))
            else:
                values.append(vectorised[name])
    return {name: _interval(np.concatenate(values), level) for name, values in parts.items()}


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
    """Difference of two classifiers' MCC on the same rows, with its interval from the same resamples on both sides.

    Args:
        scores_a, scores_b (`array-like` of shape `(n,)`): Any finite numbers, each with its own threshold.
        labels, groups, sample_weight, n_resamples, level, seed: As for [`bootstrap_intervals`].
        threshold_a, threshold_b (`float`): A row is called positive iff `score > threshold`, strictly.

    Returns:
        `dict[str, float]`: `difference`, MCC(b) - MCC(a) on the rows as they are, and `low` and `high` of its
        interval.

    Raises:
        [`DataError`]: where an array is not what it must be. [`UsageError`]: for an argument that cannot be.
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
    low, high = _interval(resampled, level)
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
    """Difference of two confidences for the same answers in [`aurc`] and [`augrc`]; below 0, b is the better one.

    Args:
        confidence_a, confidence_b, losses (`array-like` of shape `(n,)`): As for [`aurc`].
        labels, groups, sample_weight, n_resamples, level, seed: As for [`bootstrap_intervals`].

    Returns:
        `dict`: for `aurc` and `augrc` each, `a`, `b`, `difference` (b - a), and `low` and `high` of its interval.

    Raises:
        [`DataError`]: where an array is not what it must be. [`UsageError`]: for an argument that cannot be.
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
        low, high = _interval(resampled, level)
        result[name] = {"a": a, "b": b, "difference": b - a, "low": low, "high": high}
    return result
