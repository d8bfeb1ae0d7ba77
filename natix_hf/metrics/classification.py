"""The formulas of a yes/no classifier's metrics. Rates take the four counts; scores take checked probabilities.

[`natix_hf.metrics.table`] lists them: a formula without a row there is not reported anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from natix_hf.metrics.arrays import Floats, Labels


def _ratio(numerator: Any, denominator: Any) -> Any:
    # Only 0/0 can occur: no numerator below exceeds its denominator.
    with np.errstate(invalid="ignore"):
        return numerator / denominator


def accuracy(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """Share of right decisions."""
    return _ratio(tp + tn, tp + fp + tn + fn)


def balanced_accuracy(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """Mean of recall and specificity; NaN where either class is absent."""
    return (_ratio(tp, tp + fn) + _ratio(tn, tn + fp)) / 2


def precision(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """Share of true positives among the rows called positive; NaN where none is."""
    return _ratio(tp, tp + fp)


def recall(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """True positive rate: share of the positives that are found; NaN without positives."""
    return _ratio(tp, tp + fn)


def specificity(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """True negative rate: share of the negatives that are called negative; NaN without negatives."""
    return _ratio(tn, tn + fp)


def fnr(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """False negative rate: share of the positives that are missed; NaN without positives."""
    return _ratio(fn, tp + fn)


def fpr(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """False positive rate: share of the negatives that are called positive; NaN without negatives."""
    return _ratio(fp, tn + fp)


def f1(tp: Any, fp: Any, tn: Any, fn: Any) -> Any:
    """Harmonic mean of precision and recall; 0 without true positives, NaN where nothing is or is called positive."""
    return _ratio(2 * tp, 2 * tp + fp + fn)


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


def auroc(probabilities: Floats, labels: Labels, weights: Floats | None) -> float:
    """Area under the ROC curve; NaN where either class has no weight."""
    from sklearn.metrics import roc_auc_score

    if len(np.unique(labels if weights is None else labels[weights > 0])) < 2:
        return math.nan
    return float(roc_auc_score(labels, probabilities, sample_weight=weights))


def auroc_of_resamples(probabilities: Floats, labels: Labels) -> Callable[[Floats], Floats]:
    """Sort the rows once, and return a function from weights [b, n] to the AUROC under each, [b].

    The area is the share of pairs of a positive and a negative row whose scores are in the right order; equal scores
    count half (Hanley and McNeil 1982). NaN where either class has no weight.
    """
    order = np.argsort(probabilities, kind="stable")
    firsts = np.flatnonzero(np.diff(probabilities[order], prepend=-1.0))  # where a new score begins
    positive = labels[order] == 1

    def areas(weights: Floats) -> Floats:
        weights = weights[:, order]
        of_score = [np.add.reduceat(weights * chosen, firsts, axis=1) for chosen in (positive, ~positive)]
        with np.errstate(invalid="ignore"):
            p, n = (weight / weight.sum(axis=1, keepdims=True) for weight in of_score)
        return np.asarray((p * (np.cumsum(n, axis=1) - n / 2)).sum(axis=1))

    return areas


def auprc(probabilities: Floats, labels: Labels, weights: Floats | None) -> float:
    """Average precision; NaN where the positive class has no weight."""
    from sklearn.metrics import average_precision_score

    if not (labels if weights is None else labels[weights > 0]).any():
        return math.nan
    return float(average_precision_score(labels, probabilities, sample_weight=weights))


def brier(probabilities: Floats, labels: Labels, weights: Floats | None) -> float:
    """Mean squared error of the probability (Brier 1950)."""
    from sklearn.metrics import brier_score_loss

    return float(brier_score_loss(labels, probabilities, sample_weight=weights, pos_label=1))


def squared_errors(probabilities: Floats, labels: Labels) -> Floats:
    """The rows' parts of [`brier`]."""
    return np.asarray((probabilities - labels) ** 2)


def nll(probabilities: Floats, labels: Labels, weights: Floats | None) -> float:
    """Negative log likelihood, in nats per row; probabilities are clipped by the epsilon of float64."""
    from sklearn.metrics import log_loss

    return float(log_loss(labels, probabilities, sample_weight=weights, labels=[0, 1]))


def log_losses(probabilities: Floats, labels: Labels) -> Floats:
    """The rows' parts of [`nll`], clipped like it."""
    epsilon = np.finfo(np.float64).eps
    return np.asarray(-np.log(np.where(labels == 1, probabilities, 1 - probabilities).clip(epsilon, 1 - epsilon)))
