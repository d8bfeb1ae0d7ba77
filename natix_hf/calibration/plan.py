"""How many groups a guarantee needs: the arithmetic of the exact binomial test behind risk control.

A threshold is certified where `binomial_cdf(errors, accepted, alpha) <= delta`: were the risk above `alpha`, so few
errors would come with probability `delta` at most.
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

# A plan for an error rate above 0 succeeds with at least this probability.
SUCCESS = 0.9

# No plan goes further: an error rate so near to alpha that it needs more is refused.
MOST_ACCEPTED = 1_000_000


@dataclass(frozen=True)
class Plan:
    """What a certificate needs.

    Args:
        groups (`int`): Calibration groups to collect: `accepted / coverage`, rounded up. Of so many, `accepted` are
            accepted on average; a shortfall by chance is not allowed for.
        accepted (`int`): Accepted groups (in the loss's denominator) that the test needs.
        allowed_errors (`int`): Most errors among them that still certify.
        probability (`float`): That the test at `accepted` groups passes, where their true error rate is `error_rate`.
        alpha, delta, error_rate, coverage (`float`): As asked.
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
    """Raise a [`UsageError`] for a value that is not strictly between 0 and 1."""
    if not 0 < value < 1:
        raise UsageError(f"{name} must be between 0 and 1, both excluded, found {value}")


def binomial_cdf(errors: Any, accepted: Any, rate: float) -> Any:
    """P(Binomial(accepted, rate) <= errors), by the incomplete beta function; arrays or numbers.

    Args:
        errors (`int` or `np.ndarray`): At least 0, and at most `accepted`.
        accepted (`int` or `np.ndarray`): At least 0.
        rate (`float`): Within (0, 1).

    Returns:
        `float` or `np.ndarray`: relative error about 1e-13 for up to 10^7 accepted, also far out in the tail.
    """
    # The identity needs one success at least; with none the answer is 1, whatever the errors.
    successes = np.maximum(np.subtract(accepted, errors), 1)
    tail = betaincc(np.add(errors, 1), successes, rate)
    return np.where(np.equal(accepted, errors), 1.0, tail)[()]


def upper_bound(errors: int, accepted: int, delta: float) -> float:
    """Clopper and Pearson's exact one-sided upper bound of a rate (1934, doi:10.1093/biomet/26.4.404).

    It is at most `alpha` exactly where `binomial_cdf(errors, accepted, alpha) <= delta`.

    Args:
        errors, accepted (`int`): Counts, `errors <= accepted`.
        delta (`float`): Probability that the bound is below the true rate, at most.

    Returns:
        `float`: 1 where all are errors.
    """
    return 1.0 if errors == accepted else float(betainccinv(errors + 1, accepted - errors, delta))


def smallest_accepted(errors: Any, alpha: float, delta: float) -> npt.NDArray[np.int64]:
    """The fewest accepted groups that certify in spite of so many errors, by bisection; exact.

    Args:
        errors (`int` or `np.ndarray` of int): At least 0.
        alpha, delta (`float`): Within (0, 1).

    Returns:
        `np.ndarray` of int64, of the shape of `errors`.
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
    """Most errors among `accepted` groups that certify a risk of at most `alpha`.

    Args:
        accepted (`int`): Accepted groups, at least 0.
        alpha (`float`): The risk to certify, within (0, 1).
        delta (`float`): Probability of a false certificate, at most; within (0, 1).

    Returns:
        `int`: -1 where not even zero errors would do.

    Raises:
        [`UsageError`]: for an argument that cannot be.

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
    """Accepted groups that certify if none of them is an error; with fewer nothing can be certified."""
    return int(smallest_accepted(0, alpha, delta))


@lru_cache(maxsize=4096)
def needed_at_rate(errors: int, accepted: int, alpha: float, delta: float) -> int | None:
    """Accepted groups that certify where errors come at the rate `errors / accepted`.

    Args:
        errors, accepted (`int`): The rate that was seen, as counts; `accepted` at least 1.
        alpha, delta (`float`): Within (0, 1).

    Returns:
        `int`, or `None` where the rate is `alpha` or more, or so near to it that more than a million are needed.
    """
    low, high = -1, 0

    def enough(k: int) -> int | None:
        most = int(smallest_accepted(k, alpha, delta))
        return most if k * accepted >= errors * most else None

    if errors >= alpha * accepted:
        return None
    # Not the smallest number to the last unit (the share of allowed errors jumps a little), but one that is enough.
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
    """How many calibration groups it takes to certify a risk of at most `alpha`.

    With `error_rate=0` it is `log(delta) / log(1 - alpha)`, rounded up: fewer cannot certify anything. Above 0 it is
    the smallest number of accepted groups at which the exact test passes with probability 0.9 or more; that
    probability is a saw-tooth, so that a few groups more can be a little below it. Risk control tests stricter
    thresholds first and must pass all of them, so plan with the error rate that the accepted groups really have.

    Args:
        alpha (`float`): The risk to certify, within (0, 1).
        delta (`float`): Probability of a false certificate, at most; within (0, 1).
        error_rate (`float`, defaults to 0): Of the accepted groups, at least 0 and below `alpha`.
        coverage (`float`, defaults to 1): Share of the groups that is accepted (and in the loss's denominator),
            within (0, 1].

    Returns:
        [`Plan`].

    Raises:
        [`UsageError`]: for an argument that cannot be, or an error rate so near to `alpha` that more than a million
        accepted groups are needed.

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
    """Errors, accepted groups and probability. Between two numbers that allow one error more, fewer are better: only
    those numbers need a look."""
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
