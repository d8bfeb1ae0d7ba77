"""Phase 3, gate: learn a confidence, and keep it only if it beats the margin on held-out rows of val_select."""

from __future__ import annotations

from typing import Any

import numpy as np
from accelerate import PartialState

from natix_hf.metrics import prior_weights, risk_coverage
from natix_hf.models.gate import GATE, gate_inputs, save_gate
from natix_hf.provenance.files import atomic_file, file_sha256
from natix_hf.provenance.stored import to_json
from natix_hf.results import plots
from natix_hf.results.answers import compute_answers
from natix_hf.results.decision import Decision
from natix_hf.results.gate import GateReport, compare_gates, verdict, write_cross_fitted
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.runs.graph import PHASES
from natix_hf.terminal import LABEL, tell
from natix_hf.trainers.gate import cross_fit, gate_targets, joined, too_few_rows, train_gate


def run(context: PhaseContext) -> Outcome:
    """Leave `gate.json`, and the gate itself if it beats the margin. Every rank calls it."""
    config, prior = context.recipe.phase3, context.recipe.data.target_prior
    _say_if_phase_5_differs(context)
    decision = context.decision()
    champion, asked = context.champion(decision), context.ask("val_select")
    table = decision.val_select(context.upstream(2), champion)
    threshold = decision.threshold_logit
    wrong = ((table.logits > threshold) != (table.labels == 1)).astype(np.int64)
    facts: dict[str, Any] = {
        "method": config.method,
        "candidate_sha256": table.candidate_sha256,
        "wrong_rows": int(wrong.sum()),
        "fnr_at_most": config.alpha if config.method == "conformal" else None,
    }
    groups_wrong = len(np.unique(table.groups[wrong == 1]))
    lacking = f"only {groups_wrong} groups have wrong answers, too few for {config.folds} folds"
    if groups_wrong >= config.folds:
        lacking = too_few_rows(table.labels, wrong, table.groups, config)
    if lacking:
        reason = f"the margin stays: {lacking}"
        return _write(context, GateReport(kind="margin", compared=None, folds=None, reason=reason, **facts))
    features = compute_answers(champion, asked)[1]
    inputs = gate_inputs(features, table.logits, threshold)
    targets = gate_targets(config.method, table.logits, table.labels, threshold)
    further = _out_of_fold(context, decision)
    learned = cross_fit(inputs, targets, wrong, table.groups, config, further)
    margin = np.abs(table.logits - threshold)
    weights = prior_weights(table.labels, prior)
    compared = compare_gates(margin, learned, wrong, table.labels, table.groups, weights, config)
    gate = train_gate(*joined(inputs, targets, further), config)  # on all of val_select, for use on later answers
    wins, reason = verdict(compared, config)
    gate_sha256 = None
    if context.is_main:
        curves = {
            name: risk_coverage(confidence, wrong, weights)[:2]
            for name, confidence in {"margin": margin, "learned gate, cross-fitted": learned}.items()
        }
        plots.risk_coverage(
            context.folder / "plots" / "gate.png", curves, "Share of wrong answers on val_select, by gate"
        )
        write_cross_fitted(context.folder, table.ids, learned)
        if wins:
            with atomic_file(context.folder / GATE) as temporary:
                save_gate(temporary, gate)
            gate_sha256 = file_sha256(context.folder / GATE)
    PartialState().wait_for_everyone()
    kept = GateReport(
        kind="learned" if wins else "margin",
        compared=compared,
        folds=config.folds,
        reason=reason,
        gate_sha256=gate_sha256,
        **facts,
    )
    return _write(context, kept)


def _out_of_fold(context: PhaseContext, decision: Decision) -> tuple[np.ndarray, np.ndarray] | None:
    """Inputs and targets of the out-of-fold answers to train, or None if the gate learns from val_select alone."""
    config, threshold, folder = context.recipe.phase3, decision.threshold_logit, PHASES[1].folder
    if config.from_ == "val_select":
        return None
    if decision.champion != folder:
        if context.is_main:
            tell(
                f"{' ' * LABEL}the gate learns from val_select alone, because the out-of-fold answers are "
                f"those of phase 1 and the champion is {decision.champion}",
                hang=LABEL,
            )
        return None
    answers = context.out_of_fold()
    features = context.out_of_fold_features(answers)
    of_train = answers.asked.of_rows(answers.roles == "train")
    logits, labels = answers.logits[of_train], answers.labels[of_train]
    inputs = gate_inputs(features[of_train], logits, threshold)
    return inputs, gate_targets(config.method, logits, labels, threshold)


def _say_if_phase_5_differs(context: PhaseContext) -> None:
    config, risk = context.recipe.phase3, context.recipe.phase5.risk
    if config.method == "conformal" and (risk.loss != "fnr" or risk.alpha <= config.alpha) and context.is_main:
        tell(
            f"{' ' * LABEL}the gate is trained for an FNR of at most {config.alpha:g} among the accepted, and phase 5 "
            f"certifies {risk.loss} at most {risk.alpha:g}: set phase5.risk.loss=fnr, and phase3.alpha to half of "
            "phase5.risk.alpha",
            hang=LABEL,
        )


def _write(context: PhaseContext, report: GateReport) -> Outcome:
    if context.is_main:
        report.write(context.folder)
    return Outcome(to_json(report), report.reason.replace("stays: ", "stays, because ", 1))
