"""Phase 5: calibration fitted on val_select, then selective conformal risk control on val_calib, untouched so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from natix_hf.bundle.confidence import Confidence
from natix_hf.bundle.logits import LogitTable, write_logits
from natix_hf.calibration import (
    TEMPERATURE_BOUNDS,
    Calibration,
    RiskControl,
    fit_calibration,
    fit_classwise_risk_control,
    fit_risk_control,
    losses_for,
    make_grid,
    one_row_per_group,
    subsample_to_prior,
)
from natix_hf.calibration.classwise import ClasswiseLoss
from natix_hf.calibration.config import RiskConfig
from natix_hf.errors import DataError
from natix_hf.metrics import (
    bootstrap_intervals,
    compute_metrics,
    count_groups,
    ece_reduction_percent,
    expected_calibration_error,
    maximum_calibration_error,
    prior_weights,
    risk_coverage,
    smooth_calibration_error,
)
from natix_hf.models.classifier import ID2LABEL
from natix_hf.models.gate import GATE
from natix_hf.phases import plots
from natix_hf.phases.candidate import Candidate, compute_answers
from natix_hf.phases.context import PhaseContext
from natix_hf.phases.phase2_threshold import read_decision, select_logits
from natix_hf.provenance.files import write_json
from natix_hf.provenance.manifest import MANIFEST
from natix_hf.reporting import say

CALIBRATION, RISK = "calibration.json", "scrc.json"
_EVERY = "every answer"
_ERRORS = ("ece", "ece_equal_mass", "smooth_ece", "mce", "brier", "nll")
_RISKS = {
    "error": "the share of wrong answers among the accepted ones",
    "fnr": "the share of pictures with roadwork that are answered None, among the accepted ones",
    "fpr": "the share of pictures without roadwork that are answered Roadwork, among the accepted ones",
}


def run(context: PhaseContext) -> dict[str, Any]:
    recipe, config = context.recipe, context.recipe.phase5
    decision = read_decision(context)
    champion = Candidate(decision["champion"], context.run_dir / decision["champion"])
    exam = recipe.data.drawn_exam
    select = select_logits(context.upstream(2), champion, exam)
    calib, features = compute_answers(champion, context.rows("val_calib"), exam)
    context.note_rows("val_select", list(dict.fromkeys(select.ids)))
    write_logits(context.folder / "logits" / "val_calib.parquet", calib)
    prior = recipe.data.target_prior
    fitted = fit_calibration(select.logits, select.labels, config.method, prior_weights(select.labels, prior))
    at_bound = fitted.method == "temperature" and 1 / fitted.slope in TEMPERATURE_BOUNDS
    if at_bound:  # val_select without a wrong answer, say: its likelihood grows on to probabilities of 0 and 1
        fitted = Calibration("none")
        say("phase 5: no temperature fits val_select best, so the probabilities stay as they are")
    calibration = {"no_optimum": at_bound} | _calibration_report(context, fitted, calib)
    write_json(context.folder / CALIBRATION, calibration)
    confidence = Confidence(decision["threshold_logit"], learned_gate(context))
    seen = compute_answers(champion, context.rows("val_select"), exam)[1] if confidence.reads_features else None
    scores = {"val_select": confidence(select.logits, seen), "val_calib": confidence(calib.logits, features)}
    risk = _control(context, decision["threshold_logit"], select, calib, scores)
    if calib.exam is not None and risk["feasible"]:
        risk["guarantee"] += ". A row is a view of the exam, as the subnet would send a picture"
    report = {"candidate_sha256": calib.candidate_sha256, "gate": confidence.kind} | risk
    write_json(context.folder / RISK, report)
    return {"calibration": calibration, "risk_control": report}


def learned_gate(context: PhaseContext) -> Path | None:
    """The file of phase 3's gate, where it has run and the gate has won."""
    folder = context.upstream(3)
    return folder / GATE if (folder / MANIFEST).is_file() and (folder / GATE).is_file() else None


def _calibration_report(context: PhaseContext, fitted: Calibration, calib: LogitTable) -> dict[str, Any]:
    """Errors on val_calib before and after, at the target prior, each with its group-bootstrap interval."""
    prior, weights = context.recipe.data.target_prior, prior_weights(calib.labels, context.recipe.data.target_prior)
    report: dict[str, Any] = {
        "method": fitted.method,
        "slope": fitted.slope,
        "intercept": fitted.intercept,
        "temperature": 1 / fitted.slope if fitted.method == "temperature" else None,
        "target_prior": prior,
        "rows": len(calib.ids) // calib.views,
        "views": calib.views,
        "groups": count_groups(calib.groups, calib.labels),
    }
    for name, calibration in (("before", Calibration("none")), ("after", fitted)):
        p = calibration.probability(calib.logits)
        found = compute_metrics(p, calib.labels, sample_weight=weights)
        values = {
            "ece": found["ece"],
            "ece_equal_mass": expected_calibration_error(p, calib.labels, 15, "equal_mass", weights),
            "smooth_ece": smooth_calibration_error(p, calib.labels, weights),
            "mce": maximum_calibration_error(p, calib.labels, sample_weight=weights),
            "brier": found["brier"],
            "nll": found["nll"],
        }
        resamples = context.recipe.phase5.n_resamples
        intervals = bootstrap_intervals(
            p, calib.labels, calib.groups, sample_weight=weights, n_resamples=resamples, metrics=_ERRORS
        )
        report[name] = {key: {"value": values[key], "interval": list(intervals[key])} for key in _ERRORS}
        plots.reliability(
            context.folder / "plots" / f"reliability_{name}.png",
            p,
            calib.labels,
            weights,
            f"Reliability on val_calib, {name} calibration: ECE {values['ece']:.3f}",
        )
    report["ece_reduction_percent"] = ece_reduction_percent(
        report["before"]["ece"]["value"], report["after"]["ece"]["value"]
    )
    return report


