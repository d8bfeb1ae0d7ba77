"""Phase 1, baseline: train a classifier on the original backbone and leave it as a merged candidate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accelerate import PartialState

from natix_hf.data.asked import Asked
from natix_hf.data.rows import Rows
from natix_hf.metrics import select_threshold
from natix_hf.phases.phase1_folds import answer_out_of_fold, fold_of_each_row
from natix_hf.provenance.files import write_json
from natix_hf.provenance.parts import parts_to_keep, read_part, write_part
from natix_hf.recipe import Recipe
from natix_hf.results.answers import leave_candidate
from natix_hf.results.candidate import Candidate
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.runs.freshness import finished_digest
from natix_hf.runs.graph import PHASES
from natix_hf.runs.inputs import backbone_files, teacher_files
from natix_hf.runs.teachers import distillation_of

_REPORT, _KEY = "baseline.json", "baseline_key.json"
_FILES = ("model", "logits", "history.json", "plots")


def run(context: PhaseContext) -> Outcome:
    """Leave the candidate and its logits on val_select, and out-of-fold answers if `folds` asks for them. Every rank
    calls it."""
    recipe, candidate = context.recipe, Candidate(context.folder)
    train, val_select = context.rows("train"), context.ask_to_choose("val_select")
    folds = fold_of_each_row(context, train, val_select) if recipe.phase1.folds is not None else None
    report = _train(context, candidate, train, val_select)
    of_folds = answer_out_of_fold(context, train, val_select, folds) if folds is not None else {}
    if not context.is_main:
        return Outcome()
    table = candidate.stored_logits("val_select", recipe.data.choice_exam)
    best = select_threshold(table.logits, table.labels, target_prior=recipe.data.target_prior)
    metrics = report | {"candidate_sha256": candidate.sha256, "val_select_mcc_optimistic": best.value} | of_folds
    kept = f"step {report['kept_step']} of {report['steps']} kept"
    told = f"MCC {best.value:.3f} on val_select (optimistic), {kept}"
    return Outcome(metrics, told + (f", {folds.max() + 1} folds answered" if folds is not None else ""))


def _train(context: PhaseContext, candidate: Candidate, train: Rows, val_select: Asked) -> dict[str, Any]:
    """Leave the candidate, unless an attempt with the same settings but for the folds has already done so."""
    recipe, done = context.recipe, context.folder / _REPORT
    found = read_part(done, context.tell)
    PartialState().wait_for_everyone()  # every rank looks for the report before rank 0 writes it
    if found is not None:
        return found
    rows, distillation = (train, val_select), distillation_of(context, recipe.phase1)
    rest = (recipe.data, context.checkpoints, context.is_main, distillation)
    report = leave_candidate(candidate, context.model, recipe.phase1, *rows, *rest)
    if context.is_main:
        write_json(context.folder / _KEY, _key(context))
        write_part(done, report, _FILES)
    PartialState().wait_for_everyone()
    return report


def finished_parts(context: PhaseContext) -> list[str]:
    """The candidate and what its training left, if nothing but the folds has changed."""
    return parts_to_keep(context.folder / _KEY, _key(context), (_REPORT, *_FILES))


def _key(context: PhaseContext) -> dict[str, Any]:
    recipe = context.recipe
    alone = replace(Recipe(), data=recipe.data, model=recipe.model, phase1=replace(recipe.phase1, folds=None))
    return {
        "settings": alone.section_sha256(*PHASES[1].sections),
        "rows": finished_digest(context.run_dir, PHASES[0]),
        "backbone": backbone_files(recipe.model.backbone),
        **({"teacher": taught} if (taught := teacher_files(recipe, context.phase)) else {}),
    }
