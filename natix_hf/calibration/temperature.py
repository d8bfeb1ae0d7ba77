"""Calibration of logits by a temperature or by Platt scaling, both at the optimum of the likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import Floats, Labels, as_floats, as_labels, as_weights, check_lengths

Method = Literal["none", "temperature", "platt"]

# Trained networks need about 0.3 to 10. Beyond these bounds every probability is close to 0, 1 or 0.5.
TEMPERATURE_BOUNDS = (0.01, 100.0)


@dataclass(frozen=True)
class Calibration:
    """An increasing map of logits, `slope * z + intercept`. A temperature T has slope 1/T and intercept 0.

    Args:
        method (`str`): `"none"`, `"temperature"` or `"platt"`.
        slope (`float`, defaults to 1): Finite and above 0, so that the order of the rows is kept.
        intercept (`float`, defaults to 0): Calibrated logit of z = 0. Only `"platt"` may have one.

    Raises:
        [`UsageError`]: If the method is unknown, or the slope or the intercept is not valid for it.

    Example:
        >>> Calibration("temperature", slope=1 / 2).probability([-2.0, 0.0, 2.0]).round(4).tolist()
        [0.2689, 0.5, 0.7311]
    """

    method: Method
    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UsageError(f'method must be one of {", ".join(get_args(Method))}, found "{self.method}"')
        if not (math.isfinite(self.slope) and self.slope > 0):
            raise UsageError(f"slope must be finite and above 0, found {self.slope}")
        if not math.isfinite(self.intercept):
            raise UsageError(f"intercept must be finite, found {self.intercept}")
        if (self.method != "platt" and self.intercept != 0) or (self.method == "none" and self.slope != 1):
            raise UsageError(
                f'method "{self.method}" cannot have slope {self.slope:g} and intercept {self.intercept:g}: '
                "only platt fits both"
            )

    def logit(self, logits: Any) -> Floats:
        """Compute calibrated logits, float64 of shape `(n,)`. The same map carries over a threshold on z.

        Args:
            logits (`array-like` of shape `(n,)`): Logit of the positive class minus that of the negative class.

        Raises:
            [`DataError`]: If the array is invalid.
        """
        return self.slope * as_floats(logits, "logits") + self.intercept

    def probability(self, logits: Any) -> Floats:
        """Compute calibrated probabilities of the positive class, float64 of shape `(n,)`.

        Args:
            logits (`array-like` of shape `(n,)`): Logit of the positive class minus that of the negative class.

        Raises:
            [`DataError`]: If the array is invalid.
        """
        with np.errstate(over="ignore"):  # exp overflows to infinity, and the probability is 0
            probabilities: Floats = 1 / (1 + np.exp(-self.logit(logits)))
        return probabilities


def _sample(logits: Any, labels: Any, sample_weight: Any | None, what: str) -> tuple[Floats, Labels, Floats]:
    """Check the arrays, drop rows of weight 0, and scale the weights so that the largest is 1."""
    z, y, w = as_floats(logits, "logits"), as_labels(labels), as_weights(sample_weight)
    check_lengths(logits=z, labels=y, sample_weight=w)
    if w is None:
        w = np.ones(y.size)
    else:
        w = w / w.max()
        counted = w > 0
        z, y, w = z[counted], y[counted], w[counted]
    positives = int(y.sum())
    if positives in (0, y.size):
        rows = "labels" if sample_weight is None else "labels with weight"
        raise DataError(f"{what} cannot be fitted on one class: all {y.size} {rows} are {int(positives > 0)}")
    return z, y, w


def fit_temperature(logits: Any, labels: Any, sample_weight: Any | None = None) -> float:
    """Find the temperature T that minimises the negative log-likelihood of `sigmoid(z / T)`.

    Source: Guo et al. 2017, arXiv:1706.04599. The likelihood has a single optimum over log T. Brent's method brackets
    the root of its derivative and always converges, to about 1e-12 of T. T stays within `TEMPERATURE_BOUNDS`, 0.01 to
    100. It is 0.01 if the sign of z separates the classes, because the likelihood then grows down to T = 0. It is 100
    if z is uninformative or ranks the classes backwards, because the likelihood then grows up to T = infinity. If
    every logit is 0, all T are equally good and the result is 1.

    Args:
        logits (`array-like` of shape `(n,)`): Logit of the positive class minus that of the negative class.
        labels (`array-like` of shape `(n,)`): 0 or 1; both must occur.
        sample_weight (`array-like` of shape `(n,)`, *optional*):
            Weight of each row, for instance from [`prior_weights`]. Rows of weight 0 are ignored.

    Returns:
        `float`: The temperature T. Divide the logits by it.

    Raises:
        [`DataError`]: If an array is invalid, the arrays differ in length, or the labels are of one class.

    Example:
        Three of four rows are right, so sigmoid(4 / T) = 3/4:

        >>> round(fit_temperature([4.0, 4.0, 4.0, -4.0], [1, 1, 0, 0]), 4)
        3.641
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    z, y, w = _sample(logits, labels, sample_weight, "a temperature")
    margin = np.where(y == 1, z, -z)
    if not margin.any():
        return 1.0
    pull = w * margin

    def derivative(log_t: float) -> float:
        # The derivative over 1/T. Over log T it has the extra factor -1/T, which moves no root. Logits near 1e308 of
        # the wrong sign make it overflow, but then they do so at every T within the bounds.
        with np.errstate(over="ignore"):
            return float(pull @ expit(margin * -math.exp(-log_t)))

    low, high = TEMPERATURE_BOUNDS
    if derivative(math.log(low)) >= 0:
        return low
    if derivative(math.log(high)) <= 0:
        return high
    return math.exp(brentq(derivative, math.log(low), math.log(high), xtol=1e-13, maxiter=1000))


