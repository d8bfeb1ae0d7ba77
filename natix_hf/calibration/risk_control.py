"""Which answers may be accepted so that few of the accepted ones are wrong, with a proof of it.

One acceptance threshold, by fixed-sequence testing (Learn then Test, arXiv 2110.01052) with the exact binomial tail.
The promise: with probability at least `1 - delta` over the draw of the calibration groups, the risk of a row of a new
group, given that it is accepted, is at most `alpha`. It needs independent rows: one of each group.
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

# Tests that are decided together by one bound, where it decides them.
BLOCK = 512


@dataclass(frozen=True)
class RiskControl:
    """An acceptance threshold with what is guaranteed at it, or the reason why there is none.

    Args:
        feasible (`bool`): Whether a threshold could be certified. Where not, nothing is guaranteed.
        threshold (`float`, *optional*): A row is accepted iff `confidence > threshold`; `None` where not feasible.
        coverage (`float`, *optional*): Share of the calibration rows that is accepted there.
        coverage_interval (`tuple[float, float]`, *optional*): Of the coverage on new groups ([`coverage_interval`]).
        coverage_delta (`float`): See there; apart from `delta`.
        accepted, errors (`int`): Accepted rows that count in the denominator, and losses among them, at the threshold.
            Where not feasible, at the place where it failed: the first threshold tested, or, where none had rows
            enough for a test, the loosest.
        risk_bound (`float`, *optional*): Clopper and Pearson's upper bound at level `delta` for these two counts, at
            most `alpha`. A description: the threshold was chosen by a look at the counts, and what is guaranteed is
            `alpha`.
        alpha, delta (`float`): As asked.
        needed (`int`, *optional*): Accepted rows (groups) that would certify at the error rate of the first threshold
            tested (0 where none was); `None` where that rate is `alpha` or so near that no number in reach would do.
        rows, eligible (`int`): Calibration rows, and those that count in the denominator if accepted.
        reason (`str`): In words: the guarantee, or why there is none.
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
    """Calibration rows in rising confidence: `counted[i]` of those below position i count, `wrong[i]` are losses."""

    confidence: Floats
    counted: Ints
    wrong: Ints

    def thresholds(self, cuts: Ints) -> Floats:
        """Between the rows below each cut and those from it on; below all rows for cut 0."""
        lower, upper = self.confidence[np.maximum(cuts - 1, 0)], self.confidence[cuts]
        return np.where(cuts == 0, _below(self.confidence[0]), _between(lower, upper))

    def cuts(self, grid: Floats | None) -> Ints:
        """For each threshold from strict to loose, the position of the first accepted row."""
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
    # Between adjacent floats the middle rounds to either; the lower one still separates, as > is strict.
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
    """Test in the order given until the first failure; the last index that passed, -1 where the first fails.

    Both counts must not fall along the order.
    """
    # Rows without an error only help: a test can fail where an error came in, and nowhere else.
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
    """Interval of the coverage on new groups that holds with probability `1 - delta` at every threshold at once.

    So it also holds at a threshold that was chosen by a look at the rows, where an interval for one proportion would
    not (Dvoretzky, Kiefer and Wolfowitz, with Massart's constant, 1990, doi:10.1214/aop/1176990746).

    Args:
        coverage (`float`): Share of the rows that is accepted.
        rows (`int`): Number of independent rows.
        delta (`float`): Within (0, 1).

    Returns:
        `tuple[float, float]`: low and high, within [0, 1].
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
    """`rows` accepted of all; `counts` accepted and errors of those that count; `first` the same where testing began,
    `None` where it did not; `levels` alpha, delta, coverage_delta."""
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
    # The counts of accepted rows rise, so the first with enough of them is found by bisection.
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

    Thresholds are tested from strict to loose. The first is the strictest that accepts rows enough to certify with no
    error at all; a threshold passes where so few errors would come with probability `delta` at most, were the risk
    `alpha`; the first failure ends it, and the last that passed is the answer. In a fixed order many thresholds cost
    no more than one. Where the first fails there is no threshold, and the answer says so.

    Rows must be independent draws of what will be met: **one row of each group** ([`one_row_per_group`]). Rows of one
    video in place of groups break the promise.

    With a `grid` fixed before these rows were looked at ([`make_grid`] on other rows) the tests form a fixed sequence.
    Only where it starts depends on these rows, by how many are accepted and never by their losses: where the risk does
    not fall as the threshold loosens the promise is proven with that too, elsewhere simulation has to show that it
    does not matter (benchmarks/risk_validity.py). With `grid=None` the midpoints between the distinct confidences of
    these very rows serve, and one below them all: proven only where the risk does not fall as the threshold loosens.

    Args:
        confidence (`array-like` of shape `(n,)`): Any finite numbers. Equal ones are accepted together or not at all.
        losses (`array-like` of shape `(n,)`): 0 or 1 ([`losses_for`]).
        alpha (`float`): Most risk among the accepted rows, within (0, 1).
        delta (`float`): Probability of a false promise, at most; within (0, 1).
        eligible (`array-like` of shape `(n,)`, *optional*): Whether a row counts in the risk's denominator; `None` for
            all. The others count in the coverage alone.
        grid (`array-like` of shape `(k,)`, *optional*): Thresholds in any order, fixed beforehand.
        min_coverage (`float`, *optional*): A filter: where the lower end of `coverage_interval` is below it, the
            answer is not feasible. The bound has its own `coverage_delta`, which does not come out of `delta`.
        coverage_delta (`float`, defaults to 0.05): Probability that `coverage_interval` is wrong, at most.

    Returns:
        [`RiskControl`]. Time O(n log n), one sort; memory O(n).

    Raises:
        [`DataError`]: where an array is not what it must be. [`UsageError`]: for an argument that cannot be.

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
    """Thresholds for [`fit_risk_control`], from rows other than those that it will see.

    The midpoints between distinct confidences and one below them all; above `most`, that many of them, evenly spaced
    by rank, with the first and the last.

    Args:
        confidence (`array-like` of shape `(n,)`): Finite numbers, on the scale of the calibration's.
        most (`int`, defaults to 1000): Most thresholds, at least 2.

    Returns:
        `np.ndarray` of float64, rising, of at most `most` values.

    Raises:
        [`DataError`]: where the array is not what it must be. [`UsageError`]: where `most` is below 2.

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
