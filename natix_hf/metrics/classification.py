"""Metrics of a yes/no classifier: the one place where each formula stands."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from natix_hf.metrics.arrays import (
    Floats,
    Labels,
    as_labels,
    as_probabilities,
    as_weights,
    check_lengths,
    check_threshold,
)
from natix_hf.metrics.calibration_error import ece


def _ratio(numerator: Any, denominator: Any) -> Any:
    # Only 0/0 can occur: no numerator below exceeds its denominator.
    with np.errstate(invalid="ignore"):
        return numerator / denominator


def matthews(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """Matthews correlation coefficient (Matthews 1975, doi:10.1016/0005-2795(75)90109-9), 0 where undefined.

    Args:
        tp, fp, tn, fn (`float` or `np.ndarray` that broadcast): Counts, weighted or not.

    Returns:
        `np.ndarray` of float64, of the broadcast shape, in [-1, 1].
    """
    tp, fp, tn, fn = (np.asarray(count, dtype=np.float64) for count in (tp, fp, tn, fn))
    # Grouped so that a perfect classifier gets sqrt(x * x), which is x, and so exactly 1. Four factors of 1e7
    # make 1e28, far below the largest float64; in integers they would overflow.
    product = ((tp + fp) * (tn + fn)) * ((tp + fn) * (tn + fp))
    with np.errstate(invalid="ignore"):
        return np.where(product > 0, (tp * tn - fp * fn) / np.sqrt(product), 0.0)


def balanced_accuracy(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """Mean of recall and specificity; NaN where either class is absent."""
    return (_ratio(tp, tp + fn) + _ratio(tn, tn + fp)) / 2


def f1(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """Harmonic mean of precision and recall; 0 without true positives, NaN where nothing is or is called positive."""
    return _ratio(2 * tp, 2 * tp + fp + fn)


def rates_from_counts(tp: Any, fp: Any, tn: Any, fn: Any) -> dict[str, Any]:
    """Compute every rate that follows from the four counts alone.

    Args:
        tp, fp, tn, fn (`float` or `np.ndarray` of shape `(b,)`): Counts, weighted or not.

    Returns:
        `dict[str, np.ndarray]`: `accuracy`, `balanced_accuracy`, `precision`, `recall`, `specificity`, `fnr`, `fpr`,
        `f1` and `mcc`, float64 of the shape of the counts. A ratio of 0 to 0 is NaN (precision without positive
        predictions, recall and fnr without positives, specificity and fpr without negatives); mcc is 0 instead.
    """
    tp, fp, tn, fn = (np.asarray(count, dtype=np.float64) for count in (tp, fp, tn, fn))
    return {
        "accuracy": _ratio(tp + tn, tp + fp + tn + fn),
        "balanced_accuracy": balanced_accuracy(tp, fp, tn, fn),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "fnr": _ratio(fn, tp + fn),
        "fpr": _ratio(fp, tn + fp),
        "f1": f1(tp, fp, tn, fn),
        "mcc": matthews(tp, fp, tn, fn),
    }


def auroc(probabilities: Floats, labels: Labels, weights: Floats | None) -> float:
    """Area under the ROC curve of checked arrays; NaN where either class has no weight."""
    from sklearn.metrics import roc_auc_score

    if len(np.unique(labels if weights is None else labels[weights > 0])) < 2:
        return math.nan
    return float(roc_auc_score(labels, probabilities, sample_weight=weights))


def auprc(probabilities: Floats, labels: Labels, weights: Floats | None) -> float:
    """Average precision of checked arrays; NaN where the positive class has no weight."""
    from sklearn.metrics import average_precision_score

    if not (labels if weights is None else labels[weights > 0]).any():
        return math.nan
    return float(average_precision_score(labels, probabilities, sample_weight=weights))


def compute_metrics(
    probabilities: Any, labels: Any, threshold: float = 0.5, sample_weight: Any | None = None
) -> dict[str, float]:
    """Compute every metric of a yes/no classifier; a row is called positive iff `probability > threshold`, strictly.

    Args:
        probabilities (`array-like` of shape `(n,)`): P(positive), in [0, 1]: list, numpy array or torch tensor.
        labels (`array-like` of shape `(n,)`): 0 or 1.
        threshold (`float`, defaults to 0.5): On the scale of the probabilities.
        sample_weight (`array-like` of shape `(n,)`, *optional*):
            Weight of each row, for instance of [`prior_weights`]; at least one is above 0.

    Returns:
        `dict[str, float]`: `n`, `n_positive` and `n_negative` count rows; all others heed the weights: `tp`, `fp`,
        `tn`, `fn`, `prevalence`, the rates of [`rates_from_counts`] (with their NaN), `auroc` (NaN with one class),
        `auprc` (average precision; NaN without positives), `ece` (15 bins of equal width), `brier` (mean squared
        error of the probability) and `nll` (nats per row; probabilities are clipped by the epsilon of float64).

    Raises:
        [`DataError`]: where an array is not what it must be. [`UsageError`]: for a threshold that is not finite.
    """
    from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss

    check_threshold(threshold)
    p, y, w = as_probabilities(probabilities), as_labels(labels), as_weights(sample_weight)
    check_lengths(probabilities=p, labels=y, sample_weight=w)
    tn, fp, fn, tp = confusion_matrix(y, (p > threshold).astype(np.int8), labels=[0, 1], sample_weight=w).ravel()
    metrics = {
        "n": y.size,
        "n_positive": y.sum(),
        "n_negative": y.size - y.sum(),
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "prevalence": (tp + fn) / (tp + fp + tn + fn),
        **rates_from_counts(tp, fp, tn, fn),
        "auroc": auroc(p, y, w),
        "auprc": auprc(p, y, w),
        "ece": ece(p, y, w),
        "brier": brier_score_loss(y, p, sample_weight=w, pos_label=1),
        "nll": log_loss(y, p, sample_weight=w, labels=[0, 1]),
    }
    return {name: float(value) for name, value in metrics.items()}