def _control(
    context: PhaseContext, threshold: float, select: LogitTable, calib: LogitTable, scores: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Thresholds of acceptance with their guarantee, from one row of each calibration group."""
    risk, data = context.recipe.phase5.risk, context.recipe.data
    chosen = one_row_per_group(calib.groups, data.seed)
    parts, why = {}, ""
    try:
        if risk.loss == "error" and data.target_prior is not None:  # fnr and fpr are within one class: no prior
            chosen = chosen[subsample_to_prior(calib.labels[chosen], data.target_prior, data.seed)]
        decisions = (calib.logits[chosen] > threshold).astype(np.int8)
        answered = select.logits > threshold
        grid = scores["val_select"], answered
        parts = _certify(risk, scores["val_calib"][chosen], decisions, calib.labels[chosen], *grid)
    except DataError as error:  # no row of a class, or of an answer: that is no promise, and no reason to stop
        why = str(error)
    feasible = bool(parts) and all(part.feasible for part in parts.values())
    _plot(context, feasible, parts.get(_EVERY), scores["val_calib"][chosen], calib.logits[chosen] > threshold,
          calib.labels[chosen])  # fmt: skip
    thresholds = None
    if feasible:
        thresholds = {label: parts[label if label in parts else _EVERY].threshold for label in ID2LABEL.values()}
    return {
        "feasible": feasible,
        "guarantee": _words(risk, feasible, parts, why, data.target_prior),
        "thresholds": thresholds,
        "loss": risk.loss,
        "alpha": risk.alpha,
        "delta": risk.delta,
        "classwise": risk.classwise,
        "rows": len(chosen),
        "parts": {name: _facts(part) for name, part in parts.items()},
    }


def _certify(
    risk: RiskConfig,
    confidence: np.ndarray,
    decisions: np.ndarray,
    labels: np.ndarray,
    select: np.ndarray,
    select_positive: np.ndarray,
) -> dict[str, RiskControl]:
    """The certificate of every answer, or of each; the thresholds to try come from the confidences of val_select.

    Raises:
        DataError: there is no row of a class or of an answer.
    """
    if not risk.classwise:
        losses, eligible = losses_for(risk.loss, decisions, labels)
        grid = make_grid(select)
        return {
            _EVERY: fit_risk_control(confidence, losses, risk.alpha, risk.delta, eligible, grid, risk.min_coverage)
        }
    for label, answered in ((1, select_positive), (0, ~select_positive)):
        if not answered.any():
            raise DataError(f"val_select has no row that is answered {ID2LABEL[label]}, so there is nothing to try")
    grids = make_grid(select[select_positive]), make_grid(select[~select_positive])
    kind: ClasswiseLoss = "error" if risk.loss == "error" else "rates"
    found = fit_classwise_risk_control(
        confidence, decisions, labels, risk.alpha, risk.delta, kind, grids, risk.min_coverage
    )
    return {ID2LABEL[1]: found.positive, ID2LABEL[0]: found.negative}


def _plot(
    context: PhaseContext,
    feasible: bool,
    single: RiskControl | None,
    confidence: np.ndarray,
    decisions: np.ndarray,
    labels: np.ndarray,
) -> None:
    risk = context.recipe.phase5.risk
    losses, eligible = losses_for(risk.loss, decisions.astype(np.int8), labels)
    point = None
    if feasible and single is not None and single.threshold is not None:
        coverage = float((confidence[eligible] > single.threshold).mean())
        point = (coverage, single.errors / single.accepted, float(single.risk_bound or 0.0))
    curves = {}
    if eligible.any():
        curves[f"{risk.loss} on val_calib, one row a group"] = risk_coverage(confidence[eligible], losses[eligible])[
            :2
        ]
    path = context.folder / "plots" / "risk_coverage.png"
    plots.risk_coverage(path, curves, "Risk among the accepted answers, over rows that count in it", risk.alpha, point)


def _facts(part: RiskControl) -> dict[str, Any]:
    keys = ("feasible", "threshold", "coverage", "coverage_interval", "coverage_delta", "accepted", "errors")
    return {key: getattr(part, key) for key in (*keys, "risk_bound", "needed", "rows", "eligible", "reason")}


def _words(risk: RiskConfig, feasible: bool, parts: dict[str, RiskControl], why: str, prior: float | None) -> str:
    if not feasible:
        why = why or "; ".join(f"{name}: {part.reason}" for name, part in parts.items() if not part.feasible)
        return f"none: every answer is accepted. No threshold could be certified ({why})"
    what = _RISKS[risk.loss] if not risk.classwise else "the risk of either answer, among the accepted ones"
    met = "as found" if prior is None or risk.loss != "error" else f"with a share of {prior:g} of roadwork"
    return (
        f"with probability at least {1 - risk.delta:g} over the draw of the calibration groups, {what} is at most "
        f"{risk.alpha:g} on a row of a new group. It holds for new groups that are drawn as these were ({met}), over "
        "all of them together and not for every slice of them, and only for the answers that are accepted"
    )
