"""Phase 3, gate: a learned confidence, kept only where it beats the margin on rows of val_select it has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
from accelerate import PartialState

from natix_hf.metrics import paired_selective_difference, prior_weights, risk_coverage
from natix_hf.models.gate import GATE, gate_inputs, save_gate
from natix_hf.phases import plots
from natix_hf.phases.candidate import Candidate, compute_answers
from natix_hf.phases.context import PhaseContext
from natix_hf.phases.phase2_threshold import read_decision, select_logits
from natix_hf.provenance.files import atomic_file, file_sha256, write_json
from natix_hf.trainers.gate import cross_fit, gate_targets, train_gate

GATE_REPORT = "gate.json"


def run(context: PhaseContext) -> dict[str, Any]:
    config, prior = context.recipe.phase3, context.recipe.data.target_prior
    decision = read_decision(context)
    champion = Candidate(decision["champion"], context.run_dir / decision["champion"])
    rows, exam = context.rows("val_select"), context.recipe.data.drawn_exam
    table = select_logits(context.upstream(2), champion, exam)
    threshold = decision["threshold_logit"]
    wrong = ((table.logits > threshold) != (table.labels == 1)).astype(np.int64)
    report: dict[str, Any] = {
        "kind": "margin",
        "method": config.method,
        "candidate_sha256": table.candidate_sha256,
        "wrong_rows": int(wrong.sum()),
    }
    groups_wrong = len(np.unique(table.groups[wrong == 1]))
    if groups_wrong < config.folds:
        reason = f"wrong answers in {groups_wrong} groups: too few for {config.folds} folds, so the margin stays"
        return _write(context, report | {"reason": reason})
    features = compute_answers(champion, rows, exam)[1]
    inputs = gate_inputs(features, table.logits, threshold)
    targets = gate_targets(config.method, table.logits, table.labels, threshold)
    learned = cross_fit(inputs, targets, wrong, table.groups, config)
    margin = np.abs(table.logits - threshold)
    weights = prior_weights(table.labels, prior)
    compared = paired_selective_difference(
        margin, learned, wrong, table.labels, table.groups, weights, config.n_resamples
    )
    gate = train_gate(inputs, targets, config)  # on all of val_select, for the answers to come
    wins = compared["aurc"]["high"] < 0
    report |= {"compared": {name: _named(facts) for name, facts in compared.items()}, "folds": config.folds}
    report["reason"] = (
        f"the learned gate's AURC is lower, {compared['aurc']['b']:.4f} against {compared['aurc']['a']:.4f}"
        if wins
        else "the learned gate does not beat the margin beyond doubt, so the margin stays"
    )
    if context.is_main:
        curves = {
            name: risk_coverage(confidence, wrong, weights)[:2]
            for name, confidence in {"margin": margin, "learned gate, cross-fitted": learned}.items()
        }
        plots.risk_coverage(context.folder / "plots" / "gate.png", curves, "Wrong answers on val_select, by gate")
        if wins:
            with atomic_file(context.folder / GATE) as temporary:
                save_gate(temporary, gate)
            report |= {"kind": "learned", "gate_sha256": file_sha256(context.folder / GATE)}
    PartialState().wait_for_everyone()
    return _write(context, report)


def _named(facts: dict[str, float]) -> dict[str, float]:
    return {"margin": facts["a"], "learned": facts["b"]} | {key: facts[key] for key in ("difference", "low", "high")}


def _write(context: PhaseContext, report: dict[str, Any]) -> dict[str, Any]:
    if context.is_main:
        write_json(context.folder / GATE_REPORT, report)
    return report
