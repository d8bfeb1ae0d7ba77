"""The promise of phase 5 about accepted answers, certified on one row of each group of val_calib."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np

from natix_hf.calibration import (
    Promise,
    RiskControl,
    fit_classwise_risk_control,
    fit_risk_control,
    losses_for,
    one_row_per_group,
    subsample_to_prior,
)
from natix_hf.calibration.config import RiskConfig
from natix_hf.calibration.risk_rows import Loss
from natix_hf.errors import DataError
from natix_hf.labels import LabelNames
from natix_hf.metrics import prior_weights
from natix_hf.provenance.files import json_sha256
from natix_hf.provenance.stored import OPTIONAL, Stored
from natix_hf.results.answered import Answered
from natix_hf.results.guarantee import OF_A_RUN, Setting, guarantee, no_guarantee
from natix_hf.results.looks import Look

EVERY_ANSWER = "every answer"
# The shares of label 1 at which scrc.json tells the error rate of accepted answers, as found on val_calib.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


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
        prior (`tuple[float, float]`, *optional*): As in [`Promise`].
        error_at_share (`dict[str, float | None]`, *optional*): The error rate of accepted answers on val_calib,
            weighted to other shares of label 1. An estimate, no promise. None for other losses and without a promise.
        looks (`list[Look]`, *optional*): The different certifications of these rows in this run, this one included.
            None if the rows support no certification, or a version before looks were counted wrote the file.
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
    prior: tuple[float, float] | None = field(default=None, metadata=OPTIONAL)
    error_at_share: dict[str, float | None] | None = field(default=None, metadata=OPTIONAL)
    looks: list[Look] | None = field(default=None, metadata=OPTIONAL)

    @property
    def promise(self) -> Promise:
        """The part of the report that goes into the bundle's policy."""
        return Promise(
            self.feasible,
            self.guarantee,
            self.accept_above,
            self.loss,
            self.alpha,
            self.delta,
            self.classwise,
            self.prior,
            None if self.looks is None else len(self.looks),
        )


@dataclass(frozen=True)
class CalibrationRows:
    """The rows that a certificate rests on, one per group: confidence float64 [n], decisions int8 [n], labels [n].

    Args:
        counted: Of each denominator of an error rate, the rows that count, bool [k, n]: those at the lowest and those
            at the highest prior. None: all rows.
        as_found: Confidence, decisions and labels before rows were thinned out to a prior.
    """

    confidence: np.ndarray
    decisions: np.ndarray
    labels: np.ndarray
    counted: np.ndarray | None = None
    as_found: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @property
    def sha256(self) -> str:
        """Hash of everything that a certification reads of the rows."""
        return _sha256(self.confidence, self.decisions, self.labels, self.counted)


def _sha256(*arrays: np.ndarray | None) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class SelectRows:
    """Other rows, which say where the walk begins: confidence float64 [n], decisions int8 [n], labels [n], and the
    group of each row [n], of which there may be several rows."""

    confidence: np.ndarray
    decisions: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def weights(self, prior: float | None) -> np.ndarray:
        """Weights that count each group once and give label 1 the share `prior`, float64 [n]."""
        _, number, size = np.unique(self.groups, return_inverse=True, return_counts=True)
        weights = 1 / size[number]
        if prior is not None:
            for label, share in ((1, prior), (0, 1 - prior)):
                of_label = self.labels == label
                if not of_label.any():
                    raise DataError(
                        f"no row that says where to begin has label {label}, so these rows cannot stand for a prior"
                    )
                weights[of_label] *= share / weights[of_label].sum()
        return weights

    @property
    def sha256(self) -> str:
        """Hash of everything that a certification reads of the rows."""
        return _sha256(self.confidence, self.decisions, self.labels, np.unique(self.groups, return_inverse=True)[1])


def calibration_rows(
    calib: Answered, confidence: np.ndarray, threshold_logit: float, risk: RiskConfig, prior: float | None, seed: int
) -> tuple[CalibrationRows, str]:
    """Draw one row of each group of val_calib.

    For the loss `error` the rows are thinned out to the target prior, or twice to both ends of an interval of priors:
    the error rate of accepted answers rises or falls with the prior, so its worst value lies at an end. The losses
    `fnr` and `fpr` need no prior: each looks at one class.

    Returns:
        The rows, and the reason why they support no promise, or "".
    """
    chosen, why, counted = one_row_per_group(calib.groups, seed), "", None
    decisions = (calib.logits > threshold_logit).astype(np.int8)
    as_found = confidence[chosen], decisions[chosen], calib.labels[chosen]
    priors = risk.priors(prior)
    if priors is not None:
        try:
            low, high = (subsample_to_prior(calib.labels[chosen], share, seed) for share in priors)
            if priors[0] == priors[1]:
                chosen = chosen[low]
            else:
                counted = np.zeros((2, chosen.size), dtype=np.bool_)
                counted[0, low] = counted[1, high] = True
        except DataError as error:
            why = str(error)
    return CalibrationRows(confidence[chosen], decisions[chosen], calib.labels[chosen], counted, as_found), why


