"""The promise of phase 5 about accepted answers, certified on one row of each group of val_calib."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from natix_hf.calibration import (
    Promise,
    RiskControl,
    fit_classwise_risk_control,
    fit_risk_control,
    losses_for,
    make_grid,
    one_row_per_group,
    subsample_to_prior,
)
from natix_hf.calibration.classwise import ClasswiseLoss
from natix_hf.calibration.config import RiskConfig
from natix_hf.calibration.risk_rows import Loss
from natix_hf.errors import DataError
from natix_hf.labels import LabelNames
from natix_hf.provenance.stored import Stored
from natix_hf.results.logits import LogitTable

EVERY_ANSWER = "every answer"
_RISKS = {
    "error": "the share of wrong answers among accepted answers",
    "fnr": 'the share answered "{no}" among accepted pictures labelled "{yes}"',
    "fpr": 'the share answered "{yes}" among accepted pictures labelled "{no}"',
}
_RISK_OF_EITHER = {
    "error": 'the share of wrong answers, both among accepted answers "{yes}" and among accepted answers "{no}",',
    "rates": 'the share of wrong answers, both among accepted pictures labelled "{yes}" and among those labelled '
    '"{no}",',
}


@dataclass(frozen=True)
class CertifiedPart:
    """The result of risk control for one acceptance cut; see [`RiskControl`]."""

    feasible: bool
    threshold: float | None
    coverage: float | None
    coverage_interval: tuple[float, float] | None
    coverage_delta: float
    accepted: int
    errors: int
    risk_bound: float | None
    needed: int | None
    rows: int
    eligible: int
    reason: str


@dataclass(frozen=True)
class PromiseReport(Stored):
    """The promise and its evidence.

    Args:
        gate (`str`): The kind of confidence that the promise was certified for, `margin` or `learned`.
        rows (`int`): Number of calibration rows, one per group.
        parts (`dict[str, CertifiedPart]`): One entry for all answers, or one per answer if the promise is class-wise.
    """

    FILE: ClassVar[str] = "scrc.json"

    candidate_sha256: str
    gate: str
    feasible: bool
    guarantee: str
    accept_above: dict[str, float] | None = field(metadata={"key": "thresholds"})
    loss: Loss
    alpha: float
    delta: float
    classwise: bool
    rows: int
    parts: dict[str, CertifiedPart]

    @property
    def promise(self) -> Promise:
        """The part of the report that goes into the bundle's policy."""
        return Promise(
            self.feasible, self.guarantee, self.accept_above, self.loss, self.alpha, self.delta, self.classwise
        )


@dataclass(frozen=True)
class CalibrationRows:
    """The rows that a certificate rests on, one per group: confidence float64 [n], decisions int8 [n], labels [n]."""

    confidence: np.ndarray
    decisions: np.ndarray
    labels: np.ndarray


def calibration_rows(
    calib: LogitTable, confidence: np.ndarray, threshold_logit: float, risk: RiskConfig, prior: float | None, seed: int
) -> tuple[CalibrationRows, str]:
    """Draw one row of each group of val_calib.

    For the loss `error` the rows are thinned out to the target prior. The losses `fnr` and `fpr` need no prior: each
    looks at one class.

    Returns:
        The rows, and the reason why they support no promise, or "".
    """
    chosen, why = one_row_per_group(calib.groups, seed), ""
    if risk.loss == "error" and prior is not None:
        try:
            chosen = chosen[subsample_to_prior(calib.labels[chosen], prior, seed)]
        except DataError as error:
            why = str(error)
    decisions = (calib.logits[chosen] > threshold_logit).astype(np.int8)
    return CalibrationRows(confidence[chosen], decisions, calib.labels[chosen]), why


