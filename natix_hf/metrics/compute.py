"""`compute_metrics`: every metric of the table, of one sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from natix_hf.metrics.arrays import as_labels, as_probabilities, as_weights, check_lengths, check_threshold
from natix_hf.metrics.table import measured_scores, rates


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
    return {name: rate.function(tp, fp, tn, fn) for name, rate in rates().items()}


def compute_metrics(
    probabilities: Any, labels: Any, threshold: float = 0.5, sample_weight: Any | None = None
) -> dict[str, float]:
    """Compute every metric of a yes/no classifier. A row is called positive iff `probability > threshold`, strictly.

    Args:
        probabilities (`array-like` of shape `(n,)`): P(positive), in [0, 1]: list, numpy array or torch tensor.
        labels (`array-like` of shape `(n,)`): 0 or 1.
        threshold (`float`, defaults to 0.5): On the scale of the probabilities.
        sample_weight (`array-like` of shape `(n,)`, *optional*):
            Weight of each row, for instance from [`prior_weights`]; at least one must be above 0.

    Returns:
        `dict[str, float]`: `n`, `n_positive` and `n_negative` count rows; all others are weighted: `tp`, `fp`, `tn`,
        `fn`, `prevalence`, the rates of [`rates_from_counts`] (with their NaN), `auroc` (NaN with one class), `auprc`
        (average precision; NaN without positives), `ece` (15 bins of equal width), `brier` (mean squared error of the
        probability) and `nll` (nats per row; probabilities are clipped by the epsilon of float64).

    Raises:
        [`DataError`]: an array has a wrong shape or value. [`UsageError`]: the threshold is not finite.

    Example:
        >>> metrics = compute_metrics([0.9, 0.7, 0.4, 0.2], [1, 0, 1, 0])
        >>> metrics["recall"], metrics["mcc"], metrics["auroc"]
        (0.5, 0.0, 0.75)
    """
    from sklearn.metrics import confusion_matrix

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
        **{name: score.function(p, y, w) for name, score in measured_scores().items()},
    }
    return {name: float(value) for name, value in metrics.items()}
