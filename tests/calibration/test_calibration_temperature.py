"""Temperature and Platt scaling, against values by hand, a brute-force grid, scikit-learn and their gradients."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from facts import tells
from refusals import refused
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from natix_hf.calibration import (
    TEMPERATURE_BOUNDS,
    Calibration,
    fit_calibration,
    fit_platt,
    fit_temperature,
    temperature,
)
from natix_hf.errors import DataError, UsageError


def overconfident(n: int, t: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that need a temperature of about `t`, labels of both classes, and weights."""
    generator = np.random.default_rng(seed)
    z = generator.normal(0.3, 2, n)
    y = (generator.random(n) < 1 / (1 + np.exp(-z))).astype(int)
    y[:2] = 0, 1
    return z * t, y, generator.random(n)


def nll(z: np.ndarray, y: np.ndarray, w: np.ndarray, log_t: np.ndarray) -> np.ndarray:
    """Weighted negative log-likelihood at each of `log_t`."""
    margin = np.where(y == 1, z, -z)
    return np.array([(w * np.logaddexp(0, -margin / math.exp(u))).sum() for u in log_t])


def brute_force(z: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """The best of a grid over log T, which closes in on its best point until the step is 1e-7."""
    low, high = np.log(TEMPERATURE_BOUNDS)
    while True:
        grid = np.linspace(low, high, 201)
        best = int(nll(z, y, w, grid).argmin())
        step = grid[1] - grid[0]
        if step < 1e-7:
            return math.exp(grid[best])
        low, high = max(grid[best] - 3 * step, low), min(grid[best] + 3 * step, high)


def test_by_hand() -> None:
    # sigmoid(4 / T) = 3/4 where three of four rows are right.
    z, y = [4, 4, -4, -4], [1, 1, 0, 1]
    assert fit_temperature(z, y) == pytest.approx(4 / math.log(3), rel=1e-11)
    # By weight it is nine of ten.
    assert fit_temperature(z, y, [3, 3, 3, 1]) == pytest.approx(4 / math.log(9), rel=1e-11)


@pytest.mark.parametrize("t", [0.05, 0.4, 1.0, 2.97, 20.0])
def test_brute_force(t: float) -> None:
    for seed, n in enumerate([5, 30, 300]):
        z, y, w = overconfident(n, t, seed)
        for weights in (None, w, w**8):
            found = fit_temperature(z, y, weights)
            assert found == pytest.approx(brute_force(z, y, np.ones(n) if weights is None else weights), rel=1e-6)


def test_invariances() -> None:
    z, y, w = overconfident(200, 1.7, 5)
    found = fit_temperature(z, y, w)
    for factor in (0.02, 3.0, 50.0):
        assert fit_temperature(factor * z, y, w) == pytest.approx(factor * found, rel=1e-11)
    assert fit_temperature(-z, 1 - y, w) == pytest.approx(found, rel=1e-11)
    shuffle = np.random.default_rng(1).permutation(200)
    assert fit_temperature(z[shuffle], y[shuffle], w[shuffle]) == pytest.approx(found, rel=1e-11)
    for factor in (1e-300, 1e-3, 1e6, 1.7e308):
        assert fit_temperature(z, y, w * factor) == pytest.approx(found, rel=1e-11)
    counts = np.random.default_rng(2).integers(0, 4, 200)
    repeated = fit_temperature(np.repeat(z, counts), np.repeat(y, counts))
    assert fit_temperature(z, y, counts) == pytest.approx(repeated, rel=1e-11)
    assert repeated != pytest.approx(fit_temperature(z, y), rel=1e-3)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_optimum_beyond_the_bounds() -> None:
    low, high = TEMPERATURE_BOUNDS
    # The sign separates the classes, from near 0 to where the float64 sigmoid is 1.
    for z in ([-1, -3, 2, 5], [-1e-9, 0, 0, 1e-9], [-1e6, -1e6, 1e6, 1e6], [-1.7e308, -1.0, 1e-320, 1.7e308]):
        assert fit_temperature(z, [0, 0, 1, 1]) == low
    # One row wrong by little: the optimum is finite and below the bound.
    assert fit_temperature([-0.03, -0.03, -1e-6, 0.03], [0, 0, 1, 1]) == low
    # Backwards, or as often right as wrong.
    assert fit_temperature([-1, -3, 2, 5], [1, 1, 0, 0]) == high
    assert fit_temperature([1, 1, -1, -1], [1, 0, 1, 0]) == high
    assert fit_temperature([-1e308, 1e308, 1e308], [1, 1, 0]) == high
    assert fit_temperature([1.7e308] * 50 + [-1.7e308] * 50, [1, 1, 1, 0, 0] * 20) == high
    # Both bounds are reached from within.
    for bound in (low, high):
        for inside in (bound * 1.01, bound / 1.01):
            z = np.array([4, 4, -4, -4]) / (4 / math.log(3)) * inside
            found = fit_temperature(z, [1, 1, 0, 1])
            assert found == pytest.approx(inside if low < inside < high else bound, rel=1e-11)


def test_constant_logits() -> None:
    assert fit_temperature([0, 0.0, -0.0], [0, 1, 1]) == 1
    # A constant that leans the right way: sigmoid(c / T) is the share of positives.
    assert fit_temperature([1.5] * 5, [1, 1, 1, 1, 0]) == pytest.approx(1.5 / math.log(4), rel=1e-11)
    assert fit_temperature([-1.5] * 5, [1, 1, 1, 1, 0]) == TEMPERATURE_BOUNDS[1]


@pytest.mark.parametrize("fit", [fit_temperature, fit_platt, fit_calibration])
def test_refused(fit: Any) -> None:
    for arguments, facts in (
        (([0.1, -2, 1], [0, 0, 0]), ["one class", "3 labels", 0]),
        (([0.1, -2, 1], [1, 1, 1]), ["one class", "3 labels", 1]),
        (([0.1, -2, 1], [0, 1, 1], "temperature", [0, 1, 1]), ["one class", "2 labels", "weight", 1]),
        (([0.1, math.nan, 1], [0, 1, 1]), ["logits", "nan", "position 1"]),
        (([0.1, -math.inf, 1], [0, 1, 1]), ["logits", "-inf", "position 1"]),
        (([0.1, 2, 1], [0, 1, 1], "platt", [1, 1, math.nan]), ["sample_weight", "nan", "position 2"]),
        (([0.1, 2, 1], [0, 1, 2]), ["labels", 2, "position 2"]),
        (([0.1, 2, 1], [-1, 1, 1]), ["labels", -1, "position 0"]),
        (([0.1, 2, 1], [0, 1]), ["logits 3", "labels 2"]),
        (([0.1, 2], [0, 1], "platt", [1, 1, 1]), ["logits 2", "labels 2", "sample_weight 3"]),
        (([0.1, 2], [0, 1], "platt", [1, -1]), ["sample_weight", -1, "position 1"]),
        (([0.1, 2], [0, 1], "platt", [0, 0]), ["sample_weight", 0]),
        (([], []), ["logits", "empty"]),
        (([[0.1, 2], [1, 2]], [0, 1]), ["logits", "one-dimensional"]),
    ):
        given = arguments if fit is fit_calibration else (*arguments[:2], *arguments[3:])
        refused(DataError, lambda given=given: fit(*given), *facts)


def test_platt_by_hand() -> None:
    # Two values of z, so that each has the logit of its own share of positives.
    z, y = [-2] * 4 + [3] * 10, [1] + [0] * 3 + [1] * 8 + [0] * 2
    slope, intercept = fit_platt(z, y)
    assert slope * -2 + intercept == pytest.approx(-math.log(3), rel=1e-10)
    assert slope * 3 + intercept == pytest.approx(math.log(4), rel=1e-10)
    # Backwards, the slope is negative.
    assert fit_platt(z, [1 - label for label in y]) == pytest.approx((-slope, -intercept), rel=1e-10)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [1e-300, 1e-150, 1e150, 1e300])