def certify(
    rows: CalibrationRows,
    why_not: str,
    select: np.ndarray,
    select_positive: np.ndarray,
    risk: RiskConfig,
    prior: float | None,
    *,
    candidate_sha256: str,
    gate: str,
    of_views: bool,
    groups_known: bool,
    labels: LabelNames,
) -> PromiseReport:
    """Certify acceptance cuts on the calibration rows, or say why none can be certified.

    Args:
        why_not: A reason why nothing can be promised, or "".
        select: Confidences on val_select, which give the cuts to try.
        select_positive: bool, the answers on val_select.
        prior: The target prior, for the words of the guarantee.
        of_views: True if a row is a view of the exam.
        groups_known: Something says which rows belong together. False: each row counts as a group, and the guarantee
            says what it rests on.
        labels: The names of the answers.
    """
    parts: dict[str, RiskControl] = {}
    try:
        if not why_not:
            parts = _certify(rows, select, select_positive, risk, labels)
    except DataError as error:  # a class or an answer has no row: then there is no promise, but the run goes on
        why_not = str(error)
    feasible = bool(parts) and all(part.feasible for part in parts.values())
    words = _words(risk, feasible, parts, why_not, prior, groups_known, labels)
    if feasible and of_views:
        words += ". Here a row is a view of the exam, that is, a picture as the subnet would send it"
    cuts = None
    if feasible:
        of_answer = {name: parts[name if risk.classwise else EVERY_ANSWER] for name in (labels.no, labels.yes)}
        cuts = {name: part.threshold for name, part in of_answer.items() if part.threshold is not None}
    return PromiseReport(
        candidate_sha256=candidate_sha256,
        gate=gate,
        feasible=feasible,
        guarantee=words,
        accept_above=cuts,
        loss=risk.loss,
        alpha=risk.alpha,
        delta=risk.delta,
        classwise=risk.classwise,
        rows=len(rows.labels),
        parts={name: _part(part) for name, part in parts.items()},
    )


def _certify(
    rows: CalibrationRows, select: np.ndarray, select_positive: np.ndarray, risk: RiskConfig, labels: LabelNames
) -> dict[str, RiskControl]:
    """The certificate for all answers together, or one per answer.

    Raises:
        DataError: if a class or an answer has no row.
    """
    if not risk.classwise:
        losses, eligible = losses_for(risk.loss, rows.decisions, rows.labels)
        grid = make_grid(select)
        found = fit_risk_control(rows.confidence, losses, risk.alpha, risk.delta, eligible, grid, risk.min_coverage)
        return {EVERY_ANSWER: found}
    for name, answered in ((labels.yes, select_positive), (labels.no, ~select_positive)):
        if not answered.any():
            raise DataError(f'no row of val_select is answered "{name}", so there is no cut to try')
    grids = make_grid(select[select_positive]), make_grid(select[~select_positive])
    kind: ClasswiseLoss = "error" if risk.loss == "error" else "rates"
    both = fit_classwise_risk_control(
        rows.confidence, rows.decisions, rows.labels, risk.alpha, risk.delta, kind, grids, risk.min_coverage
    )
    return {labels.yes: both.positive, labels.no: both.negative}


def _part(found: RiskControl) -> CertifiedPart:
    return CertifiedPart(
        feasible=found.feasible,
        threshold=found.threshold,
        coverage=found.coverage,
        coverage_interval=found.coverage_interval,
        coverage_delta=found.coverage_delta,
        accepted=found.accepted,
        errors=found.errors,
        risk_bound=found.risk_bound,
        needed=found.needed,
        rows=found.rows,
        eligible=found.eligible,
        reason=found.reason,
    )


def _words(
    risk: RiskConfig,
    feasible: bool,
    parts: dict[str, RiskControl],
    why: str,
    prior: float | None,
    groups_known: bool,
    labels: LabelNames,
) -> str:
    if not feasible:
        why = why or "; ".join(f"{name}: {part.reason}" for name, part in parts.items() if not part.feasible)
        return f"none: every answer is accepted. No acceptance cut could be certified ({why})"
    what = _RISKS[risk.loss]
    if risk.classwise:
        what = _RISK_OF_EITHER["error" if risk.loss == "error" else "rates"]
    what = what.format(no=labels.no, yes=labels.yes)
    met = f'at the share of "{labels.yes}" in the data'
    if prior is not None and risk.loss == "error":
        met = f'at a share of {prior:g} of "{labels.yes}"'
    unit, new, doubt = "groups", "a row of a new group", ""
    if not groups_known:
        unit, new, doubt = "rows", "a new row", ", if rows are independent, which nobody has said (data.group_by)"
    return (
        f"with probability at least {1 - risk.delta:g} over the draw of the calibration {unit}, {what} is at most "
        f"{risk.alpha:g} for {new}{doubt}. The promise holds for new {unit} drawn like the calibration {unit} "
        f"({met}). It covers all of them together, not every slice, and only accepted answers"
    )
