"""Smooth calibration error, against its definition by quadrature and against the authors' package."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from refusals import refused

from natix_hf.errors import DataError
from natix_hf.metrics import smooth_calibration_error
from natix_hf.metrics.calibration_error import smooth_ece

NODES = (np.arange(8_000) + 0.5) / 8_000


def by_quadrature(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """The sum over mirror images written out, the midpoint rule, and bisection for the fixed point."""

    def error(sigma: float) -> float:
        smoothed = np.zeros(NODES.size)
        for probability, label, weight in zip(p, y, w, strict=True):
            for turn in range(-5, 6):
                for image in (2 * turn + probability, 2 * turn - probability):
                    kernel = np.exp(-0.5 * ((NODES - image) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
                    smoothed += weight * (label - probability) * kernel
        return float(np.abs(smoothed).mean() / w.sum())

    low, high = 0.0, 1.0
    for _ in range(24):
        sigma = (low + high) / 2
        low, high = (sigma, high) if error(sigma) > sigma else (low, sigma)
    return (low + high) / 2


@pytest.mark.parametrize("n", [1, 2, 7, "ends", "wrong"])
def test_definition(n: int | str) -> None:
    generator = np.random.default_rng(n if isinstance(n, int) else 0)
    p, y = {
        # Residuals of both signs, at and near 0 and 1, where the mirror images count.
        "ends": (np.array([0, 0.03, 0.1, 0.9, 0.98, 1, 1]), np.array([1, 0, 0, 1, 1, 0, 1])),
        # All wrong and all sure: the largest bandwidths, whose mirror images reach over the whole of [0, 1].
        "wrong": (np.array([1.0, 0.0, 0.0]), np.array([0, 1, 1])),
    }.get(n) or (generator.random(n), generator.integers(0, 2, n))
    w = generator.random(len(p))
    assert smooth_calibration_error(p, y) == pytest.approx(by_quadrature(p, y, np.ones(len(p))), abs=1e-6)
    assert smooth_calibration_error(p, y, w) == pytest.approx(by_quadrature(p, y, w), abs=1e-6)


def authors_sample() -> tuple[np.ndarray, np.ndarray]:
    k = np.arange(200)
    p = (k * 61 % 200 + 0.5) / 200
    return p, ((k * 97 % 200 + 0.5) / 200 < np.clip(1.3 * p - 0.15, 0, 1)).astype(int)


def test_by_hand() -> None:
    # Residuals of one sign: smoothing cancels nothing, whatever sigma, so it is their mean.
    assert smooth_calibration_error([0.9, 0.7], [0, 0]) == pytest.approx(0.8, abs=1e-8)
    assert smooth_calibration_error([0.9, 0.7], [0, 0], [3, 1]) == pytest.approx(0.85, abs=1e-8)
    assert smooth_calibration_error([0.0, 1.0], [1, 1]) == pytest.approx(0.5, abs=1e-8)
    for n in (1, 3, 7, 1000):
        assert smooth_calibration_error([0.0] * n, [1] * n) == pytest.approx(1, abs=1e-8)
        assert smooth_calibration_error([1.0] * n, [0] * n) <= 1
    # Errors of the ends, far apart: neither reaches the other.
    assert smooth_calibration_error([0.0, 1.0, 0.0, 1.0] * 5, [1, 0] + [0, 1] * 9) == pytest.approx(0.1, abs=1e-6)
    # Residuals that cancel in one place, and no residual at all.
    assert smooth_calibration_error([0.5, 0.5], [0, 1]) == 0
    assert smooth_calibration_error([0.0, 1.0], [0, 1]) == 0


def test_near_zero() -> None:
    """Errors far below .01, where the bandwidth nears the steps of the grid: within 1e-4."""
    for error in (1e-5, 1e-4, 1e-3):
        found = smooth_calibration_error([error, 1 - error, 0.5, 0.5], [0, 1, 0, 1])
        assert found == pytest.approx(error / 2, abs=1e-6)
    p, y = np.append(np.ones(100_000), 1.0), np.append(np.ones(100_000), 0)
    assert smooth_calibration_error(p, y) == pytest.approx(1 / 100_001, abs=1e-6)


def test_invariances() -> None:
    p, y = authors_sample()
    w = np.random.default_rng(0).integers(0, 4, 200)
    found = smooth_calibration_error(p, y, w)
    assert smooth_calibration_error(np.repeat(p, w), np.repeat(y, w)) == pytest.approx(found, abs=1e-9)
    assert smooth_calibration_error(p, y, w * 1e-6) == pytest.approx(found, abs=1e-9)
    shuffle = np.random.default_rng(1).permutation(200)
    assert smooth_calibration_error(p[shuffle], y[shuffle], w[shuffle]) == pytest.approx(found, abs=1e-9)
    # Calling the other class positive changes nothing.
    assert smooth_calibration_error(1 - p, 1 - y, w) == pytest.approx(found, abs=1e-8)
    assert smooth_calibration_error(torch.tensor(p), torch.tensor(y), w.tolist()) == found


def test_refused() -> None:
    for p, y, w, facts in (
        ([2.5], [1], None, ["probabilities", "[0, 1]", 2.5]), ([math.nan], [1], None, ["probabilities", "nan"]),
        ([0.5], [2], None, ["labels", 2]), ([0.5], [1], [1, 1], ["sample_weight 2"]),
    ):  # fmt: skip
        refused(DataError, lambda given=(p, y, w): smooth_calibration_error(*given), *facts)
    assert math.isnan(smooth_ece(np.array([0.5]), np.array([1], dtype=np.int8), np.array([0.0])))
