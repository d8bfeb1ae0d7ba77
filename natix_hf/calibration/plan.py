"""The exact binomial test behind risk control, and the number of groups that a guarantee needs.

A threshold is certified if `binomial_cdf(errors, accepted, alpha) <= delta`. If the true risk exceeded `alpha`, the
chance of seeing this few errors would be at most `delta`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaincc, betainccinv

from natix_hf.errors import UsageError

# A plan for an error rate above 0 must succeed with at least this probability.
SUCCESS = 0.9

# Larger plans are refused. An error rate close to alpha would need more accepted groups than anybody can collect.
MOST_ACCEPTED = 1_000_000


@dataclass(frozen=True)
class Plan:
    """The number of calibration groups that a guarantee needs. Returned by [`groups_needed`].

    Args:
        groups (`int`): Calibration groups to collect: `accepted / coverage`, rounded up. On average `accepted` of
            them are accepted. The plan adds no margin for a shortfall by chance.
        accepted (`int`): Accepted groups that the test needs. Only groups in the denominator of the loss count.
        allowed_errors (`int`): Largest number of errors among them that still passes the test.
        probability (`float`): Probability that the test passes with `accepted` groups at the true error rate
            `error_rate`.
        alpha, delta, error_rate, coverage (`float`): The requested values.
    """

    groups: int
    accepted: int
    allowed_errors: int
    probability: float
    alpha: float
    delta: float
    error_rate: float
    coverage: float


def check_share(value: float, name: str) -> None:
    """Raise a [`UsageError`] if a value is not strictly between 0 and 1."""
    if not 0 < value < 1:
        raise UsageError(f"{name} must be between 0 and 1, both excluded, found {value}")


def binomial_cdf(errors: Any, accepted: Any, rate: float) -> Any:
    """Compute P(Binomial(accepted, rate) <= errors) with the incomplete beta function.

    Args:
        errors (`int` or `np.ndarray`): From 0 to `accepted`.
        accepted (`int` or `np.ndarray`): At least 0.
        rate (`float`): In (0, 1).

    Returns:
        `float` or `np.ndarray`: The probability. Its relative error is about 1e-13 for up to 10^7 accepted rows, even
        far out in the tail.
    """
    # The identity needs at least one success. Without a success the probability is 1.
    successes = np.maximum(np.subtract(accepted, errors), 1)
    tail = betaincc(np.add(errors, 1), successes, rate)
    return np.where(np.equal(accepted, errors), 1.0, tail)[()]


def upper_bound(errors: int, accepted: int, delta: float) -> float:
    """Compute the exact one-sided upper bound of a rate (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404).

    The bound is at most `alpha` if and only if `binomial_cdf(errors, accepted, alpha) <= delta`.

    Args:
        errors, accepted (`int`): Counts, with `errors <= accepted`.
        delta (`float`): Largest probability that the bound lies below the true rate.

    Returns:
        `float`: The bound; 1 if all accepted rows are errors.
    """
    return 1.0 if errors == accepted else float(betainccinv(errors + 1, accepted - errors, delta))


def smallest_accepted(errors: Any, alpha: float, delta: float) -> npt.NDArray[np.int64]:
    """Find the smallest number of accepted groups that passes the test with this many errors. Exact, by bisection.

    Args:
        errors (`int` or `np.ndarray` of int): At least 0.
        alpha, delta (`float`): In (0, 1).

    Returns:
        `np.ndarray` of int64: Numbers of groups, with the shape of `errors`.
    """
    e = np.asarray(errors, dtype=np.int64)
    low, high = e.copy(), e + 1 + np.int64(1 / alpha)
    while (short := binomial_cdf(e, high, alpha) > delta).any():
        low, high = np.where(short, high, low), np.where(short, high * 2, high)
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = binomial_cdf(e, middle, alpha) <= delta
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def allowed_errors(accepted: int, alpha: float, delta: float) -> int:
    """Find the largest number of errors at which `accepted` groups still certify a risk of at most `alpha`.

    Args:
        accepted (`int`): Number of accepted groups, at least 0.
        alpha (`float`): Risk to certify, in (0, 1).
        delta (`float`): Largest probability of a false certificate, in (0, 1).

    Returns:
        `int`: The number of errors, or -1 if even zero errors are too many.

    Raises:
        [`UsageError`]: If an argument is out of range.

    Example:
        >>> [allowed_errors(m, alpha=0.05, delta=0.1) for m in (44, 45, 100, 1000)]
        [-1, 0, 1, 40]
    """
    check_share(alpha, "alpha")
    check_share(delta, "delta")
    if accepted < 0:
        raise UsageError(f"accepted must not be negative, found {accepted}")
    low, high = -1, accepted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if binomial_cdf(middle, accepted, alpha) <= delta else (low, middle)
    return low


@lru_cache(maxsize=256)
def needed_without_error(alpha: float, delta: float) -> int:
    """Number of accepted groups that passes the test with zero errors. Fewer groups cannot certify anything."""
    return int(smallest_accepted(0, alpha, delta))


@lru_cache(maxsize=4096)
def needed_at_rate(errors: int, accepted: int, alpha: float, delta: float) -> int | None:
    """Number of accepted groups that passes the test at the error rate `errors / accepted`.

    Args:
        errors, accepted (`int`): The observed error rate as two counts; `accepted` is at least 1.
        alpha, delta (`float`): In (0, 1).

    Returns:
        `int` or `None`: `None` if the rate is at least `alpha`, or so close to it that more than a million accepted
        groups are needed.
    """
    low, high = -1, 0

    def enough(k: int) -> int | None:
        most = int(smallest_accepted(k, alpha, delta))
        return most if k * accepted >= errors * most else None

    if errors >= alpha * accepted:
        return None
    # The share of allowed errors jumps a little, so this number is sufficient but not always the smallest.
    while (found := enough(high)) is None:
        low, high = high, 2 * high + 1
        if high > alpha * MOST_ACCEPTED:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if (fewer := enough(middle)) is None:
            low = middle
        else:
            high, found = middle, fewer
    return found


def groups_needed(alpha: float, delta: float, error_rate: float = 0.0, coverage: float = 1.0) -> Plan:
    """Compute how many calibration groups are needed to certify a risk of at most `alpha`.

    With `error_rate=0` the number of accepted groups is `log(delta) / log(1 - alpha)`, rounded up. Fewer groups cannot
    certify anything. With a higher error rate it is the smallest number at which the exact test passes with
    probability 0.9 or more. That probability is a sawtooth, so a few more groups can fall slightly below 0.9. Risk
    control tests stricter thresholds first and must pass all of them. Plan with a realistic error rate of the accepted
    groups.

    Args:
        alpha (`float`): Risk to certify, in (0, 1).
        delta (`float`): Largest probability of a false certificate, in (0, 1).
        error_rate (`float`, defaults to 0): Error rate of the accepted groups, from 0 to below `alpha`.
        coverage (`float`, defaults to 1): Share of the groups that are accepted and in the denominator of the loss,
            in (0, 1].

    Returns:
        [`Plan`]: The numbers of groups and errors.

    Raises:
        [`UsageError`]: If an argument is out of range, or `error_rate` is so close to `alpha` that more than a
            million accepted groups are needed.

    Example:
        >>> groups_needed(alpha=0.05, delta=0.05).groups
        59
        >>> groups_needed(alpha=0.05, delta=0.05, coverage=0.5).groups
        118
    """
    check_share(alpha, "alpha")
    check_share(delta, "delta")
    if not 0 <= error_rate < alpha:
        raise UsageError(f"error_rate must be at least 0 and below alpha ({alpha}), found {error_rate}")
    if not 0 < coverage <= 1:
        raise UsageError(f"coverage must be above 0 and at most 1, found {coverage}")
    errors, accepted, probability = _smallest_plan(alpha, delta, error_rate)
    groups = math.ceil(accepted / coverage)
    return Plan(groups, accepted, errors, probability, alpha, delta, error_rate, coverage)


def _smallest_plan(alpha: float, delta: float, error_rate: float) -> tuple[int, int, float]:
    """Errors, accepted groups and probability of the smallest plan.

    Only the smallest number of groups for each number of errors can win: more groups with the same allowance of
    errors lower the probability.
    """
    if error_rate == 0:
        return 0, needed_without_error(alpha, delta), 1.0
    most = int(alpha * MOST_ACCEPTED)
    if binomial_cdf(most, smallest_accepted(most, alpha, delta), error_rate) < SUCCESS:
        raise UsageError(
            f"error_rate {error_rate} is too near to alpha {alpha}: more than {MOST_ACCEPTED:,} accepted groups are "
            "needed; raise alpha or lower the error rate"
        )
    first, size = 0, 16
    while True:
        errors = np.arange(first, first + size)
        accepted = smallest_accepted(errors, alpha, delta)
        probability = binomial_cdf(errors, accepted, error_rate)
        if (passed := probability >= SUCCESS).any():
            found = int(np.argmax(passed))
            return int(errors[found]), int(accepted[found]), float(probability[found])
        first, size = first + size, 2 * size