def test_platt_at_any_scale(factor: float) -> None:
    z, y, w = overconfident(200, 1.7, 5)
    slope, intercept = fit_platt(z, y, w)
    scaled = fit_platt(factor * z, y, w)
    assert scaled == (pytest.approx(slope / factor, rel=1e-9), pytest.approx(intercept, rel=1e-9))


@pytest.mark.parametrize("weighted", [False, True])
def test_platt_is_unregularised_logistic_regression(weighted: bool) -> None:
    for seed, n in enumerate([12, 60, 500]):
        z, y, w = overconfident(n, 2, seed + 20)
        weights = w if weighted else None
        theirs = LogisticRegression(C=math.inf, solver="newton-cholesky", tol=1e-12)
        theirs.fit(z[:, None], y, sample_weight=weights)
        ours = fit_platt(z, y, weights)
        assert ours == pytest.approx((theirs.coef_[0, 0], theirs.intercept_[0]), rel=1e-6, abs=1e-8)


@pytest.mark.filterwarnings("error")
def test_platt_gradient_vanishes() -> None:
    """At far offsets and scales, nearly separated, and with weights over six decades. In one of some 80 of these fits
    scikit-learn falls back to L-BFGS, which left gradients of up to 1.3e-10; the others stay below 1e-12."""
    generator = np.random.default_rng(4)
    fitted, gradients = 0, []
    for k in range(300):
        n = int(generator.integers(4, 50))
        x = generator.normal(size=n)
        y = (x + 0.1 * generator.normal(size=n) > 0).astype(int)
        w = 10 ** generator.uniform(-6, 0, n) if k % 2 else np.ones(n)
        if y.all() or not y.any() or x[y == 0].max() <= x[y == 1].min():
            continue
        fitted += 1
        scale, offset = 10 ** generator.uniform(-4, 4), generator.normal() * 30
        slope, intercept = fit_platt(scale * (x + offset), y, w)
        residual = w / w.sum() * (expit(slope * scale * (x + offset) + intercept) - y)
        gradients.append(max(abs(math.fsum(residual)), abs(math.fsum(residual * x))))
    assert fitted > 50 and max(gradients) < 1e-9 and sum(g > 1e-12 for g in gradients) <= fitted // 20