def fit_platt(logits: Any, labels: Any, sample_weight: Any | None = None) -> tuple[float, float]:
    """Find the slope and intercept that minimise the negative log-likelihood of `sigmoid(slope * z + intercept)`.

    This is Platt scaling (Platt 1999) without label smoothing: unpenalised logistic regression on z. Unlike a
    temperature it can correct a shift of the logits. It has two parameters, so it needs more rows.

    Args:
        logits, labels, sample_weight: See [`fit_temperature`].

    Returns:
        `tuple[float, float]`: Slope and intercept. The slope is negative if z ranks the classes backwards.

    Raises:
        [`DataError`]: If an array is invalid, the labels are of one class, all logits are equal, or a threshold
            separates the classes, apart from rows exactly on it. The slope then has no finite optimum.

    Example:
        One of three rows is positive at z = 0, and four of five at z = 1. The logits are -log 2 and log 4:

        >>> slope, intercept = fit_platt([0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 0])
        >>> round(slope, 4), round(intercept, 4)
        (2.0794, -0.6931)
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    z, y, w = _sample(logits, labels, sample_weight, "Platt scaling")
    if z.min() == z.max():
        raise DataError(f"Platt scaling needs two distinct logits: all {z.size} are {z[0]:g}")
    positive, negative = z[y == 1], z[y == 0]
    if negative.max() <= positive.min() or positive.max() <= negative.min():
        raise DataError(
            "Platt scaling has no finite slope because a threshold separates the classes: fit a temperature"
        )

    # Standardise z so that the solver is well conditioned for any scale and offset.
    scale = np.abs(z).max()
    w = w / w.sum()
    unit = z / scale
    mean = w @ unit
    spread = math.sqrt(w @ (unit - mean) ** 2)
    regression = LogisticRegression(C=math.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    with warnings.catch_warnings():
        # With nearly separated classes the solver warns that it falls back to L-BFGS, which is accurate enough here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(((unit - mean) / spread)[:, None], y, sample_weight=w)
    slope = regression.coef_[0, 0] / spread
    return float(slope / scale), float(regression.intercept_[0] - slope * mean)


def fit_calibration(
    logits: Any, labels: Any, method: Method = "temperature", sample_weight: Any | None = None
) -> Calibration:
    """Fit a [`Calibration`] with [`fit_temperature`] or [`fit_platt`].

    Args:
        logits, labels, sample_weight: See [`fit_temperature`].
        method (`str`, defaults to `"temperature"`): `"temperature"`, `"platt"`, or `"none"` to keep the logits.

    Returns:
        [`Calibration`]: The fitted map.

    Raises:
        [`DataError`]: As the two functions, and if Platt's slope is not above 0.
        [`UsageError`]: If the method is unknown.

    Example:
        >>> fit_calibration([2.0, 2.0, -2.0], [1, 0, 1], "none")
        Calibration(method='none', slope=1.0, intercept=0.0)
    """
    if method == "temperature":
        return Calibration(method, 1 / fit_temperature(logits, labels, sample_weight))
    if method == "platt":
        slope, intercept = fit_platt(logits, labels, sample_weight)
        if slope <= 0:
            raise DataError(f"Platt's slope is {slope:.3g}: the logits rank the classes backwards, use other logits")
        return Calibration(method, slope, intercept)
    return Calibration(method)
