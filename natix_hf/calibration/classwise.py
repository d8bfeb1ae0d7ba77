"""Risk control with one acceptance threshold per answer.

A single threshold can meet an error rate by never accepting one of the answers. Here each answer has its own
threshold, its own test at `delta / 2`, its own coverage and its own minimum coverage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from natix_hf.calibration.plan import check_share, needed_without_error, upper_bound
from natix_hf.calibration.risk_control import RiskControl, coverage_interval, fit_risk_control, make_grid
from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import Floats, Labels, as_floats, as_labels, check_lengths

ClasswiseLoss = Literal["error", "rates"]


@dataclass(frozen=True)
class ClasswiseRiskControl:
    """One acceptance threshold per answer. Returned by [`fit_classwise_risk_control`].

    Args:
        feasible (`bool`): True if both answers have a certified threshold. With the loss `"error"` only one answer
            may have a threshold. Its guarantee still holds, and the other answer is never accepted.
        positive, negative ([`RiskControl`]): Results for the rows answered 1 and 0. `coverage` is the share of that
            answer's rows. `delta` and `coverage_delta` are half of the requested values. With the loss `"rates"`,
            `positive` bounds the false positive rate among the accepted rows and `negative` the false negative rate.
        loss (`str`): The requested loss.
        delta (`float`): The requested probability that at least one of the two guarantees is false.
    """

    feasible: bool
    positive: RiskControl
    negative: RiskControl
    loss: str
    delta: float


def fit_classwise_risk_control(
    confidence: Any,
    decisions: Any,
    labels: Any,
    alpha: float,
    delta: float,
    loss: ClasswiseLoss = "error",
    grid: tuple[Any, Any] | None = None,
    min_coverage: float | None = None,
    coverage_delta: float = 0.05,
) -> ClasswiseRiskControl:
    """Find an acceptance threshold for each answer with two runs of [`fit_risk_control`] at `delta / 2`.

    The loss `"error"` certifies that at most `alpha` of the accepted positive answers are wrong (1 - PPV), and at
    most `alpha` of the accepted negative answers (1 - NPV). The two thresholds are independent.

    The loss `"rates"` certifies that the false positive rate and the false negative rate among the accepted rows are
    at most `alpha`. Each rate depends on both thresholds. The thresholds are therefore loosened together, at equal
    shares of their grids. The result is the last step at which both rates are certified.

    Args:
        confidence (`array-like` of shape `(n,)`): Finite numbers, for one row per group ([`one_row_per_group`]).
        decisions (`array-like` of shape `(n,)`): The answers, 0 or 1. Both must occur.
        labels (`array-like` of shape `(n,)`): The true labels, 0 or 1.
        alpha (`float`): Largest risk allowed among the accepted rows, in (0, 1).
        delta (`float`): Largest probability that at least one guarantee is false, in (0, 1).
        loss (`str`, defaults to `"error"`): `"error"` or `"rates"`.
        grid (`tuple` of two `array-like`, *optional*): Thresholds for the positive and the negative answers, fixed
            in advance. `None` takes them from `confidence`; [`fit_risk_control`] says what is proven then.
        min_coverage (`float`, *optional*): Smallest coverage of each answer, as in [`fit_risk_control`].
        coverage_delta (`float`, defaults to 0.05): Largest probability that a coverage interval is wrong.

    Returns:
        [`ClasswiseRiskControl`]: One threshold per answer.

    Raises:
        [`DataError`]: If an array is invalid, the arrays differ in length, or all decisions are the same.
        [`UsageError`]: If an argument is out of range.

    Example:
        >>> import numpy as np
        >>> decisions = np.repeat([1, 0], 100)
        >>> found = fit_classwise_risk_control(np.tile(np.arange(100), 2), decisions, decisions, alpha=0.05, delta=0.1)
        >>> found.feasible, found.positive.needed, found.negative.coverage
        (True, 59, 1.0)
    """
    if loss not in get_args(ClasswiseLoss):
        raise UsageError(f'loss must be one of {", ".join(get_args(ClasswiseLoss))}, found "{loss}"')
    c, d, y = as_floats(confidence, "confidence"), as_labels(decisions, "decisions"), as_labels(labels)
    check_lengths(confidence=c, decisions=d, labels=y)
    check_share(delta, "delta")
    check_share(coverage_delta, "coverage_delta")
    if d.min() == d.max():
        raise DataError(f"all {d.size} decisions are {d[0]}: a threshold for each answer needs rows of both")
    fit = _fit_rates if loss == "rates" else _fit_error
    positive, negative = fit(c, d, y, alpha, delta / 2, grid, min_coverage, coverage_delta / 2)
    return ClasswiseRiskControl(positive.feasible and negative.feasible, positive, negative, loss, delta)


def _fit_error(
    c: Floats,
    d: Labels,
    y: Labels,
    alpha: float,
    delta: float,
    grid: Any,
    minimum: float | None,
    coverage_delta: float,
) -> tuple[RiskControl, RiskControl]:
    grids = (None, None) if grid is None else grid
    positive, negative = (
        fit_risk_control(
            c[d == answer], (y != d)[d == answer], alpha, delta, None, thresholds, minimum, coverage_delta
        )
        for answer, thresholds in zip((1, 0), grids, strict=True)
    )
    return positive, negative


def _fit_rates(
    c: Floats,
    d: Labels,
    y: Labels,
    alpha: float,
    delta: float,
    grid: Any,
    minimum: float | None,
    coverage_delta: float,
) -> tuple[RiskControl, RiskControl]:
    given = [make_grid(c[d == a], max(c.size, 2)) for a in (1, 0)] if grid is None else grid
    strict_to_loose = [np.unique(as_floats(thresholds, "grid"))[::-1] for thresholds in given]
    steps = max(thresholds.size for thresholds in strict_to_loose)
    enters = np.empty(c.size, dtype=np.int64)
    for answer, thresholds in zip((1, 0), strict_to_loose, strict=True):
        # Count the thresholds that refuse a row, on the common scale of steps. `steps` means that all of them do.
        refused = thresholds.size - np.searchsorted(thresholds[::-1], c[d == answer])
        enters[d == answer] = refused * steps // thresholds.size
    fits = [
        fit_risk_control(-enters, d != y, alpha, delta, y == label, -np.arange(steps) - 0.5, None, coverage_delta)
        for label in (0, 1)
    ]
    last = [-1 if fitted.threshold is None else int(-fitted.threshold) for fitted in fits]
    step = min(last)
    accepted = enters <= step
    enough = needed_without_error(alpha, delta)
    # The tests of the other rate may have started at a later step. That rate is then not certified at this step.
    certified = step >= 0 and all(int((accepted & (y == label)).sum()) >= enough for label in (0, 1))
    answers = []
    for label, answer, thresholds, fitted in zip((0, 1), (1, 0), strict_to_loose, fits, strict=True):
        position = min((step + 1) * thresholds.size, steps * thresholds.size)
        threshold = float(thresholds[-(-position // steps) - 1])
        answers.append(_rate_answer(fitted, accepted, d == answer, d != y, y == label, threshold, certified, minimum))
    return answers[0], answers[1]


def _rate_answer(
    fitted: RiskControl,
    accepted: npt.NDArray[np.bool_],
    answered: npt.NDArray[np.bool_],
    wrong: npt.NDArray[np.bool_],
    counts: npt.NDArray[np.bool_],
    threshold: float,
    certified: bool,
    minimum: float | None,
) -> RiskControl:
    """Convert a fit on the common steps into the result of one answer, on the scale of the confidence."""
    rows = int(answered.sum())
    nothing = replace(
        fitted, feasible=False, threshold=None, coverage=None, coverage_interval=None, risk_bound=None, rows=rows
    )
    if not certified:
        if not fitted.feasible:
            return nothing
        return replace(nothing, reason="this rate could be certified, but at no step together with the other one")
    coverage = int((accepted & answered).sum()) / rows
    interval = coverage_interval(coverage, rows, fitted.coverage_delta)
    if minimum is not None and interval[0] < minimum:
        return replace(
            nothing,
            reason=(
                f"certified at a coverage of {coverage:.3f} of this answer, but with probability "
                f"{1 - fitted.coverage_delta:g} that is only known to be above {interval[0]:.3f}, and min_coverage is "
                f"{minimum:g}"
            ),
        )
    m, e = int((accepted & counts).sum()), int((accepted & counts & wrong).sum())
    return replace(
        fitted,
        threshold=threshold,
        coverage=coverage,
        coverage_interval=interval,
        accepted=m,
        errors=e,
        risk_bound=upper_bound(e, m, fitted.delta),
        rows=rows,
    )
