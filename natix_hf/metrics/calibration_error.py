"""Calibration errors of a yes/no classifier: expected, maximum and smooth."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from natix_hf.errors import UsageError
from natix_hf.metrics.arrays import Floats, Labels, as_labels, as_probabilities, as_weights, check_lengths

Binning = Literal["equal_width", "equal_mass"]

# The smooth error is computed on this many steps of [0, 1]: a power of two for the transform, and far finer than any
# bandwidth that the noise of a sample of up to 10^8 rows leads to.
GRID = 1 << 14


def _bin_gaps(
    probabilities: Floats, labels: Labels, weights: Floats, n_bins: int, binning: Binning
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The weighted sum of (correct - confidence) in each bin of the top-1 confidence, and the weight of the bin."""
    confidence = np.maximum(probabilities, 1 - probabilities)
    correct = (probabilities > 0.5) == labels
    if binning == "equal_width":
        bins = np.searchsorted(np.arange(n_bins + 1) / n_bins, confidence, side="left") - 1
    else:
        _, tied = np.unique(confidence, return_inverse=True)
        mass = np.bincount(tied, weights)
        # The middle of a value's mass, not its end: then rounding of the sum cannot move a value over an edge.
        middle = np.cumsum(mass) - mass / 2
        bins = np.floor(middle / mass.sum() * n_bins).astype(np.int64)[tied]
    return np.bincount(bins, weights * (correct - confidence)), np.bincount(bins, weights)


def ece(
    probabilities: Floats,
    labels: Labels,
    weights: Floats | None,
    n_bins: int = 15,
    binning: Binning = "equal_width",
) -> float:
    """[`expected_calibration_error`] of checked arrays; NaN if no row has weight."""
    weights = np.ones(labels.size) if weights is None else weights
    if not weights.any():
        return math.nan
    gaps, _ = _bin_gaps(probabilities, labels, weights, n_bins, binning)
    return float(np.abs(gaps).sum() / weights.sum())


def mce(
    probabilities: Floats,
    labels: Labels,
    weights: Floats | None,
    n_bins: int = 15,
    binning: Binning = "equal_width",
) -> float:
    """[`maximum_calibration_error`] of checked arrays; NaN if no row has weight."""
    weights = np.ones(labels.size) if weights is None else weights
    if not weights.any():
        return math.nan
    gaps, mass = _bin_gaps(probabilities, labels, weights, n_bins, binning)
    filled = mass > 0
    return float((np.abs(gaps[filled]) / mass[filled]).max())


def smooth_ece(probabilities: Floats, labels: Labels, weights: Floats | None) -> float:
    """[`smooth_calibration_error`] of checked arrays; NaN if no row has weight."""
    from scipy.fft import dct
    from scipy.optimize import brentq

    weights = np.ones(labels.size) if weights is None else weights
    if not weights.any():
        return math.nan
    residuals = weights / weights.sum() * (labels - probabilities)
    position = probabilities * GRID
    node = np.minimum(position.astype(np.int64), GRID - 1)
    right = residuals * (position - node)
    mass = np.bincount(node, residuals - right, GRID + 1) + np.bincount(node + 1, right, GRID + 1)
    # Reflected at 0 and 1 the sample is even and periodic: cosines are the eigenfunctions of the reflected kernel.
    # The end nodes are their own mirror images, so they count twice.
    mass[[0, -1]] *= 2
    spectrum = dct(mass, type=1)
    frequencies = np.pi * np.arange(GRID + 1)

    def smoothed(sigma: float) -> float:
        values = np.abs(dct(spectrum * np.exp(-0.5 * (sigma * frequencies) ** 2), type=1)) / (2 * GRID)
        return float(values.sum() - (values[0] + values[-1]) / 2)

    # Smoothing never raises the error, so the difference falls strictly and has one root. The root may be 1: rounding
    # must not push it out of the bracket.
    return min(float(brentq(lambda sigma: smoothed(sigma) - sigma, 0, 2, xtol=1e-9)), 1.0)


def _checked(
    probabilities: Any, labels: Any, sample_weight: Any | None, n_bins: int = 1, binning: str = "equal_width"
) -> tuple[Floats, Labels, Floats | None]:
    if binning not in ("equal_width", "equal_mass"):
        raise UsageError(f'binning must be "equal_width" or "equal_mass", found "{binning}"')
    if n_bins < 1:
        raise UsageError(f"n_bins must be at least 1, found {n_bins}")
    p, y, w = as_probabilities(probabilities), as_labels(labels), as_weights(sample_weight)
    check_lengths(probabilities=p, labels=y, sample_weight=w)
    return p, y, w