def test_platt_invariances() -> None:
    z, y, w = overconfident(200, 1.7, 5)
    slope, intercept = fit_platt(z, y, w)
    # It mends a shift, which no temperature does.
    assert fit_platt(5 * z - 40, y, w) == pytest.approx((slope / 5, intercept + 8 * slope), rel=1e-9)
    shuffle = np.random.default_rng(1).permutation(200)
    assert fit_platt(z[shuffle], y[shuffle], w[shuffle]) == pytest.approx((slope, intercept), rel=1e-9)
    for factor in (1e-300, 1e6, 1.7e308):
        assert fit_platt(z, y, w * factor) == pytest.approx((slope, intercept), rel=1e-9)
    counts = np.random.default_rng(2).integers(0, 4, 200)
    repeated = fit_platt(np.repeat(z, counts), np.repeat(y, counts))
    assert fit_platt(z, y, counts) == pytest.approx(repeated, rel=1e-9)
    # A second variable never fits worse.
    ones, found = np.ones(200), fit_temperature(z, y)
    a, b = fit_platt(z, y)
    assert nll(a * z + b, y, ones, np.zeros(1)) < nll(z / found, y, ones, np.zeros(1))


def test_platt_without_an_optimum() -> None:
    for z, y in (
        ([-1, 0, 1, 2], [0, 0, 1, 1]),
        ([-1, 0, 1, 2], [1, 1, 0, 0]),
        ([-1, 0, 0, 2], [0, 0, 1, 1]),  # a tie on the threshold alone
        ([5, 6, 7, 8], [0, 0, 1, 1]),  # separated, though not by its sign
    ):
        with pytest.raises(DataError) as separated:
            fit_platt(z, y)
        assert tells(separated.value, "Platt", "separates the classes", "temperature")
    with pytest.raises(DataError) as equal:
        fit_platt([0.5] * 3, [0, 1, 1])
    assert tells(equal.value, "Platt", "two distinct logits", "0.5")
    # Only rows with weight count.
    with pytest.raises(DataError) as separated:
        fit_platt([-1, 0, 1, 2, -5], [0, 0, 1, 1, 1], [1, 1, 1, 1, 0])
    assert tells(separated.value, "separates the classes")


def test_calibration() -> None:
    z, y, w = overconfident(300, 3, 9)
    t, (slope, intercept) = fit_temperature(z, y, w), fit_platt(z, y, w)
    assert fit_calibration(z, y, sample_weight=w) == Calibration("temperature", 1 / t, 0)
    assert fit_calibration(z, y, "platt", w) == Calibration("platt", slope, intercept)
    assert fit_calibration(z, y, "none") == Calibration("none", 1, 0)
    for method in ("none", "temperature", "platt"):
        calibration = fit_calibration(z, y, method, w)  # type: ignore[arg-type]
        calibrated = calibration.logit(z)
        assert calibration.probability(z) == pytest.approx(1 / (1 + np.exp(-calibrated)), rel=1e-12)
        # A threshold that is carried over by the same map decides alike.
        threshold = (np.sort(z)[100] + np.sort(z)[101]) / 2
        assert np.array_equal(calibrated > calibration.logit([threshold]), z > threshold)
    # Calibrated on its own rows, the mean probability is the share of positives: the intercept's own equation.
    fitted = fit_calibration(z, y, "platt", w).probability(z)
    assert np.average(fitted, weights=w) == pytest.approx(np.average(y, weights=w), abs=1e-12)
    extreme = Calibration("temperature", 100).probability([-1e300, 0, 1e300])
    assert extreme.tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        *(
            (lambda slope=slope: Calibration("platt", slope), ["slope", slope])
            for slope in (0, -1, math.nan, math.inf)
        ),
        (lambda: Calibration("platt", 1, math.nan), ["intercept", "nan"]),
        (lambda: Calibration("temperature", 2, 1), ["temperature", "slope 2", "intercept 1"]),
        (lambda: Calibration("none", 2), ["none", "slope 2"]),
        (lambda: Calibration("isotonic"), ["none", "temperature", "platt", "isotonic"]),
        (lambda: fit_calibration([1, 2], [0, 1], "isotonic"), ["none", "temperature", "platt", "isotonic"]),
    ],
)
def test_calibration_refused(call: Any, facts: list[object]) -> None:
    refused(UsageError, call, *facts)


def test_logits_that_rank_backwards_are_refused() -> None:
    refused(DataError, lambda: fit_calibration([0, 1, 0, 1, 2, 2], [1, 0, 1, 1, 0, 1], "platt"), "slope", "logits")


def test_import_is_light() -> None:
    code = "import sys, natix_hf.calibration; print({'torch', 'sklearn', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_examples() -> None:
    ran = doctest.testmod(temperature)
    assert ran.attempted >= 4 and ran.failed == 0
