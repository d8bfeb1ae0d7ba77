"""Risk control: find an acceptance threshold with a guaranteed bound on the risk of the accepted answers.

The method is fixed-sequence testing (Learn then Test, arXiv:2110.01052) with the exact binomial tail. The guarantee:
with probability at least `1 - delta` over the draw of the calibration groups, the risk of an accepted row of a new
group is at most `alpha`. It requires independent rows, that is, one row per group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from natix_hf.calibration.binomial import (
    binomial_cdf,
    check_share,
    needed_at_rate,
    needed_without_error,
    upper_bound,
)
from natix_hf.calibration.fixed_sequence import Counts, Walk, loosest, walks
from natix_hf.calibration.grid import SortedRows, grid_of_sorted, sort_rows
from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import as_floats, as_labels, as_weights, check_lengths

Bools = npt.NDArray[np.bool_]


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
            enough rows for a test. With several denominators, those of the one with the largest `risk_bound`; with
            several walks, those of the one that came nearest.
        risk_bound (`float`, *optional*): Clopper-Pearson upper bound for these two counts, at the level of the walk
            (`delta`, or its part), at most `alpha`. It only describes the counts: they also chose the threshold. The
            guaranteed bound is `alpha`.
        alpha, delta (`float`): The requested values.
        needed (`int`, *optional*): Accepted rows (groups) that would certify at the error rate of the first threshold
            tested; the rate is 0 if none was tested. `None` if that rate is `alpha` or more, or too close to it.
        rows (`int`): Number of calibration rows.
        eligible (`int`): Number of rows that count in the denominator of the risk if accepted; the smallest, if there
            are several denominators.
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


def fit_risk_control(
    confidence: Any,
    losses: Any,
    alpha: float,
    delta: float,
    eligible: Any | None = None,
    grid: Any | None = None,
    min_coverage: float | None = None,
    coverage_delta: float = 0.05,
    select: Sequence[Any] | None = None,
) -> RiskControl:
    """Find the loosest acceptance threshold whose risk is certified to be at most `alpha`.

    Thresholds are tested from strict to loose. A threshold passes if the chance of seeing this few errors at a risk of
    `alpha` is at most `delta`. Testing stops at the first failure, and the last threshold that passed is the result.
    Because the order is fixed, many tests cost no more of `delta` than one.

    **Where the walk begins decides how often there is a result.** From the strictest threshold that could pass without
    an error, a few wrong rows among the most confident ones end it at once, and more rows do not help. With `select`,
    rows that this function will not certify on, the walk begins at the number of accepted rows at which the first test
    is most likely to pass, and keeps the whole of `delta`. Without them up to four walks share it: from the strict end
    and from a quarter, half and three quarters of the rows (fewer walks if the rows are few). The loosest result
    counts. If no first test passes, no threshold is certified, and `reason` says why.

    Rows must be independent draws of the data in use: **one row per group** ([`one_row_per_group`]). Several frames of
    the same video break the guarantee.

    The grid and `select` must be fixed before these rows are seen. A walk begins at the strictest threshold that
    accepts enough of these rows, whatever their losses; or at a threshold that `select` names, where many rows share
    the next confidence. If the risk never decreases as the threshold loosens, the
    guarantee is proven despite this dependence. Otherwise simulation supports it (benchmarks/risk_validity.py).
    With neither `grid` nor `select` the thresholds are the midpoints between the distinct confidences of these rows,
    and one below them all; the same holds for them.

    Args:
        confidence (`array-like` of shape `(n,)`): Finite numbers. Rows with equal confidence are accepted together.
        losses (`array-like` of shape `(n,)`): 0 or 1 ([`losses_for`]).
        alpha (`float`): Largest risk allowed among the accepted rows, in (0, 1).
        delta (`float`): Largest probability that the guarantee is false, in (0, 1).
        eligible (`array-like` of shape `(n,)` or `(k, n)`, *optional*): 1 for the rows that count in the denominator
            of the risk, 0 for rows that count only in the coverage. `None`: all rows count. With k rows there are k
            denominators, and the risk in each of them is certified, all together with probability `1 - delta`.
        grid (`array-like` of shape `(m,)`, *optional*): Thresholds in any order, fixed in advance. `None`:
            [`make_grid`] of the confidences of `select`, if given.
        min_coverage (`float`, *optional*): If the lower end of `coverage_interval` is below it, the result is not
            feasible. This check uses `coverage_delta` and nothing of `delta`.
        coverage_delta (`float`, defaults to 0.05): Largest probability that `coverage_interval` is wrong.
        select (`tuple` of two or three `array-like`, *optional*): Confidences and losses of other rows, and their
            weights of shape `(m,)` or `(k, m)`: 0 for rows that do not count in the denominator, and for instance
            [`prior_weights`]. Several rows of a group are welcome here. Fewer rows than one test needs (45 at an alpha
            of 0.05 and a delta of 0.1) do not say where to begin; they only give the grid.

    Returns:
        [`RiskControl`]: The threshold and its counts. Takes O(n log n) time, for one sort of each set of rows, and
            O(n) memory.

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
    for name, value in (("alpha", alpha), ("delta", delta), ("coverage_delta", coverage_delta)):
        check_share(value, name)
    if min_coverage is not None and not 0 <= min_coverage <= 1:
        raise UsageError(f"min_coverage must be between 0 and 1, found {min_coverage}")
    c, wrong = as_floats(confidence, "confidence"), as_labels(losses, "losses")
    check_lengths(confidence=c, losses=wrong)
    counted = (
        None if eligible is None else [as_labels(k, "eligible").astype(np.bool_) for k in _each(eligible, "eligible")]
    )
    for mask in counted or ():
        check_lengths(confidence=c, eligible=mask)
    rows, fixed, seen = sort_rows(c, wrong, counted), None, None
    if grid is not None:
        fixed = np.unique(as_floats(grid, "grid"))[::-1]
    if select is not None:
        others = select_rows(select, len(rows.counted))
        fixed = grid_of_sorted(others.confidence)[::-1] if fixed is None else fixed
        seen = others.counts(others.cuts(fixed))
    cuts = rows.own_cuts() if fixed is None else rows.cuts(fixed)
    tests = rows.counts(cuts)
    walked = walks(tests, alpha, delta, seen)
    best = loosest(walked)
    levels = alpha, delta, coverage_delta
    if not best.passed:
        return infeasible(tests, walked, levels, c.size, rows.counts(rows.some_cuts()))
    threshold = rows.threshold(int(cuts[best.last])) if fixed is None else float(fixed[best.last])
    return certified(threshold, c.size - int(cuts[best.last]), tests, best, levels, c.size, min_coverage)


