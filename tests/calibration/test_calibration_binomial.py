"""The exact binomial test and the counts that pass it, against rational numbers and published constants."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from refusals import refused
from scipy.stats import binom

from natix_hf.calibration.binomial import (
    allowed_errors,
    binomial_cdf,
    needed_at_rate,
    smallest_accepted,
    upper_bound,
)
from natix_hf.errors import UsageError


def exact_cdf(errors: int, accepted: int, rate: float) -> Fraction:
    p = Fraction(rate)
    return sum((math.comb(accepted, k) * p**k * (1 - p) ** (accepted - k) for k in range(errors + 1)), Fraction(0))


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.05, 0.01, 1e-9, 0.99])
def test_tail_against_fractions(rate: float) -> None:
    for accepted in (1, 2, 3, 17, 40):
        errors = np.arange(accepted + 1)
        exact = [float(exact_cdf(int(k), accepted, rate)) for k in errors]
        assert binomial_cdf(errors, np.full(errors.size, accepted), rate) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("accepted", [10_000, 1_000_000, 10_000_000])
def test_tail_of_large_counts(accepted: int) -> None:
    rate = 0.05
    for sigmas in (-6, -2, 0, 2):
        errors = round(accepted * rate + sigmas * math.sqrt(accepted * rate * (1 - rate)))
        # The sum of the probabilities that matter, in logs: another way than the incomplete beta function.
        k = np.arange(max(errors - 40_000, 0), errors + 1)
        summed = math.fsum(np.exp(binom.logpmf(k, accepted, rate)))
        assert float(binomial_cdf(errors, accepted, rate)) == pytest.approx(summed, rel=1e-7)


@pytest.mark.parametrize(
    ("delta", "alpha", "table"),
    [
        (0.1, 0.05, {100: 1, 200: 5, 500: 18, 1000: 40, 2000: 87}),
        (0.1, 0.1, {50: 1, 100: 5, 200: 14, 500: 40}),
        (0.1, 0.01, {500: 1, 1000: 5, 2000: 13}),
        (0.05, 0.05, {100: 1, 200: 4, 500: 16, 1000: 38}),
    ],
)
def test_allowed_errors(delta: float, alpha: float, table: dict[int, int]) -> None:
    assert {m: allowed_errors(m, alpha, delta) for m in table} == table


def test_smallest_accepted_is_exact() -> None:
    for alpha, delta in ((0.05, 0.1), (0.3, 0.02), (0.5, 0.5), (0.02, 0.4), (0.9, 1e-9), (0.1, 0.95)):
        found = smallest_accepted(np.arange(8), alpha, delta)
        for errors, accepted in enumerate(found.tolist()):
            assert exact_cdf(errors, accepted, alpha) <= Fraction(delta) < exact_cdf(errors, accepted - 1, alpha)


def test_upper_bound_is_the_inverse_of_the_tail() -> None:
    for errors, accepted in ((0, 45), (1, 77), (40, 1000), (9, 10)):
        bound = upper_bound(errors, accepted, 0.1)
        assert float(binomial_cdf(errors, accepted, bound)) == pytest.approx(0.1, rel=1e-9)
    assert upper_bound(5, 5, 0.1) == 1


def test_needed_at_the_rate_seen() -> None:
    for errors, accepted in ((0, 45), (1, 45), (3, 200), (2, 45)):
        needed = needed_at_rate(errors, accepted, 0.05, 0.1)
        assert needed is not None
        assert binomial_cdf(math.ceil(Fraction(errors * needed, accepted)), needed, 0.05) <= 0.1
    assert needed_at_rate(0, 9, 0.05, 0.1) == 45
    assert needed_at_rate(1, 20, 0.05, 0.1) is None
    assert needed_at_rate(49_999, 1_000_000, 0.05, 0.1) is None


def test_bad_arguments() -> None:
    for change in ({"alpha": 0}, {"alpha": math.nan}, {"delta": 1}, {"accepted": -1}):
        given = {"accepted": 9, "alpha": 0.05, "delta": 0.1} | change
        refused(UsageError, lambda given=given: allowed_errors(**given), *change, *change.values())
