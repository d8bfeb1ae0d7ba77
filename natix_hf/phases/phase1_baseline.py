"""Phase 1, baseline: train a classifier on the original backbone and leave it as a merged candidate."""

from __future__ import annotations

from natix_hf.metrics import select_threshold
from natix_hf.results.answers import leave_candidate
from natix_hf.results.candidate import Candidate
from natix_hf.runs.context import Outcome, PhaseContext


def run(context: PhaseContext) -> Outcome:
    """Leave the candidate and its logits on val_select. Every rank calls it."""
    recipe, candidate = context.recipe, Candidate(context.folder)
    report = leave_candidate(
        candidate,
        context.model,
        recipe.phase1,
        context.rows("train"),
        context.rows("val_select"),
        recipe.data,
        context.checkpoints,
        context.is_main,
    )
    if not context.is_main:
        return Outcome()
    table = candidate.stored_logits("val_select")
    best = select_threshold(table.logits, table.labels, target_prior=recipe.data.target_prior)
    metrics = report | {"candidate_sha256": candidate.sha256, "val_select_mcc_optimistic": best.value}
    kept = f"step {report['kept_step']} of {report['steps']} kept"
    return Outcome(metrics, f"MCC {best.value:.3f} on val_select (optimistic), {kept}")
