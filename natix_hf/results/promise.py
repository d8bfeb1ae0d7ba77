"""What phase 5 promises of the accepted answers: certified on val_calib, one row of each group."""

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
from natix_hf.labels import ID2LABEL
from natix_hf.provenance.stored import Stored
from natix_hf.results.logits import LogitTable

EVERY_ANSWER = "every answer"
_RISKS = {
    "error": "the share of wrong answers among the accepted ones",
    "fnr": "the share of pictures with roadwork that are answered None, among the accepted ones",
    "fpr": "the share of pictures without roadwork that are answered Roadwork, among the accepted ones",
}


@dataclass(frozen=True)
class CertifiedPart:
    """What risk control found for one acceptance cut; see [`RiskControl`]."""

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
    """The promise, and what it rests on.

    `gate` is the kind of confidence that it was certified for. `rows` counts the calibration rows, one for each group.
    `parts` has one entry for every answer, or one for each answer where the promise is class-wise.
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
        """What the bundle's policy takes over."""
        return Promise(
            self.feasible, self.guarantee, self.accept_above, self.loss, self.alpha, self.delta, self.classwise
        )


@dataclass(frozen=True)
class CalibrationRows:
    """The rows that a certificate rests on, one for each group: confidence float64 [n], answers int8 [n], labels."""

    confidence: np.ndarray
    decisions: np.ndarray
    labels: np.ndarray


def calibration_rows(
    calib: LogitTable, confidence: np.ndarray, threshold_logit: float, risk: RiskConfig, prior: float | None, seed: int
) -> tuple[CalibrationRows, str]:
    """One row of each group of val_calib, at the target prior for the loss `error`; fnr and fpr are within one class.

    Returns:
        The rows, and why there can be no promise on them, or "".
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
) -> PromiseReport:
    """Certifies acceptance cuts on the calibration rows, or says why there are none.

    Args:
        why_not: a reason for which nothing can be promised, or "".
        select: confidences on val_select, which give the cuts to try. select_positive: the answers there.
        prior: the target prior, for the words of the guarantee.
        of_views: whether a row is a view of the exam.
    """
    parts: dict[str, RiskControl] = {}
    try:
        if not why_not:
            parts = _certify(rows, select, select_positive, risk)
    except DataError as error:  # no row of a class, or of an answer: that is no promise, and no reason to stop
        why_not = str(error)
    feasible = bool(parts) and all(part.feasible for part in parts.values())
    words = _words(risk, feasible, parts, why_not, prior)
    if feasible and of_views:
        words += ". A row is a view of the exam, as the subnet would send a picture"
    cuts = None
    if feasible:
        of_answer = {label: parts[label if label in parts else EVERY_ANSWER] for label in ID2LABEL.values()}
        cuts = {label: part.threshold for label, part in of_answer.items() if part.threshold is not None}
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
    rows: CalibrationRows, select: np.ndarray, select_positive: np.ndarray, risk: RiskConfig
) -> dict[str, RiskControl]:
    """The certificate of every answer, or of each.

    Raises:
        DataError: there is no row of a class or of an answer.
    """
    if not risk.classwise:
        losses, eligible = losses_for(risk.loss, rows.decisions, rows.labels)
        grid = make_grid(select)
        found = fit_risk_control(rows.confidence, losses, risk.alpha, risk.delta, eligible, grid, risk.min_coverage)
        return {EVERY_ANSWER: found}
    for label, answered in ((1, select_positive), (0, ~select_positive)):
        if not answered.any():
            raise DataError(f"val_select has no row that is answered {ID2LABEL[label]}, so there is nothing to try")
    grids = make_grid(select[select_positive]), make_grid(select[~select_positive])
    kind: ClasswiseLoss = "error" if risk.loss == "error" else "rates"
    both = fit_classwise_risk_control(
        rows.confidence, rows.decisions, rows.labels, risk.alpha, risk.delta, kind, grids, risk.min_coverage
    )
    return {ID2LABEL[1]: both.positive, ID2LABEL[0]: both.negative}


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


def _words(risk: RiskConfig, feasible: bool, parts: dict[str, RiskControl], why: str, prior: float | None) -> str:
    if not feasible:
        why = why or "; ".join(f"{name}: {part.reason}" for name, part in parts.items() if not part.feasible)
        return f"none: every answer is accepted. No acceptance cut could be certified ({why})"
    what = _RISKS[risk.loss] if not risk.classwise else "the risk of either answer, among the accepted ones"
    met = "as found" if prior is None or risk.loss != "error" else f"with a share of {prior:g} of roadwork"
    return (
        f"with probability at least {1 - risk.delta:g} over the draw of the calibration groups, {what} is at most "
        f"{risk.alpha:g} on a row of a new group. The promise holds for new groups drawn as these were ({met}), over "
        "all of them together and not for every slice of them, and only for the answers that are accepted"
    )
