"""Fixed-sequence testing: where a walk over acceptance thresholds begins, and how far it gets.

Thresholds are ordered from strict to loose, and each is one hypothesis: "the risk is above alpha". They are tested in
this order until the first test fails. Because the order is fixed, many tests cost no more of delta than one (Learn
then Test, arXiv:2110.01052). A walk from the strict end dies at once if a few of the most confident rows are wrong,
however many rows there are. So it begins where the first test is likely to pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from natix_hf.calibration.binomial import (
    binomial_cdf,
    most_errors_and_size,
    needed_without_error,
    sizes_that_pass,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Number of tests that one bound tries to decide together.
BLOCK = 512

# Without other rows, at most this many walks share delta, and each has this many times the rows that it needs.
STARTS, ROOM = 4, 3

# With other rows, a threshold is judged by the rows that it is expected to accept and so many standard errors, each
# with its weight. Of the weights that were tried on Gaussians, steps and ties, these certified most.
WEIGHTS = {-1.0: 1.0, 0.0: 0.03, 1.0: 0.03}


class Counts(NamedTuple):
    """Accepted rows of one denominator and the losses among them, at thresholds from strict to loose; and all rows.

    Neither count may decrease along the thresholds.
    """

    accepted: npt.NDArray[Any]
    errors: npt.NDArray[Any]
    total: float


class Begin(NamedTuple):
    """Where a walk begins: at a threshold or later, where so many rows of each denominator are accepted. The losses of
    the calibration rows have no part in it."""

    at: int
    sizes: list[int]


class Walk(NamedTuple):
    """A walk over the thresholds: the index of the first test, of the last one that passed (`first - 1` if the first
    test failed), and the delta of its tests. `first` is the number of thresholds if none has enough rows."""

    first: int
    last: int
    delta: float

    @property
    def passed(self) -> bool:
        return self.last >= self.first


def loosest(walked: Sequence[Walk]) -> Walk:
    """The walk that got to the loosest threshold, or one that failed if all did."""
    return max(walked, key=lambda walk: walk.last if walk.passed else -1)


def walks(
    tests: Sequence[Counts], alpha: float, delta: float, select: Sequence[Counts] | None = None
) -> tuple[Walk, ...]:
    """Test the thresholds. The result is one walk at `delta`, or several that share it.

    A threshold passes if it passes in each denominator. This keeps delta: a threshold that should fail has a
    denominator in which it should fail (the intersection-union test, Berger 1982, doi:10.1080/00401706.1982.10487790).

    Args:
        tests: The counts of the calibration rows, one for each denominator.
        alpha, delta: In (0, 1).
        select: The counts of other rows, at the same thresholds and for the same denominators. They say where the one
            walk begins, if they are as many as one test needs. `None`: a walk begins at the strictest threshold with
            enough rows, and up to three more where a quarter, half and three quarters of the rows are accepted. With
            few rows there are fewer walks.
    """
    if select is not None and min(seen.total for seen in select) >= needed_without_error(alpha, delta):
        return (walk_from(tests, choose_begin([test.total for test in tests], alpha, delta, select), alpha, delta),)
    rows = int(min(test.total for test in tests))
    starts = min(max(rows // (ROOM * needed_without_error(alpha, delta)), 1), STARTS)
    share = delta / starts
    found = []
    for start in range(starts):
        expected = (int(test.total) * start // starts for test in tests)
        sizes = [int(most_errors_and_size(np.array([m]), alpha, share)[1][0]) for m in expected]
        found.append(walk_from(tests, Begin(0, sizes), alpha, share))
    return tuple(found)


def choose_begin(totals: Sequence[float], alpha: float, delta: float, select: Sequence[Counts]) -> Begin:
    """Choose where the first test is most likely to pass, as other rows tell.

    They choose a threshold, and from it a number of accepted rows at which the walk begins. By chance a threshold
    accepts a few rows more or fewer than expected, and with fewer than it needs it cannot pass. So a threshold is
    judged by one standard error fewer rows than expected, and only a little by as many or more.
    """
    risks, chance = [_likely_risk(seen) for seen in select], np.zeros(len(select[0].accepted))
    for errors, weight in WEIGHTS.items():
        passes = np.full(chance.size, weight)
        for total, seen, risk in zip(totals, select, risks, strict=True):
            most, size = most_errors_and_size(_expected(total, seen, errors), alpha, delta)
            passes *= _chance(most, size, risk)
        chance += passes
    chosen = int(np.argmax(chance))
    sizes, whole = [], False
    for total, seen in zip(totals, select, strict=True):
        fewer, expected = _expected(total, seen, -1.0), _expected(total, seen, 0.0)
        sizes.append(int(most_errors_and_size(fewer[chosen : chosen + 1], alpha, delta)[1][0]))
        jump = expected[min(chosen + 1, expected.size - 1)] - expected[chosen]
        whole = whole or bool(jump > expected[chosen] - fewer[chosen])
    # Many rows share the next confidence. Waiting for a few rows more would let all of them in, so the walk begins at
    # this very threshold, or at the first one that could pass at all.
    return Begin(chosen, [needed_without_error(alpha, delta)] * len(sizes)) if whole else Begin(0, sizes)


def _expected(total: float, seen: Counts, errors: float) -> Ints:
    """Rows of `total` that each threshold is expected to accept, plus so many standard errors."""
    expected = seen.accepted * (total / seen.total)
    refused = np.maximum(1 - expected / max(total, 1), 0)
    spread = np.sqrt(expected * refused * (1 + total / seen.total))
    rows: Ints = np.clip(np.round(expected + errors * spread), 0, total).astype(np.int64)
    return rows


def _chance(most: Ints, size: Ints, risk: Floats) -> Floats:
    """How likely each test is to pass at its risk: 0 if not even zero errors pass."""
    # Many thresholds ask for the same size. Each size is tried once, at the smallest of their risks.
    begins = np.flatnonzero(np.diff(most, prepend=-2))
    errors, smallest = most[begins], np.minimum.reduceat(risk, begins)
    chance = np.where(errors >= 0, binomial_cdf(np.maximum(errors, 0), size[begins], smallest), 0.0)
    return np.repeat(chance, np.diff(begins, append=most.size))


def _likely_risk(seen: Counts) -> Floats:
    """Estimate the risk at each threshold: (errors + 0.5) / (accepted + 1), with errors that never become rarer.

    Among the rows between two thresholds the share of errors is pooled with its neighbours until it never decreases
    (isotonic regression). A lucky stretch between two thresholds then does not attract the walk.
    """
    from scipy.optimize import isotonic_regression

    rows = np.diff(seen.accepted, prepend=0)
    errors = np.diff(seen.errors, prepend=0)
    held = rows > 0
    pooled = np.zeros(rows.size)
    if held.any():
        pooled[held] = isotonic_regression(errors[held] / rows[held], weights=rows[held]).x * rows[held]
    likely: Floats = (np.cumsum(pooled) + 0.5) / (seen.accepted + 1)
    return np.minimum(likely, 1 - 1e-12)


def walk_from(tests: Sequence[Counts], begin: Begin, alpha: float, delta: float) -> Walk:
    """Test from there on, until a test fails."""
    # The counts of accepted rows never decrease, so bisection finds the first threshold with enough rows.
    enough = [int(np.searchsorted(test.accepted, size)) for test, size in zip(tests, begin.sizes, strict=True)]
    first, thresholds = max(begin.at, *enough), len(tests[0].accepted)
    least = needed_without_error(alpha, delta)
    if first == thresholds and thresholds and all(test.accepted[-1] >= least for test in tests):
        first = thresholds - 1  # fewer rows than other rows let expect: the loosest threshold is all that is left
    if first == thresholds:
        return Walk(first, first - 1, delta)
    passed = min(_passed(test.accepted[first:], test.errors[first:], alpha, delta) for test in tests)
    return Walk(first, first + passed - 1, delta)


def _passed(accepted: Ints, errors: Ints, alpha: float, delta: float) -> int:
    """Number of tests that passed before the first failure."""
    sizes = sizes_that_pass(int(accepted[-1]), alpha, delta)
    if sizes is not None:
        failed = accepted < sizes[np.minimum(errors, sizes.size - 1)]
        return int(np.argmax(failed)) if failed.any() else accepted.size
    # More rows without an error only help, so a test can fail only where the number of errors rises.
    rises = np.append(0, np.flatnonzero(errors[1:] != errors[:-1]) + 1)
    for begin in range(0, rises.size, BLOCK):
        block = rises[begin : begin + BLOCK]
        if binomial_cdf(errors[block[-1]], accepted[block[0]], alpha) <= delta:
            continue
        failed = binomial_cdf(errors[block], accepted[block], alpha) > delta
        if failed.any():
            return int(block[np.argmax(failed)])
    return accepted.size