def certify(
    rows: CalibrationRows,
    why_not: str,
    select: SelectRows,
    risk: RiskConfig,
    prior: float | None,
    *,
    candidate_sha256: str,
    gate: str,
    of_views: bool,
    groups_known: bool,
    labels: LabelNames,
    record: Callable[[Look], list[Look]] = lambda look: [look],
    rows_sha256: str = "",
    setting: Setting = OF_A_RUN,
) -> PromiseReport:
    """Certify acceptance cuts on the calibration rows, or say why none can be certified.

    Args:
        why_not: A reason why nothing can be promised, or "".
        select: Rows that give the cuts to try and say where the walk begins.
        prior: The target prior.
        of_views: True if a row is a view of the exam.
        groups_known: Something says which rows belong together. False: each row counts as a group, and the guarantee
            says what it rests on.
        labels: The names of the answers.
        record: Takes this look and returns every different look at the same rows.
        rows_sha256: Hash of the ids of the calibration rows.
        setting: The words for rows and groups where this is promised.
    """
    parts: dict[str, RiskControl] = {}
    try:
        if not why_not:
            parts = _certify(rows, select, risk, prior, labels, setting)
    except DataError as error:  # a class or an answer has no row: then there is no promise, but the run goes on
        why_not = str(error)
    feasible = bool(parts) and all(part.feasible for part in parts.values())
    priors, looks = risk.priors(prior), None
    if parts:
        settings = [risk.loss, risk.classwise, risk.alpha, risk.delta_of_a_look, priors]
        looks = record(
            Look(
                rows_sha256=rows_sha256,
                sha256=json_sha256([rows.sha256, select.sha256, candidate_sha256, gate, settings]),
                candidate_sha256=candidate_sha256,
                gate=gate,
                loss=risk.loss,
                classwise=risk.classwise,
                alpha=risk.alpha,
                delta=risk.delta_of_a_look,
                prior=priors,
                feasible=feasible,
            )
        )
    cuts, elsewhere = None, None
    if feasible:
        of_answer = {name: parts[name if risk.classwise else EVERY_ANSWER] for name in (labels.no, labels.yes)}
        cuts = {name: part.threshold for name, part in of_answer.items() if part.threshold is not None}
        elsewhere = _error_at_share(rows, cuts, labels) if risk.loss == "error" else None
        words = guarantee(
            risk,
            prior,
            labels,
            groups_known=groups_known,
            of_views=of_views,
            share=float(rows.labels.mean()),
            error_at_share=elsewhere or {},
            looks=looks or [],
            setting=setting,
        )
    else:
        words = no_guarantee(
            why_not or "; ".join(f"{name}: {part.reason}" for name, part in parts.items() if not part.feasible)
        )
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
        prior=priors,
        error_at_share=elsewhere,
        looks=looks,
    )


def _certify(
    rows: CalibrationRows,
    select: SelectRows,
    risk: RiskConfig,
    prior: float | None,
    labels: LabelNames,
    setting: Setting,
) -> dict[str, RiskControl]:
    """The certificate for all answers together, or one per answer.

    Raises:
        DataError: if a class or an answer has no row.
    """
    alpha, delta, least = risk.alpha, risk.delta_of_a_look, risk.min_coverage
    weights = np.array([select.weights(share) for share in risk.priors(prior) or (None,)])
    if rows.counted is None:
        weights = weights[0]
    if not risk.classwise:
        losses, eligible = losses_for(risk.loss, rows.decisions, rows.labels)
        seen_losses, seen_eligible = losses_for(risk.loss, select.decisions, select.labels)
        seen = select.confidence, seen_losses, weights * seen_eligible
        counted = eligible if rows.counted is None else rows.counted
        found = fit_risk_control(rows.confidence, losses, alpha, delta, counted, None, least, select=seen)
        return {EVERY_ANSWER: found}
    for answer, name in ((1, labels.yes), (0, labels.no)):
        if not (select.decisions == answer).any():
            raise DataError(f'no row of {setting.others} is answered "{name}", so there is no cut to try')
    both = fit_classwise_risk_control(
        rows.confidence,
        rows.decisions,
        rows.labels,
        alpha,
        delta,
        "error" if risk.loss == "error" else "rates",
        min_coverage=least,
        select=(select.confidence, select.decisions, select.labels, weights),
        eligible=rows.counted,
    )
    return {labels.yes: both.positive, labels.no: both.negative}


def _error_at_share(rows: CalibrationRows, cuts: dict[str, float], labels: LabelNames) -> dict[str, float | None]:
    """The error rate among accepted answers on the calibration rows, weighted to other shares of label 1. It is an
    estimate, no promise. None where no row is accepted, or all are of one class."""
    confidence, decisions, truth = rows.as_found or (rows.confidence, rows.decisions, rows.labels)
    accepted = confidence > np.where(decisions == 1, cuts[labels.yes], cuts[labels.no])
    found: dict[str, float | None] = {}
    for share in SHARES:
        one_class = truth.min() == truth.max()
        weights = np.zeros(truth.size) if one_class else prior_weights(truth, share) * accepted
        found[f"{share:g}"] = float(weights @ (decisions != truth) / weights.sum()) if weights.any() else None
    return found


def _part(found: RiskControl) -> CertifiedPart:
    return CertifiedPart(**{part.name: getattr(found, part.name) for part in fields(CertifiedPart)})