def _each(values: Any, name: str) -> list[Any]:
    """One array for each denominator."""
    if not hasattr(values, "__len__"):
        raise DataError(f"{name} must be an array, or one array for each denominator, found {values!r:.80}")
    dimensions = values.ndim if hasattr(values, "ndim") else 1 + (np.ndim(values[0]) if len(values) else 0)
    if not len(values):
        raise DataError(f"{name} is empty")
    return [values] if dimensions < 2 else [values[k] for k in range(len(values))]


def select_rows(select: Sequence[Any], denominators: int) -> SortedRows:
    """Check and sort the rows of `select`, with weights for each denominator."""
    if not isinstance(select, list | tuple) or len(select) not in (2, 3):
        raise UsageError(f"select must be confidences, losses and perhaps weights, found {select!r:.80}")
    c, wrong = as_floats(select[0], "select_confidence"), as_labels(select[1], "select_losses")
    check_lengths(select_confidence=c, select_losses=wrong)
    given = [None] * denominators if len(select) == 2 or select[2] is None else _each(select[2], "select_weights")
    if len(given) != denominators:
        raise UsageError(f"select has {len(given)} rows of weights for {denominators} denominators of the risk")
    weights = []
    for each in given:
        weight = as_weights(each, "select_weights")
        weight = np.ones(c.size) if weight is None else weight / weight.max()
        check_lengths(select_confidence=c, select_weights=weight)
        # The weights add up to the number of equally weighted rows that would say as much (Kish).
        weights.append(weight * (weight.sum() / (weight @ weight)))
    return sort_rows(c, wrong, weights)


