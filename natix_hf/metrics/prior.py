"""Weights that give a sample another share of positives: a prior shift, which a temperature cannot correct."""

from __future__ import annotations

from typing import Any

import numpy as np

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import Floats, as_labels


def class_weights(positives: int, negatives: int, target_prior: float | None) -> tuple[float, float]:
    """The weights of a positive and of a negative row, with mean 1 over all rows; 1 and 1 without a prior."""
    if target_prior is None:
        return 1.0, 1.0
    if not 0 < target_prior < 1:
        raise UsageError(f"target_prior must be between 0 and 1, both excluded, found {target_prior}")
    if not positives or not negatives:
        raise DataError(f"labels of one class ({'1' if positives else '0'}) cannot be weighted to a target prior")
    rows = positives + negatives
    return target_prior * rows / positives, (1 - target_prior) * rows / negatives


def prior_weights(labels: Any, target_prior: float | None) -> Floats:
    """Weight each row so that the weighted share of positives is `target_prior`.

    Importance weights under label shift: P_target(y) / P_found(y) (Saerens et al. 2002,
    doi:10.1162/089976602753284446).

    Args:
        labels (`array-like` of shape `(n,)`): 0 or 1.
        target_prior (`float`, *optional*): Share of positives, within (0, 1). `None` keeps the share as it is.

    Returns:
        `np.ndarray` of float64, of shape `(n,)` and mean 1.

    Raises:
        [`UsageError`]: the prior is outside (0, 1). [`DataError`]: all labels are of one class.
    """
    y = as_labels(labels)
    positives = int(y.sum())
    positive, negative = class_weights(positives, y.size - positives, target_prior)
    return np.where(y == 1, positive, negative)
