"""Expected and maximum calibration error, against Guo et al.'s own loop and against definitions written out."""

from __future__ import annotations

import doctest
import math
from typing import Any

import numpy as np
import pytest
from refusals import refused

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics import (
    calibration_error,
    ece_reduction_percent,
    expected_calibration_error,
    maximum_calibration_error,
)
from natix_hf.metrics.calibration_error import ece, mce


def gaps_of_bins(p: np.ndarray, y: np.ndarray, w: np.ndarray, n_bins: int) -> list[tuple[float, float]]:
    """Gap and weight of each bin: the loop of github.com/gpleiss/temperature_scaling, with weights, in float64."""
    confidence, correct = np.maximum(p, 1 - p), (p > 0.5) == (y == 1)
    found = []
    for k in range(n_bins):
        inside = (confidence > k / n_bins) & (confidence <= (k + 1) / n_bins)
        if w[inside].sum() > 0:
            accuracy = np.average(correct[inside], weights=w[inside])
            gap = abs(accuracy - np.average(confidence[inside], weights=w[inside]))
            found.append((gap, w[inside].sum()))
    return found


@pytest.mark.parametrize("n_bins", [1, 2, 10, 15, 40])
def test_equal_width_is_guo(n_bins: int) -> None:
    generator = np.random.default_rng(n_bins)
    # Two decimals put many confidences on the edges of 10, 15 and 40 bins.
    p, y, w = generator.random(400).round(2), generator.integers(0, 2, 400), generator.integers(0, 3, 400)
    for given, weights in ((None, np.ones(400)), (w, w), (generator.random(400),) * 2):
        bins = gaps_of_bins(p, y, weights, n_bins)
        mean = sum(gap * weight for gap, weight in bins) / weights.sum()
        assert expected_calibration_error(p, y, n_bins, sample_weight=given) == pytest.approx(mean, abs=1e-13)
        largest = max(gap for gap, _ in bins)
        assert maximum_calibration_error(p, y, n_bins, sample_weight=given) == pytest.approx(largest, abs=1e-13)
    for binning in ("equal_width", "equal_mass"):
        rows = np.repeat(p, w), np.repeat(y, w)  # integer weights are repeated rows, whatever their scale
        for error in (expected_calibration_error, maximum_calibration_error):
            repeated = error(*rows, n_bins, binning)
            assert error(p, y, n_bins, binning, w) == pytest.approx(repeated)
            assert error(p, y, n_bins, binning, w * 1e-9) == pytest.approx(repeated)
        mean = expected_calibration_error(*rows, n_bins, binning)
        assert repeated >= mean and (n_bins > 1 or repeated == pytest.approx(mean))


def test_by_hand() -> None:
    # .8 is 12/15: right-closed, its bin (11/15, 12/15] holds .75 too, so that a gap of +.2 and one of -.75 offset.
    assert expected_calibration_error([0.8, 0.75], [1, 0]) == pytest.approx(abs(0.2 - 0.75) / 2)
    # The float above it does not.
    above = float(np.nextafter(0.8, 1))
    assert expected_calibration_error([above, 0.75], [1, 0]) == pytest.approx((0.2 + 0.75) / 2)
    # Binning P(positive) instead would find .1 and .9 in two bins, each against a rate of 1: a mean of .5, not .4.
    assert expected_calibration_error([0.1, 0.9], [1, 1]) == pytest.approx(abs(0.5 - 0.9))
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


@pytest.mark.parametrize("measure", [expected_calibration_error, maximum_calibration_error])
def test_refused(measure: Any) -> None:
    refused(UsageError, lambda: measure([0.5], [1], binning="quantile"), "binning", "quantile", "equal_mass")
    refused(UsageError, lambda: measure([0.5], [1], n_bins=0), "n_bins", 0)
    refused(DataError, lambda: measure([2.5], [1]), "probabilities", "[0, 1]", 2.5)
    refused(DataError, lambda: measure([0.5], [-1]), "labels", -1)
    refused(DataError, lambda: measure([0.5], [1, 0]), "probabilities 1", "labels 2")
    no_weight = np.array([0.5]), np.array([1], dtype=np.int8), np.array([0.0])
    assert math.isnan(ece(*no_weight)) and math.isnan(mce(*no_weight))


def test_reduction() -> None:
    assert ece_reduction_percent(0.08, 0.02) == pytest.approx(75)
    assert ece_reduction_percent(0.02, 0.03) == pytest.approx(-50)
    assert ece_reduction_percent(0.02, 0) == 100 and ece_reduction_percent(0.02, 0.02) == 0
    assert ece_reduction_percent(0, 0) is None and ece_reduction_percent(0.0, 0.1) is None
    assert ece_reduction_percent(5e-324, 0) == 100
    for bad in (math.nan, math.inf, -0.1):
        refused(UsageError, lambda bad=bad: ece_reduction_percent(bad, 0.1), "before", bad)
        refused(UsageError, lambda bad=bad: ece_reduction_percent(0.1, bad), "after", bad)


def test_examples() -> None:
    ran = doctest.testmod(calibration_error)
    assert ran.attempted >= 3 and ran.failed == 0
