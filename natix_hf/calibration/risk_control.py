"""Risk control: find an acceptance threshold with a guaranteed bound on the risk of the accepted answers.

The method is fixed-sequence testing (Learn then Test, arXiv:2110.01052) with the exact binomial tail. The guarantee:
with probability at least `1 - delta` over the draw of the calibration groups, the risk of an accepted row of a new
group is at most `alpha`. It requires independent rows, that is, one row per group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from natix_hf.calibration.plan import binomial_cdf, check_share, needed_at_rate, needed_without_error, upper_bound
from natix_hf.errors import UsageError
from natix_hf.metrics.arrays import Floats, as_floats, as_labels, check_lengths

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Number of tests that one bound tries to decide together.
BLOCK = 512


@dataclass(frozen=True)
class RiskControl:
    """An acceptance threshold with its guarantee, or the reason why there is none. Returned by [`fit_risk_control`].

    Args:
        feasible (`bool`): True if a threshold was certified. If False, nothing is guaranteed.
        threshold (`float`, *optional*): A row is accepted if `confidence > threshold`. `None` if not feasible.
        coverage (`float`, *optional*): Share of the calibration rows that are accepted at the threshold.
        coverage_interval (`tuple[float, float]`, *optional*): Interval of the coverage on new groups
            ([`coverage_interval`]).
        coverage_delta (`float`): Largest probability that `coverage_interval` is wrong. It is separate from `delta`.
        accepted, errors (`int`): Accepted rows in the denominator of the risk at the threshold, and the losses among
            them. If not feasible, the counts at the first threshold tested, or at the loosest threshold if none had
            enough rows for a test.
        risk_bound (`float`, *optional*): Clopper-Pearson upper bound at level `delta` for these two counts, at most
            `alpha`. It only describes the counts: they also chose the threshold. The guaranteed bound is `alpha`.
        alpha, delta (`float`): The requested values.
        needed (`int`, *optional*): Accepted rows (groups) that would certify at the error rate of the first threshold
            tested; the rate is 0 if none was tested. `None` if that rate is `alpha` or more, or too close to it.
        rows (`int`): Number of calibration rows.
        eligible (`int`): Number of rows that count in the denominator of the risk if accepted.
        reason (`str`): The guarantee in words, or why there is none.
    """

    feasible: bool
    threshold: float | None
    coverage: float | None
    coverage_interval: tuple[float, float] | None
    coverage_delta: float
    accepted: int
    errors: int
    risk_bound: float | None
    alpha: float
    delta: float
    needed: int | None
    rows: int
    eligible: int
    reason: str


class _Rows(NamedTuple):
    """Calibration rows by rising confidence. Below position i, `counted[i]` rows count and `wrong[i]` are losses."""

    confidence: Floats
    counted: Ints
    wrong: Ints

    def thresholds(self, cuts: Ints) -> Floats:
        """Thresholds between the rows below each cut and the rows from it on. Cut 0 lies below all rows."""
        lower, upper = self.confidence[np.maximum(cuts - 1, 0)], self.confidence[cuts]
        return np.where(cuts == 0, _below(self.confidence[0]), _between(lower, upper))

    def cuts(self, grid: Floats | None) -> Ints:
        """Position of the first accepted row for each threshold, from strict to loose."""
        if grid is not None:
            return np.searchsorted(self.confidence, grid, side="right")
        changes = np.flatnonzero(self.confidence[1:] != self.confidence[:-1])[::-1]
        return np.append(changes + 1, np.zeros(min(self.confidence.size, 1), dtype=np.int64))

    def accepted(self, cuts: Ints) -> Ints:
        accepted: Ints = self.counted[-1] - self.counted[cuts]
        return accepted

    def errors(self, cuts: Ints) -> Ints:
        errors: Ints = self.wrong[-1] - self.wrong[cuts]
        return errors


def _between(lower: Floats, upper: Floats) -> Floats:
    middle = lower / 2 + upper / 2
    # Between adjacent floats the midpoint rounds to one of them. The lower one still separates because > is strict.
    return np.where(middle < upper, middle, lower)


def _below(lowest: float) -> float:
    return max(float(lowest) - max(1.0, abs(float(lowest))), -np.finfo(np.float64).max)


def _prefix_sums(values: npt.NDArray[Any]) -> Ints:
    sums = np.zeros(values.size + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def _sorted_rows(confidence: Floats, losses: npt.NDArray[np.int8], eligible: Bools | None) -> _Rows:
    order = np.argsort(confidence)
    wrong = losses[order]
    if eligible is None:
        return _Rows(confidence[order], np.arange(wrong.size + 1), _prefix_sums(wrong))
    counted = eligible[order]
    return _Rows(confidence[order], _prefix_sums(counted), _prefix_sums(wrong & counted))


def _last_certified(accepted: Ints, errors: Ints, alpha: float, delta: float) -> int:
    """Index of the last test that passed before the first failure, or -1 if the first test fails.

    Neither count may decrease along the order.
    """
    # More rows without an error only help, so a test can fail only where the number of errors rises.
    rises = np.append(0, np.flatnonzero(errors[1:] != errors[:-1]) + 1)
    for begin in range(0, rises.size, BLOCK):
        block = rises[begin : begin + BLOCK]
        if binomial_cdf(errors[block[-1]], accepted[block[0]], alpha) <= delta:
            continue
        failed = binomial_cdf(errors[block], accepted[block], alpha) > delta
        if failed.any():
            return int(block[np.argmax(failed)]) - 1
    return accepted.size - 1


def coverage_interval(coverage: float, rows: int, delta: float) -> tuple[float, float]:
    """Compute an interval of the coverage on new groups that holds at every threshold at once.

    It therefore also holds at a threshold that was chosen on the same rows; an interval for one proportion would not.
    Source: the Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant (1990, doi:10.1214/aop/1176990746).

    Args:
        coverage (`float`): Share of the rows that are accepted.
        rows (`int`): Number of independent rows.
        delta (`float`): Largest probability that the interval is wrong, in (0, 1).

    Returns:
        `tuple[float, float]`: Lower and upper end, in [0, 1].
    """
    slack = math.sqrt(math.log(2 / delta) / (2 * rows))
    return max(coverage - slack, 0.0), min(coverage + slack, 1.0)


def _check(alpha: float, delta: float, min_coverage: float | None, coverage_delta: float) -> None:
    check_share(alpha, "alpha")
    check_share(delta, "delta")
    check_share(coverage_delta, "coverage_delta")
    if min_coverage is not None and not 0 <= min_coverage <= 1:
        raise UsageError(f"min_coverage must be between 0 and 1, found {min_coverage}")


def _strict_to_loose(grid: Any) -> Floats:
    return np.unique(as_floats(grid, "grid"))[::-1]


def _answer(
    threshold: float | None,
    rows: tuple[int, int],
    counts: tuple[int, int],
    first: tuple[int, int] | None,
    eligible: int,
    levels: tuple[float, float, float],
    min_coverage: float | None,
) -> RiskControl:
    """Build the result.

    `rows` holds the accepted rows and all rows. `counts` holds the accepted rows and errors in the denominator.
    `first` holds the same two counts at the first test, or is `None` if there was no test. `levels` holds alpha,
    delta and coverage_delta.
    """
    (accepted, errors), (alpha, delta, coverage_delta) = counts, levels
    needed = needed_without_error(alpha, delta) if first is None else needed_at_rate(first[1], first[0], alpha, delta)
    coverage, interval, bound = None, None, None
    if threshold is not None:
        coverage, bound = rows[0] / rows[1], upper_bound(errors, accepted, delta)
        interval = coverage_interval(coverage, rows[1], coverage_delta)
    if threshold is not None and interval is not None and min_coverage is not None and interval[0] < min_coverage:
        reason = (
            f"a risk of at most {alpha:g} is certified at a coverage of {coverage:.3f}, but with probability "
            f"{1 - coverage_delta:g} that is only known to be above {interval[0]:.3f}, and min_coverage is "
            f"{min_coverage:g}"
        )
        threshold = coverage = interval = bound = None
    elif threshold is not None:
        reason = (
            f"with probability at least {1 - delta:g} over the draw of the calibration groups, the risk of a row of a "
            f"new group, given that it is accepted, is at most {alpha:g}"
        )
    elif first is None:
        reason = (
            f"{accepted} rows that count are accepted at the loosest threshold: {needed} without an error are needed "
            f"to certify a risk of {alpha:g}"
        )
    else:
        more = "no number of rows would do" if needed is None else f"{needed} accepted rows would do"
        reason = f"{errors} errors among the {accepted} most confident rows are too many; at this error rate {more}"
    return RiskControl(
        feasible=threshold is not None,
        threshold=threshold,
        coverage=coverage,
        coverage_interval=interval,
        coverage_delta=coverage_delta,
        accepted=accepted,
        errors=errors,
        risk_bound=bound,
        alpha=alpha,
        delta=delta,
        needed=needed,
        rows=rows[1],
        eligible=eligible,
        reason=reason,
    )


def _fit(
    rows: _Rows, grid: Floats | None, levels: tuple[float, float, float], min_coverage: float | None
) -> RiskControl:
    alpha, delta, _ = levels
    cuts = rows.cuts(grid)
    accepted, errors = rows.accepted(cuts), rows.errors(cuts)
    n, eligible = rows.confidence.size, int(rows.counted[-1])
    # The counts of accepted rows never decrease, so bisection finds the first threshold with enough rows.
    start = int(np.searchsorted(accepted, needed_without_error(alpha, delta)))
    if start == cuts.size:
        counts = (int(accepted[-1]), int(errors[-1])) if cuts.size else (0, 0)
        return _answer(None, (0, n), counts, None, eligible, levels, min_coverage)
    last = start + _last_certified(accepted[start:], errors[start:], alpha, delta)
    threshold, at = None, start
    if last >= start:
        at = last
        threshold = float(rows.thresholds(cuts[at : at + 1])[0] if grid is None else grid[at])
    first = int(accepted[start]), int(errors[start])
    counts = int(accepted[at]), int(errors[at])
    return _answer(threshold, (int(n - cuts[at]), n), counts, first, eligible, levels, min_coverage)


def fit_risk_control(
    confidence: Any,
    losses: Any,
    alpha: float,
    delta: float,
    eligible: Any | None = None,
    grid: Any | None = None,
    min_coverage: float | None = None,
    coverage_delta: float = 0.05,
) -> RiskControl:
    """Find the loosest acceptance threshold whose risk is certified to be at most `alpha`.

    Thresholds are tested from strict to loose. The first one tested is the strictest that accepts enough rows to
    pass with zero errors. A threshold passes if the chance of seeing this few errors at a risk of `alpha` is at most
    `delta`. Testing stops at the first failure, and the last threshold that passed is the result. Because the order
    is fixed, many tests cost no more of `delta` than one. If the first test fails, no threshold is certified, and
    `reason` says why.

    Rows must be independent draws of the data in use: **one row per group** ([`one_row_per_group`]). Several frames of
    the same video break the guarantee.

    A `grid` fixed in advance ([`make_grid`] on other rows) makes the tests a fixed sequence. Only its start depends on
    these rows: on how many are accepted, never on their losses. If the risk never decreases as the threshold loosens,
    the guarantee is proven despite this dependence. Otherwise simulation supports it (benchmarks/risk_validity.py).
    With `grid=None` the thresholds are the midpoints between the distinct confidences of these rows, and one below
    them all. The guarantee is then proven only if the risk never decreases as the threshold loosens.

    Args:
        confidence (`array-like` of shape `(n,)`): Finite numbers. Rows with equal confidence are accepted together.
        losses (`array-like` of shape `(n,)`): 0 or 1 ([`losses_for`]).
        alpha (`float`): Largest risk allowed among the accepted rows, in (0, 1).
        delta (`float`): Largest probability that the guarantee is false, in (0, 1).
        eligible (`array-like` of shape `(n,)`, *optional*): 1 for the rows that count in the denominator of the risk,
            0 for rows that count only in the coverage. `None`: all rows count.
        grid (`array-like` of shape `(k,)`, *optional*): Thresholds in any order, fixed in advance.
        min_coverage (`float`, *optional*): If the lower end of `coverage_interval` is below it, the result is not
            feasible. This check uses `coverage_delta` and nothing of `delta`.
        coverage_delta (`float`, defaults to 0.05): Largest probability that `coverage_interval` is wrong.

    Returns:
        [`RiskControl`]: The threshold and its counts. Takes O(n log n) time, for one sort, and O(n) memory.

    Raises:
        [`DataError`]: If an array is invalid or the arrays differ in length.
        [`UsageError`]: If an argument is out of range.

    Example:
        >>> import numpy as np
        >>> confidence = np.arange(100)
        >>> found = fit_risk_control(confidence, losses=confidence < 20, alpha=0.05, delta=0.1)
        >>> found.feasible, found.threshold, found.accepted, found.errors
        (True, 18.5, 81, 1)
        >>> fit_risk_control([1, 2, 3], [0, 0, 0], alpha=0.05, delta=0.1).needed
        45
    """
    _check(alpha, delta, min_coverage, coverage_delta)
    c, wrong = as_floats(confidence, "confidence"), as_labels(losses, "losses")
    counted = None if eligible is None else as_labels(eligible, "eligible").astype(np.bool_)
    check_lengths(confidence=c, losses=wrong, eligible=counted)
    fixed = None if grid is None else _strict_to_loose(grid)
    return _fit(_sorted_rows(c, wrong, counted), fixed, (alpha, delta, coverage_delta), min_coverage)


def make_grid(confidence: Any, most: int = 1000) -> Floats:
    """Make thresholds for [`fit_risk_control`] from rows that it will not see.

    The thresholds are the midpoints between distinct confidences, and one below them all. If there are more than
    `most`, the grid keeps `most` of them, evenly spaced by rank, including the first and the last.

    Args:
        confidence (`array-like` of shape `(n,)`): Finite numbers, on the same scale as the calibration rows.
        most (`int`, defaults to 1000): Largest number of thresholds, at least 2.

    Returns:
        `np.ndarray` of float64: At most `most` rising values.

    Raises:
        [`DataError`]: If the array is invalid.
        [`UsageError`]: If `most` is below 2.

    Example:
        >>> make_grid([2.0, 2.0, 3.0, 5.0]).tolist()
        [0.0, 2.5, 4.0]
    """
    if most < 2:
        raise UsageError(f"most must be at least 2, found {most}")
    distinct = np.unique(as_floats(confidence, "confidence"))
    grid = np.append(_below(distinct[0]), _between(distinct[:-1], distinct[1:]))
    if grid.size > most:
        grid = grid[np.linspace(0, grid.size - 1, most).round().astype(np.int64)]
    return grid
