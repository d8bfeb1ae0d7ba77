"""Phase 1, baseline: train a classifier on the original backbone and leave it as a merged candidate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from natix_hf.data.asked import Asked
from natix_hf.data.rows import Rows
from natix_hf.metrics import select_threshold
from natix_hf.phases.made_once import made_once
from natix_hf.phases.phase1_folds import answer_out_of_fold, fold_of_each_row
from natix_hf.phases.phase1_seeds import further_seeds, train_seeds
from natix_hf.provenance.files import write_json
from natix_hf.provenance.parts import parts_to_keep
from natix_hf.recipe import Recipe
from natix_hf.results.answers import leave_candidate
from natix_hf.results.candidate import START, Candidate
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.runs.freshness import finished_digest
from natix_hf.runs.graph import PHASES
from natix_hf.runs.inputs import backbone_files, teacher_files
from natix_hf.runs.teachers import distillation_of, require_unseen_start
from natix_hf.runs.trained import MEMBERS

_REPORT, _KEY = "baseline.json", "baseline_key.json"
_FILES = ("model", "logits", "history.json", "plots")


def run(context: PhaseContext) -> Outcome:
    """Leave the candidate and its logits on val_select, and what `folds` and `seeds` ask for. Every rank calls it."""
    recipe, candidate = context.recipe, Candidate(context.folder)
    train, val_select = context.rows("train"), context.ask_to_choose("val_select")
    require_unseen_start(context)
    folds = fold_of_each_row(context, train, val_select) if recipe.phase1.folds is not None else None
    report = _train(context, candidate, train, val_select)
    members = train_seeds(context, train, val_select)
    of_folds, kept_folds = answer_out_of_fold(context, train, val_select, folds) if folds is not None else ({}, [])
    if not context.is_main:
        return Outcome()
    table = candidate.stored_logits("val_select", recipe.data.choice_exam)
    best = select_threshold(table.logits, table.labels, target_prior=recipe.data.target_prior)
    metrics = report | {"candidate_sha256": candidate.sha256, "val_select_mcc_optimistic": best.value} | of_folds
    if members or kept_folds:
        metrics[MEMBERS] = members + kept_folds
    kept = f"step {report['kept_step']} of {report['steps']} kept"
    told = f"MCC {best.value:.3f} on val_select (optimistic), {kept}"
    told += f", {len(members)} more from the same start" if members else ""
    return Outcome(metrics, told + (f", {folds.max() + 1} folds answered" if folds is not None else ""))


def _train(context: PhaseContext, candidate: Candidate, train: Rows, val_select: Asked) -> dict[str, Any]:
    """Leave the candidate, unless an attempt with the same settings but for folds and seeds has already done so."""
    recipe = context.recipe

    def leave() -> dict[str, Any]:
        rest = (recipe.data, context.checkpoints, context.is_main, distillation_of(context, recipe.phase1))
        report = leave_candidate(candidate, context.model, recipe.phase1, train, val_select, *rest)
        if context.is_main:
            write_json(context.folder / _KEY, _key(context))
        return report

    def says_its_start(report: dict[str, Any]) -> bool:
        if START in report or not (recipe.phase1.seeds or recipe.phase1.keep_folds):
            return True
        context.tell("the baseline is of an older version, which recorded no start: it is trained again")
        return False

    return made_once(context, context.folder / _REPORT, _FILES, leave, says_its_start)


def finished_parts(context: PhaseContext) -> list[str]:
    """The candidate and the models of further seeds, with what their training left, if only folds and the number of
    seeds have changed."""
    members = [f"{MEMBERS}/{name}" for name in further_seeds(context.recipe.phase1)]
    return parts_to_keep(context.folder / _KEY, _key(context), (_REPORT, *_FILES, *members))


def _key(context: PhaseContext) -> dict[str, Any]:
    recipe = context.recipe
    alone = replace(Recipe(), data=recipe.data, model=recipe.model, phase1=recipe.phase1.alone)
    return {
        "settings": alone.section_sha256(*PHASES[1].sections),
        "rows": finished_digest(context.run_dir, PHASES[0]),
        "backbone": backbone_files(recipe.model.backbone),
        **({"teacher": taught} if (taught := teacher_files(recipe, context.phase)) else {}),
    }
