"""The exact binomial test behind risk control.

A threshold is certified if `binomial_cdf(errors, accepted, alpha) <= delta`. If the true risk exceeded `alpha`, the
chance of seeing this few errors would be at most `delta`.
"""

from __future__ import annotations

import numbers
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaincc, betainccinv, ndtri

from natix_hf.errors import UsageError, cut

# An error rate close to alpha would need more accepted groups than anybody can collect.
MOST_ACCEPTED = 1_000_000

# To certify less than this takes more than a billion rows.
SMALLEST_ALPHA = 1e-9

# Up to so many errors, the numbers of groups are kept for the next call, in tables that are this long and longer.
TABLE, SHORTEST = 1 << 17, 1 << 4


def check_share(value: Any, name: str) -> None:
    """Raise a [`UsageError`] if a value is not a number strictly between 0 and 1, or if it is an alpha that no data
    could certify."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"{name} must be a number between 0 and 1, found {cut(value)}")
    share = float(value)
    if not 0 < share < 1:
        raise UsageError(f"{name} must be between 0 and 1, both excluded, found {value}")
    if name == "alpha" and share < SMALLEST_ALPHA:
        raise UsageError(f"alpha must be at least {SMALLEST_ALPHA:g}, found {value}: no data are enough for less")


def binomial_cdf(errors: Any, accepted: Any, rate: Any) -> Any:
    """Compute P(Binomial(accepted, rate) <= errors) with the incomplete beta function.

    Args:
        errors (`int` or `np.ndarray`): From 0 to `accepted`.
        accepted (`int` or `np.ndarray`): At least 0.
        rate (`float` or `np.ndarray`): In (0, 1).

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
    # It is the number of trials until error e + 1, but for chance; so begin near its quantile (Cornish and Fisher).
    z, step = -float(ndtri(delta)), 2 + np.int64(1 / alpha)
    guess = (e + 1 + z * np.sqrt((e + 1) * (1 - alpha)) + (z * z - 1) * (2 - alpha) / 6) / alpha
    low = np.maximum(guess.astype(np.int64) - step, e)
    low = np.where(binomial_cdf(e, low, alpha) > delta, low, e)
    high = low + 2 * step
    while (short := binomial_cdf(e, high, alpha) > delta).any():
        low, high = np.where(short, high, low), np.where(short, high * 2, high)
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = binomial_cdf(e, middle, alpha) <= delta
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def allowed_errors(accepted: Any, alpha: float, delta: float) -> Any:
    """Find the largest number of errors at which `accepted` groups still certify a risk of at most `alpha`.

    Args:
        accepted (`int` or `np.ndarray` of int): Number of accepted groups, at least 0.
        alpha (`float`): Risk to certify, in (0, 1).
        delta (`float`): Largest probability of a false certificate, in (0, 1).

    Returns:
        `int` or `np.ndarray` of int64: The number of errors, or -1 if even zero errors are too many.

    Raises:
        [`UsageError`]: If an argument is out of range.

    Example:
        >>> allowed_errors(100, alpha=0.05, delta=0.1)
        1
        >>> allowed_errors([44, 45, 100, 1000], alpha=0.05, delta=0.1).tolist()
        [-1, 0, 1, 40]
    """
    check_share(alpha, "alpha")
    check_share(delta, "delta")
    m = np.asarray(accepted, dtype=np.int64)
    if (m < 0).any():
        raise UsageError(f"accepted must not be negative, found {m.min()}")
    low, high = np.full_like(m, -1), m
    while (high - low > 1).any():
        middle = (low + high) // 2
        # Where the interval has closed at -1, the middle is -1 and stays.
        passes = binomial_cdf(np.maximum(middle, 0), m, alpha) <= delta
        low, high = np.where(passes & (middle >= 0), middle, low), np.where(passes & (middle >= 0), high, middle)
        high = np.maximum(high, low + 1)
    return int(low) if low.ndim == 0 else low


@lru_cache(maxsize=64)
def _sizes_that_pass(errors: int, alpha: float, delta: float) -> npt.NDArray[np.int64]:
    """The sizes for fewer than `errors` errors, a power of two. A table begins with the one of half its length."""
    fewer = _sizes_that_pass(errors // 2, alpha, delta) if errors > SHORTEST else np.empty(0, dtype=np.int64)
    return np.append(fewer, smallest_accepted(np.arange(fewer.size, errors), alpha, delta))


def sizes_that_pass(accepted: int, alpha: float, delta: float) -> npt.NDArray[np.int64] | None:
    """The table of [`smallest_accepted`] for 0, 1, 2 and more errors, kept for later calls.

    Args:
        accepted (`int`): The last entry exceeds it.
        alpha, delta (`float`): In (0, 1).

    Returns:
        `np.ndarray` of int64 or `None`: Rising numbers of groups; `None` if they would be too many to keep.
    """
    errors = SHORTEST
    while (sizes := _sizes_that_pass(errors, alpha, delta))[-1] <= accepted:
        errors *= 2
        if errors > TABLE:
            return None
    return sizes


def most_errors_and_size(accepted: npt.NDArray[np.int64], alpha: float, delta: float) -> tuple[Any, Any]:
    """Compute [`allowed_errors`], and the fewest groups that pass with as many (or with none, if none may be wrong).

    Args:
        accepted (`np.ndarray` of int64): Numbers of accepted groups.
        alpha, delta (`float`): In (0, 1).

    Returns:
        `tuple` of two `np.ndarray` of int64: The errors, -1 if even zero are too many, and the groups.
    """
    sizes = sizes_that_pass(int(accepted.max()), alpha, delta)
    if sizes is not None:
        most = np.searchsorted(sizes, accepted, side="right") - 1
        return most, sizes[np.maximum(most, 0)]
    most = allowed_errors(accepted, alpha, delta)
    return most, smallest_accepted(np.maximum(most, 0), alpha, delta)


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