def expected_calibration_error(
    probabilities: Any,
    labels: Any,
    n_bins: int = 15,
    binning: Binning = "equal_width",
    sample_weight: Any | None = None,
) -> float:
    """Expected calibration error of the top-1 confidence (Guo et al. 2017, arXiv:1706.04599, equation 3).

    The confidence is `max(p, 1 - p)`, and the prediction is positive iff `p > 0.5`, whatever threshold is deployed:
    the error is one of the probability, not of the decision. torchmetrics' binary variant bins `p` instead and gives
    another number.

    Args:
        probabilities (`array-like` of shape `(n,)`): P(positive), in [0, 1].
        labels (`array-like` of shape `(n,)`): 0 or 1.
        n_bins (`int`, defaults to 15): Number of bins on [0, 1].
        binning (`str`, defaults to `"equal_width"`):
            `"equal_width"`: right-closed bins `(lo, hi]`, as in Guo et al. `"equal_mass"`: bins of equal weight; a
            value and all its ties go to the bin that holds the middle of their weight.
        sample_weight (`array-like` of shape `(n,)`, *optional*): Weight of each row.

    Returns:
        `float`: the mean over the rows of |accuracy - confidence| in the bin of the row, in [0, 1].

    Raises:
        [`DataError`]: an array has a wrong shape or value. [`UsageError`]: the binning is unknown, or there is no bin.
    """
    p, y, w = _checked(probabilities, labels, sample_weight, n_bins, binning)
    return ece(p, y, w, n_bins, binning)


def maximum_calibration_error(
    probabilities: Any,
    labels: Any,
    n_bins: int = 15,
    binning: Binning = "equal_width",
    sample_weight: Any | None = None,
) -> float:
    """Maximum calibration error of the top-1 confidence (Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602).

    The worst bin decides, however few rows it has: with bins of equal width, this is often the noise of one row.

    Args:
        probabilities, labels, n_bins, binning, sample_weight: As for [`expected_calibration_error`], the same bins.

    Returns:
        `float`: the largest |accuracy - confidence| of a bin with any weight, in [0, 1].

    Raises:
        As [`expected_calibration_error`].

    Example:
        Three rows have confidence 0.8, and one of them is wrong; one row has 0.95 and is right:

        >>> round(maximum_calibration_error([0.8, 0.8, 0.8, 0.95], [1, 1, 0, 1]), 4)
        0.1333
    """
    p, y, w = _checked(probabilities, labels, sample_weight, n_bins, binning)
    return mce(p, y, w, n_bins, binning)


def smooth_calibration_error(probabilities: Any, labels: Any, sample_weight: Any | None = None) -> float:
    """Smooth calibration error, smECE (Błasiok and Nakkiran 2023, arXiv:2309.12236): no bins to choose.

    The residuals `label - p` are smoothed over p by a Gaussian kernel reflected at 0 and 1; the error at bandwidth
    sigma is the integral of the absolute value. It falls as sigma grows; the result is the sigma that equals it.

    It measures P(positive), as the paper does for two classes. So it finds what the top-1 confidence hides: too much
    confidence in one class beside too little in the other. For the error of the top-1 confidence, call
    `smooth_calibration_error(confidence, correct)`.

    Args:
        probabilities (`array-like` of shape `(n,)`): P(positive), in [0, 1].
        labels (`array-like` of shape `(n,)`): 0 or 1.
        sample_weight (`array-like` of shape `(n,)`, *optional*): Weight of each row.

    Returns:
        `float`: in [0, 1], exact to 1e-5 above 0.01 and to about 1e-4 below.

    Raises:
        [`DataError`]: an array has a wrong shape or value.

    Example:
        Half of the rows have 0.5 and are right on average; half have 0.9, and every second one is positive:

        >>> round(smooth_calibration_error([0.5, 0.5, 0.9, 0.9], [0, 1, 0, 1]), 6)
        0.2
    """
    return smooth_ece(*_checked(probabilities, labels, sample_weight))


def ece_reduction_percent(before: float, after: float) -> float | None:
    """Compute by how many percent a calibration error fell. Negative if it rose.

    Args:
        before, after (`float`): The same error on the same rows, not negative.

    Returns:
        `float` of at most 100, or `None` if `before` is 0: there was nothing to reduce.

    Raises:
        [`UsageError`]: one of them is negative or not finite.

    Example:
        >>> ece_reduction_percent(0.08, 0.02)
        75.0
    """
    for name, value in (("before", before), ("after", after)):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} must be finite and not negative, found {value}")
    return 100 * (before - after) / before if before > 0 else None
