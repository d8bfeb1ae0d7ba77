"""Calibration of logits: a temperature, or Platt's slope and intercept, at the exact optimum of the likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import Floats, Labels, as_floats, as_labels, as_weights, check_lengths

Method = Literal["none", "temperature", "platt"]

# Trained networks need some .3 to 10. Beyond these bounds a probability is a verdict (or .5) on every row.
TEMPERATURE_BOUNDS = (0.01, 100.0)


@dataclass(frozen=True)
class Calibration:
    """An increasing map of logits, `slope * z + intercept`; a temperature T is slope 1/T and intercept 0.

    Args:
        method (`str`): `"none"`, `"temperature"` or `"platt"`.
        slope (`float`, defaults to 1): Above 0, so that no two rows change places.
        intercept (`float`, defaults to 0): Calibrated logit of z = 0.

    Raises:
        [`UsageError`]: for an unknown method, a slope that is not finite and above 0, or an intercept that is not
            finite, or one that the method cannot have.

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
            raise UsageError(f'method "{self.method}" has no slope {self.slope:g} with intercept {self.intercept:g}')

    def logit(self, logits: Any) -> Floats:
        """Calibrated logits, float64 of shape `(n,)`; a threshold on z is carried over by the same map."""
        return self.slope * as_floats(logits, "logits") + self.intercept

    def probability(self, logits: Any) -> Floats:
        """Calibrated P(positive), float64 of shape `(n,)`."""
        from scipy.special import expit

        probabilities: Floats = expit(self.logit(logits))
        return probabilities


def _sample(logits: Any, labels: Any, sample_weight: Any | None, what: str) -> tuple[Floats, Labels, Floats]:
    """Checked arrays, of the rows that have weight; the largest weight is 1."""
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
    """Find the temperature T that minimises the negative log-likelihood of `sigmoid(z / T)` (Guo et al. 2017,
    arXiv:1706.04599).

    The likelihood has one optimum over log T, the one root of its derivative, which Brent's method brackets: it
    always converges, to about 1e-12 of T. T is kept within `TEMPERATURE_BOUNDS`, 0.01 to 100, and is the bound where
    the optimum lies beyond it: 0.01 where the sign of z separates the classes (the likelihood then grows down to
    T = 0), 100 where z tells nothing or the opposite (it grows up to T = infinity). Where every logit is 0, each T is
    as good as another, and 1 is returned.

    Args:
        logits (`array-like` of shape `(n,)`): Logit of the positive class minus that of the negative one.
        labels (`array-like` of shape `(n,)`): 0 or 1, both present.
        sample_weight (`array-like` of shape `(n,)`, *optional*):
            Weight of each row, for instance of [`prior_weights`]; a row of weight 0 counts as absent.

    Returns:
        `float`: T, by which logits are to be divided.

    Raises:
        [`DataError`]: where an array is not what it must be, or the labels are of one class.

    Example:
        Right in three of four rows, so that sigmoid(4 / T) = 3/4:

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
        # Of the likelihood over 1/T; over log T it has one more factor, -1/T, which moves no root. Where it overflows,
        # by logits near 1e308 of the wrong sign, it does so at every T within the bounds.
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

    Platt scaling (Platt 1999) without his smoothing of the labels: logistic regression on z, without penalty. Unlike
    a temperature it can mend a shift of the logits; it has two variables, so it needs more rows.

    Args:
        logits, labels, sample_weight: As for [`fit_temperature`].

    Returns:
        `tuple[float, float]`: slope and intercept; the slope is negative where z ranks the classes backwards.

    Raises:
        [`DataError`]: where an array is not what it must be, the labels are of one class, all logits are equal, or a
            threshold separates the classes (rows on it aside): the slope then has no finite optimum.

    Example:
        One of three positive at z = 0, four of five at z = 1, so logits of -log 2 and log 4:

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
        raise DataError("Platt scaling has no finite slope: a threshold separates the classes; fit a temperature")

    # At mean 0 and variance 1 the solver is well conditioned, whatever the scale and offset of z.
    scale = np.abs(z).max()
    w = w / w.sum()
    unit = z / scale
    mean = w @ unit
    spread = math.sqrt(w @ (unit - mean) ** 2)
    regression = LogisticRegression(C=math.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    with warnings.catch_warnings():
        # Where the classes are nearly separated it says that it falls back to L-BFGS, which gets as close as needed.
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(((unit - mean) / spread)[:, None], y, sample_weight=w)
    slope = regression.coef_[0, 0] / spread
    return float(slope / scale), float(regression.intercept_[0] - slope * mean)


def fit_calibration(
    logits: Any, labels: Any, method: Method = "temperature", sample_weight: Any | None = None
) -> Calibration:
    """Fit a [`Calibration`] by [`fit_temperature`] or [`fit_platt`]; `"none"` leaves the logits as they are.

    Raises:
        [`UsageError`]: for an unknown method. [`DataError`]: as these two, and where Platt's slope is not above 0.

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
