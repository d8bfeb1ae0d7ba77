"""Risk control with one acceptance threshold per answer.

A single threshold can meet an error rate by never accepting one of the answers. Here each answer has its own
threshold, its own coverage and its own minimum coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from natix_hf.calibration.binomial import check_share
from natix_hf.calibration.fixed_sequence import Counts, loosest, walks
from natix_hf.calibration.grid import MOST, make_grid
from natix_hf.calibration.risk_control import RiskControl, certified, fit_risk_control, infeasible
from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import Floats, Labels, as_floats, as_labels, as_weights, check_lengths

ClasswiseLoss = Literal["error", "rates"]


@dataclass(frozen=True)
class ClasswiseRiskControl:
    """One acceptance threshold per answer. Returned by [`fit_classwise_risk_control`].

    Args:
        feasible (`bool`): True if both answers have a certified threshold. With the loss `"error"` only one answer
            may have a threshold. Its guarantee still holds, and the other answer is never accepted.
        positive, negative ([`RiskControl`]): Results for the rows answered 1 and 0. `coverage` is the share of that
            answer's rows, and `coverage_delta` half of the requested value. With the loss `"error"` their `delta` is
            half of the requested one. With `"rates"`, `positive` bounds the false positive rate among the accepted
            rows and `negative` the false negative rate, both at the requested `delta`.
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
    select: Sequence[Any] | None = None,
    eligible: Any | None = None,
) -> ClasswiseRiskControl:
    """Find an acceptance threshold for each answer, so that both guarantees hold with probability `1 - delta`.

    The loss `"error"` certifies that at most `alpha` of the accepted positive answers are wrong (1 - PPV), and at
    most `alpha` of the accepted negative answers (1 - NPV). The two thresholds are independent: two runs of
    [`fit_risk_control`] at `delta / 2`.

    The loss `"rates"` certifies that the false positive rate and the false negative rate among the accepted rows are
    at most `alpha`. Each rate depends on both thresholds. The thresholds are therefore loosened together, at equal
    shares of their grids, and a step passes if both rates pass at `delta`. The result is the last step that passed. A
    rate of one class does not depend on how common the class is, so this guarantee holds at every prior.

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
        select (`tuple` of three or four `array-like`, *optional*): Confidences, decisions and labels of other rows,
            and perhaps their weights, as in [`fit_risk_control`]. They give the grid, if `grid` is `None`, and say
            where the walks begin.
        eligible (`array-like` of shape `(n,)` or `(k, n)`, *optional*): As in [`fit_risk_control`], for the loss
            `"error"` only.

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
    rows = _rows(confidence, decisions, labels)
    for name, value in (("alpha", alpha), ("delta", delta), ("coverage_delta", coverage_delta)):
        check_share(value, name)
    if rows.decisions.min() == rows.decisions.max():
        raise DataError(
            f"all {rows.decisions.size} decisions are {rows.decisions[0]}: a threshold for each answer needs rows of "
            "both"
        )
    if grid is not None and not (isinstance(grid, list | tuple) and len(grid) == 2):
        raise UsageError("grid must be two lists of thresholds: for the answer 1, and for the answer 0")
    others, weights = None, None
    if select is not None:
        others, weights = _select(select)
        missing = [f"answered {a}" for a in (1, 0) if not (others.decisions == a).any()]
        if loss == "rates":
            missing += [f"labelled {label}" for label in (1, 0) if not (others.labels == label).any()]
        if missing:
            raise DataError(f"no row of select is {missing[0]}, so nothing says where to begin")
    if eligible is not None:
        eligible = _masks(eligible, rows.decisions.size, "eligible")
    if loss == "error":
        levels = alpha, delta / 2, coverage_delta / 2
        positive, negative = _fit_error(rows, levels, grid, min_coverage, others, weights, eligible)
    elif eligible is not None:
        raise UsageError('eligible is for the loss "error": the loss "rates" counts the rows of each label')
    else:
        positive, negative = _fit_rates(rows, (alpha, delta, coverage_delta / 2), grid, min_coverage, others, weights)
    return ClasswiseRiskControl(positive.feasible and negative.feasible, positive, negative, loss, delta)


class _Rows(NamedTuple):
    confidence: Floats
    decisions: Labels
    labels: Labels

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        wrong: npt.NDArray[np.bool_] = self.decisions != self.labels
        return wrong


def _select(select: Any) -> tuple[_Rows, Floats | None]:
    if not isinstance(select, list | tuple) or len(select) not in (3, 4):
        raise UsageError(f"select must be confidences, decisions, labels and perhaps weights, found {select!r:.80}")
    others = _rows(select[0], select[1], select[2], "select_")
    if len(select) == 3 or select[3] is None:
        return others, None
    return others, _masks(select[3], others.decisions.size, "select_weights")


def _masks(values: Any, rows: int, name: str) -> Floats:
    """Float64 of shape `(n,)` or `(k, n)`."""
    try:
        array: Floats = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} must be numbers, one for each row, or one row of them for each denominator: {error}"
        ) from None
    if array.ndim not in (1, 2) or array.shape[-1] != rows:
        raise DataError(f"{name} must have the shape [{rows}] or [k, {rows}], found {list(array.shape)}")
    return array


def _rows(confidence: Any, decisions: Any, labels: Any, of: str = "") -> _Rows:
    c, d = as_floats(confidence, f"{of}confidence"), as_labels(decisions, f"{of}decisions")
    y = as_labels(labels, f"{of}labels")
    arrays: dict[str, npt.NDArray[Any]] = {f"{of}confidence": c, f"{of}decisions": d, f"{of}labels": y}
    check_lengths(**arrays)
    return _Rows(c, d, y)


def _fit_error(
    rows: _Rows,
    levels: tuple[float, float, float],
    grid: Any,
    minimum: float | None,
    select: _Rows | None,
    weights: Any,
    eligible: Any,
) -> tuple[RiskControl, RiskControl]:
    alpha, delta, coverage_delta = levels

    def fit(answer: int, thresholds: Any) -> RiskControl:
        mine, others = rows.decisions == answer, None
        if select is not None:
            theirs = select.decisions == answer
            chosen = None if weights is None else weights[..., theirs]
            others = (select.confidence[theirs], select.wrong[theirs], chosen)
        counted = None if eligible is None else eligible[..., mine]
        return fit_risk_control(
            rows.confidence[mine], rows.wrong[mine], alpha, delta, counted, thresholds, minimum, coverage_delta, others
        )

    grids = (None, None) if grid is None else grid
    return fit(1, grids[0]), fit(0, grids[1])


def _fit_rates(
    rows: _Rows,
    levels: tuple[float, float, float],
    grid: Any,
    minimum: float | None,
    select: _Rows | None,
    weights: Any,
) -> tuple[RiskControl, RiskControl]:
    if grid is None:
        given, most = (rows, max(rows.confidence.size, 2)) if select is None else (select, MOST)
        grid = [make_grid(given.confidence[given.decisions == answer], most) for answer in (1, 0)]
    strict_to_loose = [np.unique(as_floats(thresholds, "grid"))[::-1] for thresholds in grid]
    # The steps are as many as the longer grid has thresholds; the shorter grid moves at its share of them.
    steps = max(thresholds.size for thresholds in strict_to_loose)
    alpha, delta, _ = levels
    enters = _enters(rows, strict_to_loose, steps)
    tests, seen = _counts(rows, enters, steps, None), None
    if select is not None:
        chosen = as_weights(weights, "select_weights")
        check_lengths(select_confidence=select.confidence, select_weights=chosen)
        seen = _counts(select, _enters(select, strict_to_loose, steps), steps, chosen)
    walked = walks(tests, alpha, delta, seen)
    best = loosest(walked)
    answered = [rows.decisions == answer for answer in (1, 0)]
    if not best.passed:
        alone = [
            loosest(walks([test], alpha, delta, None if seen is None else [seen[label]])).passed
            for label, test in enumerate(tests)
        ]
        positive, negative = (
            infeasible([test], walked, levels, int(mine.sum()), [test])
            for test, mine in zip(tests, answered, strict=True)
        )
        reason = "this rate could be certified, but at no step together with the other one"
        return (
            replace(positive, reason=reason) if alone[0] else positive,
            replace(negative, reason=reason) if alone[1] else negative,
        )
    positive, negative = (
        certified(
            float(thresholds[_at(best.last, thresholds, steps)]),
            int((mine & (enters <= best.last)).sum()),
            [test],
            best,
            levels,
            int(mine.sum()),
            minimum,
        )
        for test, mine, thresholds in zip(tests, answered, strict_to_loose, strict=True)
    )
    # Each rate depends on both thresholds, so one without the other promises nothing.
    other = "the other answer has no threshold, and this rate depends on both"
    return _only_with(positive, negative, other), _only_with(negative, positive, other)


def _only_with(found: RiskControl, other: RiskControl, reason: str) -> RiskControl:
    if other.feasible or not found.feasible:
        return found
    return replace(
        found, feasible=False, threshold=None, coverage=None, coverage_interval=None, risk_bound=None, reason=reason
    )


def _enters(rows: _Rows, strict_to_loose: Sequence[Floats], steps: int) -> npt.NDArray[np.int64]:
    """The first step at which each row is accepted, on the common scale of steps. `steps` means never."""
    enters = np.empty(rows.confidence.size, dtype=np.int64)
    for answer, thresholds in zip((1, 0), strict_to_loose, strict=True):
        mine = rows.decisions == answer
        refused = thresholds.size - np.searchsorted(thresholds[::-1], rows.confidence[mine])
        enters[mine] = refused * steps // thresholds.size
    return enters


def _at(step: int, thresholds: Floats, steps: int) -> int:
    """Index of an answer's threshold at a step: the last one whose rows have all entered."""
    return -(-(step + 1) * thresholds.size // steps) - 1


def _counts(rows: _Rows, enters: npt.NDArray[np.int64], steps: int, weights: Floats | None) -> list[Counts]:
    """At each step, the accepted rows of label 0 and of label 1, and the wrong ones among them."""
    w = np.ones(enters.size, dtype=np.int64) if weights is None else weights * (weights.sum() / (weights @ weights))
    found = []
    for label in (0, 1):
        counted = rows.labels == label
        wrong = counted & rows.wrong
        accepted, errors = (
            np.cumsum(np.bincount(enters[mine], w[mine], steps + 1)[:steps]) for mine in (counted, wrong)
        )
        if weights is None:  # bincount returns floats
            accepted, errors = accepted.astype(np.int64), errors.astype(np.int64)
        found.append(Counts(accepted, errors, float(w[counted].sum())))
    return found
