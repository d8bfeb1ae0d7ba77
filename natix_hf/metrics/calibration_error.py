"""Expected calibration error of a yes/no classifier."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from natix_hf.errors import UsageError
from natix_hf.metrics.arrays import Floats, Labels, as_labels, as_probabilities, as_weights, check_lengths

Binning = Literal["equal_width", "equal_mass"]


def ece(
    probabilities: Floats,
    labels: Labels,
    weights: Floats | None,
    n_bins: int = 15,
    binning: Binning = "equal_width",
) -> float:
    """[`expected_calibration_error`] of checked arrays; NaN where no row has weight."""
    weights = np.ones(labels.size) if weights is None else weights
    if not weights.any():
        return math.nan
    confidence = np.maximum(probabilities, 1 - probabilities)
    correct = (probabilities > 0.5) == labels
    if binning == "equal_width":
        bins = np.searchsorted(np.arange(n_bins + 1) / n_bins, confidence, side="left") - 1
    else:
        _, tied = np.unique(confidence, return_inverse=True)
        mass = np.bincount(tied, weights)
        # The middle of a value's mass, not an end of it: rounding of the sum then moves no value over an edge.
        middle = np.cumsum(mass) - mass / 2
        bins = np.floor(middle / mass.sum() * n_bins).astype(np.int64)[tied]
    gaps = np.bincount(bins, weights * (correct - confidence))
    return float(np.abs(gaps).sum() / weights.sum())


def expected_calibration_error(
    probabilities: Any,
    labels: Any,
    n_bins: int = 15,
    binning: Binning = "equal_width",
    sample_weight: Any | None = None,
) -> float:
    """Expected calibration error of the top-1 confidence (Guo et al. 2017, arXiv:1706.04599, equation 3).

    The confidence is `max(p, 1 - p)` and the prediction is positive iff `p > 0.5`, whatever threshold is deployed:
    this measures the probability, not the decision. (torchmetrics' binary variant bins `p` instead: another number.)

    Args:
        probabilities (`array-like` of shape `(n,)`): P(positive), in [0, 1].
        labels (`array-like` of shape `(n,)`): 0 or 1.
        n_bins (`int`, defaults to 15): Number of bins on [0, 1].
        binning (`str`, defaults to `"equal_width"`):
            `"equal_width"`: right-closed bins `(lo, hi]`, as Guo et al. `"equal_mass"`: bins of equal weight; a
            value goes, with all its ties, to the bin that holds the middle of its weight.
        sample_weight (`array-like` of shape `(n,)`, *optional*): Weight of each row.

    Returns:
        `float`: mean over the rows of |accuracy - confidence| of the row's bin, in [0, 1].

    Raises:
        [`DataError`]: where an array is not what it must be. [`UsageError`]: for an unknown binning or no bin.
    """
    if binning not in ("equal_width", "equal_mass"):
        raise UsageError(f'binning must be "equal_width" or "equal_mass", found "{binning}"')
    if n_bins < 1:
        raise UsageError(f"n_bins must be at least 1, found {n_bins}")
    p, y, w = as_probabilities(probabilities), as_labels(labels), as_weights(sample_weight)
    check_lengths(probabilities=p, labels=y, sample_weight=w)
    return ece(p, y, w, n_bins, binning)
