"""Two acceptance thresholds, one for each answer, so that abstaining from one answer cannot hide the other's errors.

A single threshold can hold an error rate by never accepting "None". Here each answer has its threshold, its hypothesis
at half of `delta`, its coverage and its minimum coverage.
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
    """An acceptance threshold for each answer.

    Args:
        feasible (`bool`): Whether both answers have a threshold. With the loss `"error"` one may have one and the
            other none, which is then never accepted; what the one says still holds.
        positive, negative ([`RiskControl`]): Of the rows answered 1 and 0; `coverage` is that of this answer, and
            `delta` and `coverage_delta` are half of what was asked. With the loss `"rates"` `positive` holds the
            false positive rate among the accepted (a positive answer's error) and `negative` the false negative rate.
        loss (`str`): As asked.
        delta (`float`): As asked: with this probability at most is either promise false.
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
    """Find an acceptance threshold for each answer, by two runs of [`fit_risk_control`] at `delta / 2`.

    With the loss `"error"` the hypotheses are that at most `alpha` of the accepted positive answers are wrong
    (precision, PPV), and of the accepted negative ones (NPV): two thresholds that are independent of each other.

    With `"rates"` they are that the false positive rate and the false negative rate among the accepted rows are at
    most `alpha`. Each of these depends on both thresholds, so the two are loosened together, step by step at equal
    share of their grids, and the last step at which both are certified is taken.

    Args:
        confidence, alpha, delta, coverage_delta: As for [`fit_risk_control`]: one row of each group.
        decisions, labels (`array-like` of shape `(n,)`): 0 or 1; what is answered and what is true.
        loss (`str`, defaults to `"error"`): `"error"` or `"rates"`.
        grid (`tuple` of two `array-like`, *optional*): Thresholds for positive and for negative answers, fixed
            beforehand; `None` as for [`fit_risk_control`], with what is proven then.
        min_coverage (`float`, *optional*): A filter for each answer, as for [`fit_risk_control`].

    Returns:
        [`ClasswiseRiskControl`].

    Raises:
        [`DataError`]: where an array is not what it must be, or all decisions are the same.
        [`UsageError`]: for an argument that cannot be.

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
        # The number of thresholds that refuse a row, on the common scale of steps; `steps` where all of them do.
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
    # The other rate's tests may have begun only at a later step: then it is not certified at this one.
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
    """What was fitted on the steps, as the threshold of one answer."""
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