def _worst(tests: Sequence[Counts], at: int, delta: float) -> tuple[float, int, int]:
    """Of the denominators, the largest bound, and the accepted rows and errors behind it."""
    found = [(int(test.accepted[at]), int(test.errors[at])) for test in tests]
    return max(
        (upper_bound(errors, accepted, delta) if accepted else 1.0, accepted, errors) for accepted, errors in found
    )


def certified(
    threshold: float,
    accepted_rows: int,
    tests: Sequence[Counts],
    walk: Walk,
    levels: tuple[float, float, float],
    rows: int,
    min_coverage: float | None,
) -> RiskControl:
    """Build the result of a walk that got somewhere. `levels` holds alpha, delta and coverage_delta."""
    alpha, delta, coverage_delta = levels
    coverage = accepted_rows / rows
    interval = coverage_interval(coverage, rows, coverage_delta)
    bound, accepted, errors = _worst(tests, walk.last, walk.delta)
    _, first_accepted, first_errors = _worst(tests, walk.first, walk.delta)
    needed = needed_at_rate(first_errors, first_accepted, alpha, walk.delta)
    eligible = int(min(test.total for test in tests))
    if min_coverage is not None and interval[0] < min_coverage:
        reason = (
            f"a risk of at most {alpha:g} is certified at a coverage of {coverage:.3f}, but with probability "
            f"{1 - coverage_delta:g} that is only known to be above {interval[0]:.3f}, and min_coverage is "
            f"{min_coverage:g}"
        )
        return RiskControl(
            False, None, None, None, coverage_delta, accepted, errors, None, alpha, delta, needed, rows, eligible,
            reason,
        )  # fmt: skip
    reason = (
        f"with probability at least {1 - delta:g} over the draw of the calibration groups, the risk of a row of a "
        f"new group, given that it is accepted, is at most {alpha:g}"
    )
    return RiskControl(
        True, threshold, coverage, interval, coverage_delta, accepted, errors, bound, alpha, delta, needed, rows,
        eligible, reason,
    )  # fmt: skip


def infeasible(
    tests: Sequence[Counts],
    walked: Sequence[Walk],
    levels: tuple[float, float, float],
    rows: int,
    everywhere: Sequence[Counts],
) -> RiskControl:
    """Build the result where no first test passed. `levels` holds alpha, delta and coverage_delta, and `everywhere`
    the counts at thresholds of the rows themselves."""
    alpha, delta, coverage_delta = levels
    tested = [walk for walk in walked if walk.first < len(tests[0].accepted)]
    if not tested:
        needed: int | None = needed_without_error(alpha, walked[0].delta)
        accepted, errors = min((int(test.accepted[-1]), int(test.errors[-1])) for test in tests)
        reason = (
            f"{accepted} rows that count are accepted at the loosest threshold: {needed} without an error are needed "
            f"to certify a risk of {alpha:g}"
        )
    else:
        nearest = min(tested, key=lambda walk: _worst(tests, walk.first, walk.delta)[0])
        _, accepted, errors = _worst(tests, nearest.first, nearest.delta)
        needed = needed_at_rate(errors, accepted, alpha, nearest.delta)
        more = f"at this error rate {needed} accepted rows would do"
        if needed is None:
            more = "this rate is not below the risk that is asked for"
            if _hopeless(everywhere, alpha, delta):
                more = "and at every threshold the risk is too large: no number of rows would do"
        reason = f"{errors} errors among the {accepted} most confident rows are too many; {more}"
    eligible = int(min(test.total for test in tests))
    return RiskControl(
        False, None, None, None, coverage_delta, accepted, errors, None, alpha, delta, needed, rows, eligible, reason
    )


def _hopeless(tests: Sequence[Counts], alpha: float, delta: float) -> bool:
    """True if at every threshold the risk of a denominator is above alpha, by a one-sided exact test at delta."""

    def above(test: Counts) -> Bools:
        seen_by_chance = 1 - binomial_cdf(np.maximum(test.errors - 1, 0), test.accepted, alpha)
        rare: Bools = (test.errors > 0) & (seen_by_chance <= delta) | (test.accepted == 0)
        return rare

    return bool(np.logical_or.reduce([above(test) for test in tests]).all())
