"""Temperature and Platt scaling, against values by hand, a brute-force grid, scikit-learn and their gradients."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from facts import tells
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
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


class GivenScores(ClassifierMixin, BaseEstimator):
    """A classifier whose scores are its features: one, or (0, z) for two columns."""

    def __init__(self, columns: int) -> None:
        self.columns = columns

    def fit(self, x: Any, y: Any) -> GivenScores:
        self.classes_ = np.array([0, 1])
        return self

    def decision_function(self, x: Any) -> Any:
        return x[:, 0] if self.columns == 1 else np.column_stack([np.zeros(len(x)), x[:, 0]])

    def predict(self, x: Any) -> Any:
        return (x[:, 0] > 0).astype(int)


@pytest.mark.skipif(
    tuple(int(part) for part in sklearn.__version__.split(".")[:2]) < (1, 8), reason="temperature is new in 1.8"
)
def test_sklearn() -> None:
    z, y, _ = overconfident(500, 2.5, 3)
    x, rows = z[:, None], np.arange(500)
    found = fit_temperature(z, y)
    # Of one column it makes the logits (-z, z), whose difference is 2z.
    for columns, factor in ((2, 1), (1, 2)):
        frozen = FrozenEstimator(GivenScores(columns).fit(x, y))
        theirs = CalibratedClassifierCV(frozen, method="temperature", ensemble=True, cv=[(rows, rows)]).fit(x, y)
        beta = theirs.calibrated_classifiers_[0].calibrators[0].beta_
        assert 1 / beta == pytest.approx(factor * found, rel=1e-6)
        ours = Calibration("temperature", 1 / found).probability(z)
        assert theirs.predict_proba(x)[:, 1] == pytest.approx(ours, abs=1e-7)


def test_it_converges_where_lbfgs_stops_early() -> None:
    z, y, _ = overconfident(2000, 8, 0)
    z *= 2.97 / fit_temperature(z, y)
    assert fit_temperature(z, y) == pytest.approx(2.97, rel=1e-11)
    logits, labels = torch.tensor(z), torch.tensor(y, dtype=torch.float64)
    t = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([t], lr=0.01, max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits / t, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    stopped = t.detach().item()
    assert stopped == pytest.approx(1.23, abs=0.02)
    loss_there, loss_here = nll(z, y, np.ones(y.size), np.log([stopped, fit_temperature(z, y)]))
    assert loss_here < 0.9 * loss_there


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


def test_what_it_takes() -> None:
    z, y, w = overconfident(50, 1.7, 6)
    z = z.astype(np.float32)
    found = fit_temperature(z, y, w)
    assert type(found) is float
    assert fit_temperature(z.tolist(), y.tolist(), w.tolist()) == found
    assert fit_temperature(torch.tensor(z, requires_grad=True), torch.tensor(y), torch.tensor(w)) == found
    before = z.copy(), y.copy(), w.copy()
    fit_temperature(z, y, w), fit_platt(z, y, w)
    assert all(np.array_equal(a, b) for a, b in zip((z, y, w), before, strict=True))


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
    for y in ([0, 0, 0], [1, 1, 1]):
        with pytest.raises(DataError, match=rf"on one class: all 3 labels are {y[0]}$"):
            fit([0.1, -2, 1], y)
    with pytest.raises(DataError, match="on one class: all 2 labels with weight are 1"):
        fit([0.1, -2, 1], [0, 1, 1], sample_weight=[0, 1, 1])
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(DataError, match=r"logits must be finite, found .* at position 1"):
            fit([0.1, bad, 1], [0, 1, 1])
        with pytest.raises(DataError, match=r"sample_weight must be finite, found .* at position 2"):
            fit([0.1, 2, 1], [0, 1, 1], sample_weight=[1, 1, bad])
    with pytest.raises(DataError, match="labels must be 0 or 1, found 2 at position 2"):
        fit([0.1, 2, 1], [0, 1, 2])
    with pytest.raises(DataError, match="labels must be 0 or 1, found -1 at position 0"):
        fit([0.1, 2, 1], [-1, 1, 1])
    with pytest.raises(DataError, match="found lengths: logits 3, labels 2"):
        fit([0.1, 2, 1], [0, 1])
    with pytest.raises(DataError, match="found lengths: logits 2, labels 2, sample_weight 3"):
        fit([0.1, 2], [0, 1], sample_weight=[1, 1, 1])
    with pytest.raises(DataError, match="sample_weight must not be negative, found -1 at position 1"):
        fit([0.1, 2], [0, 1], sample_weight=[1, -1])
    with pytest.raises(DataError, match="sample_weight is 0 in every row"):
        fit([0.1, 2], [0, 1], sample_weight=[0, 0])
    with pytest.raises(DataError, match="logits is empty"):
        fit([], [])
    with pytest.raises(DataError, match="logits must be one-dimensional"):
        fit([[0.1, 2], [1, 2]], [0, 1])


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


def test_calibration_refused() -> None:
    for slope in (0, -1, math.nan, math.inf):
        with pytest.raises(UsageError, match="slope must be finite and above 0"):
            Calibration("platt", slope)
    with pytest.raises(UsageError, match="intercept must be finite"):
        Calibration("platt", 1, math.nan)
    with pytest.raises(UsageError, match='"temperature" has no slope 2 with intercept 1'):
        Calibration("temperature", 2, 1)
    with pytest.raises(UsageError, match='"none" has no slope 2'):
        Calibration("none", 2)
    for refused in (lambda: Calibration("isotonic"), lambda: fit_calibration([1, 2], [0, 1], "isotonic")):  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="method must be one of none, temperature, platt, found"):
            refused()
    with pytest.raises(DataError, match=r"slope is .*: the logits rank the classes backwards"):
        fit_calibration([0, 1, 0, 1, 2, 2], [1, 0, 1, 1, 0, 1], "platt")


def test_temperature_keeps_the_order_of_likelihood() -> None:
    """The likelihood has one optimum over log T: it falls on both sides of what is found."""
    z, y, w = overconfident(100, 1.5, 8)
    found = math.log(fit_temperature(z, y, w))
    below, above = nll(z, y, w, np.linspace(-4.6, found, 60)), nll(z, y, w, np.linspace(found, 4.6, 60))
    assert all(b < a for a, b in pairwise(below)) and all(a < b for a, b in pairwise(above))


def test_import_is_light() -> None:
    code = "import sys, natix_hf.calibration; print({'torch', 'sklearn', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_examples() -> None:
    ran = doctest.testmod(temperature)
    assert ran.attempted >= 4 and ran.failed == 0
