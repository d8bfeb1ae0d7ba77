"""Expected and maximum calibration error, against Guo et al.'s own loop and against definitions written out."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics import (
    calibration_error,
    ece_reduction_percent,
    expected_calibration_error,
    maximum_calibration_error,
)
from natix_hf.metrics.calibration_error import ece, mce


def guo(p: np.ndarray, y: np.ndarray, w: np.ndarray, n_bins: int) -> float:
    """The loop of github.com/gpleiss/temperature_scaling, with weights, in float64."""
    confidence, correct = np.maximum(p, 1 - p), (p > 0.5) == (y == 1)
    total = 0.0
    for k in range(n_bins):
        inside = (confidence > k / n_bins) & (confidence <= (k + 1) / n_bins)
        if w[inside].sum() > 0:
            accuracy = np.average(correct[inside], weights=w[inside])
            total += abs(accuracy - np.average(confidence[inside], weights=w[inside])) * w[inside].sum() / w.sum()
    return total


@pytest.mark.parametrize("n_bins", [1, 2, 10, 15, 40])
def test_equal_width_is_guo(n_bins: int) -> None:
    generator = np.random.default_rng(n_bins)
    # Two decimals put many confidences on the edges of 10, 15 and 40 bins.
    p, y, w = generator.random(400).round(2), generator.integers(0, 2, 400), generator.random(400)
    assert expected_calibration_error(p, y, n_bins) == pytest.approx(guo(p, y, np.ones(400), n_bins), abs=1e-13)
    assert expected_calibration_error(p, y, n_bins, sample_weight=w) == pytest.approx(guo(p, y, w, n_bins), abs=1e-13)


def test_bins_are_closed_on_the_right() -> None:
    # .8 is 12/15: right-closed, its bin (11/15, 12/15] holds .75 too, so that a gap of +.2 and one of -.75 offset.
    assert expected_calibration_error([0.8, 0.75], [1, 0]) == pytest.approx(abs(0.2 - 0.75) / 2)
    # The float above it does not.
    above = float(np.nextafter(0.8, 1))
    assert expected_calibration_error([above, 0.75], [1, 0]) == pytest.approx((0.2 + 0.75) / 2)


def test_it_is_of_the_top_confidence() -> None:
    # Binning P(positive) instead would find .1 and .9 in two bins, each against a rate of 1: a mean of .5, not .4.
    assert expected_calibration_error([0.1, 0.9], [1, 1]) == pytest.approx(abs(0.5 - 0.9))


def test_calibrated_and_constant() -> None:
    assert expected_calibration_error([0.75] * 4, [1, 1, 1, 0]) == pytest.approx(0)
    assert expected_calibration_error([1.0, 0.0], [1, 0]) == 0
    # At exactly .5 the prediction is negative.
    assert expected_calibration_error([0.5, 0.5], [0, 0]) == pytest.approx(0.5)


def test_equal_mass_by_hand() -> None:
    p, y = np.array([0.55, 0.6, 0.7, 0.95, 0.97, 0.99]), np.array([1, 0, 1, 1, 1, 0])
    confidence, correct = p, y
    pairs = sum(abs((correct - confidence)[k : k + 2].sum()) for k in (0, 2, 4)) / 6
    assert expected_calibration_error(p, y, 3, "equal_mass") == pytest.approx(pairs)
    shuffled = [3, 0, 5, 1, 4, 2]
    assert expected_calibration_error(p[shuffled], y[shuffled], 3, "equal_mass") == pytest.approx(pairs)
    # A bin for each row leaves no gap to cancel; one bin cancels all.
    assert expected_calibration_error(p, y, 6, "equal_mass") == pytest.approx(np.abs(correct - confidence).mean())
    assert expected_calibration_error(p, y, 1, "equal_mass") == pytest.approx(abs((correct - confidence).mean()))


def test_equal_mass_weights_and_ties() -> None:
    # Ties stay together although two bins of two would cut them; their mass has its middle in the first bin.
    p, y = [0.6, 0.6, 0.6, 0.9], [1, 0, 0, 1]
    assert expected_calibration_error(p, y, 2, "equal_mass") == pytest.approx((abs(1 - 1.8) + 0.1) / 4)
    # It is the middle that decides and not the start, which lies in the first bin for both values here.
    p, y = [0.6, 0.9, 0.9, 0.9], [1, 0, 0, 1]
    assert expected_calibration_error(p, y, 2, "equal_mass") == pytest.approx((0.4 + abs(1 - 2.7)) / 4)
    # Integer weights are repeated rows; where bins split depends on the weights, not on the rows.
    generator = np.random.default_rng(3)
    p, y, w = generator.random(50), generator.integers(0, 2, 50), generator.integers(0, 5, 50)
    weighted = expected_calibration_error(p, y, 7, "equal_mass", sample_weight=w)
    assert weighted == pytest.approx(expected_calibration_error(np.repeat(p, w), np.repeat(y, w), 7, "equal_mass"))
    assert weighted != pytest.approx(expected_calibration_error(p, y, 7, "equal_mass"))


def test_refused() -> None:
    with pytest.raises(UsageError, match="binning must be"):
        expected_calibration_error([0.5], [1], binning="quantile")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="n_bins must be at least 1, found 0"):
        expected_calibration_error([0.5], [1], n_bins=0)
    with pytest.raises(DataError, match=r"probabilities must be in \[0, 1\]"):
        expected_calibration_error([2.5], [1])
    with pytest.raises(DataError, match="labels must be 0 or 1"):
        expected_calibration_error([0.5], [-1])
    with pytest.raises(DataError, match="found lengths"):
        expected_calibration_error([0.5], [1, 0])
    assert math.isnan(ece(np.array([0.5]), np.array([1], dtype=np.int8), np.array([0.0])))


def guo_maximum(p: np.ndarray, y: np.ndarray, w: np.ndarray, n_bins: int) -> float:
    """Equation 5 of Guo et al. as a loop over the bins of `guo`."""
    confidence, correct = np.maximum(p, 1 - p), (p > 0.5) == (y == 1)
    gaps = []
    for k in range(n_bins):
        inside = (confidence > k / n_bins) & (confidence <= (k + 1) / n_bins) & (w > 0)
        if inside.any():
            accuracy = np.average(correct[inside], weights=w[inside])
            gaps.append(abs(accuracy - np.average(confidence[inside], weights=w[inside])))
    return max(gaps)


@pytest.mark.parametrize("n_bins", [1, 2, 10, 15, 40])
def test_maximum_is_of_the_same_bins(n_bins: int) -> None:
    generator = np.random.default_rng(n_bins)
    p, y, w = generator.random(400).round(2), generator.integers(0, 2, 400), generator.integers(0, 3, 400)
    ones = np.ones(400)
    assert maximum_calibration_error(p, y, n_bins) == pytest.approx(guo_maximum(p, y, ones, n_bins), abs=1e-13)
    weighted = maximum_calibration_error(p, y, n_bins, sample_weight=w)
    assert weighted == pytest.approx(guo_maximum(p, y, w, n_bins), abs=1e-13)
    for binning in ("equal_width", "equal_mass"):
        repeated = maximum_calibration_error(np.repeat(p, w), np.repeat(y, w), n_bins, binning)
        assert maximum_calibration_error(p, y, n_bins, binning, w) == pytest.approx(repeated)
        assert maximum_calibration_error(p, y, n_bins, binning, w * 1e-9) == pytest.approx(repeated)
        assert repeated >= expected_calibration_error(np.repeat(p, w), np.repeat(y, w), n_bins, binning)
        if n_bins == 1:
            assert repeated == pytest.approx(expected_calibration_error(np.repeat(p, w), np.repeat(y, w), 1, binning))


def test_maximum_by_hand() -> None:
    # Confidences .8, .8, .8 (right, right, wrong), .95 (right) and .6 (wrong): gaps 2/3 - .8, .05 and -.6.
    p, y = [0.8, 0.2, 0.8, 0.95, 0.4], [1, 0, 0, 1, 1]
    assert maximum_calibration_error(p, y) == pytest.approx(0.6)
    assert expected_calibration_error(p, y) == pytest.approx((0.4 + 0.05 + 0.6) / 5)
    # Without the last row; its bin is then empty, and so it is where the row has no weight.
    assert maximum_calibration_error(p[:4], y[:4]) == pytest.approx(0.8 - 2 / 3)
    assert maximum_calibration_error(p, y, sample_weight=[1, 1, 1, 1, 0]) == pytest.approx(0.8 - 2 / 3)
    # Of equal mass, two bins are {.6} and the rest, as the middle of the ties opens the second. With weights of 2 for
    # all but .6 it lies in the first: {.6, .8, .8, .8} and {.95}. In one bin all offset each other.
    assert maximum_calibration_error(p, y, 2, "equal_mass") == pytest.approx(0.6)
    assert maximum_calibration_error(p, y, 2, "equal_mass", [2, 2, 2, 2, 1]) == pytest.approx((4.8 + 0.6 - 4) / 7)
    assert maximum_calibration_error(p, y, 1, "equal_mass") == pytest.approx((3.95 - 3) / 5)


def test_maximum_refused() -> None:
    with pytest.raises(UsageError, match="binning must be"):
        maximum_calibration_error([0.5], [1], binning="quantile")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="n_bins must be at least 1, found 0"):
        maximum_calibration_error([0.5], [1], n_bins=0)
    with pytest.raises(DataError, match="found lengths"):
        maximum_calibration_error([0.5], [1, 0])
    assert math.isnan(mce(np.array([0.5]), np.array([1], dtype=np.int8), np.array([0.0])))


def test_reduction() -> None:
    assert ece_reduction_percent(0.08, 0.02) == pytest.approx(75)
    assert ece_reduction_percent(0.02, 0.03) == pytest.approx(-50)
    assert ece_reduction_percent(0.02, 0) == 100 and ece_reduction_percent(0.02, 0.02) == 0
    assert ece_reduction_percent(0, 0) is None and ece_reduction_percent(0.0, 0.1) is None
    assert ece_reduction_percent(5e-324, 0) == 100
    for bad in (math.nan, math.inf, -0.1):
        with pytest.raises(UsageError, match=r"before must be finite and not negative"):
            ece_reduction_percent(bad, 0.1)
        with pytest.raises(UsageError, match=r"after must be finite and not negative"):
            ece_reduction_percent(0.1, bad)


def test_examples() -> None:
    ran = doctest.testmod(calibration_error)
    assert ran.attempted >= 3 and ran.failed == 0
