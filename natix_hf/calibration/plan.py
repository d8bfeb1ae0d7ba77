"""The number of groups that a guarantee needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from natix_hf.calibration.binomial import (
    MOST_ACCEPTED,
    binomial_cdf,
    check_share,
    needed_without_error,
    smallest_accepted,
)
from natix_hf.errors import UsageError

# A plan for an error rate above 0 must succeed with at least this probability.
SUCCESS = 0.9


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
