"""Phase 1, baseline: a classifier on the stock backbone, saved as a merged candidate with its val_select logits."""

from __future__ import annotations

from typing import Any

from natix_hf.metrics import select_threshold
from natix_hf.models.classifier import build_classifier
from natix_hf.models.preprocess import make_processor
from natix_hf.phases import plots
from natix_hf.phases.candidate import Candidate, save_candidate, store_logits, write_history
from natix_hf.phases.context import CHECKPOINTS, PhaseContext
from natix_hf.trainers.supervised import train_classifier


def run(context: PhaseContext) -> dict[str, Any]:
    recipe = context.recipe
    config, prior = recipe.phase1, recipe.data.target_prior
    train, val_select = context.rows("train"), context.rows("val_select")
    model = build_classifier(context.model, seed=config.seed)
    processor = make_processor(context.model)
    parameters = sum(p.numel() for p in model.parameters())
    report = train_classifier(
        model,
        processor,
        train,
        val_select,
        config,
        recipe.data.augment,
        prior,
        context.folder / CHECKPOINTS,
        save=lambda merged: save_candidate(context.folder, merged, processor).model,
    )
    if not context.is_main:
        return {}
    candidate = Candidate(context.folder.name, context.folder)
    table = store_logits(candidate, val_select)
    history = write_history(context.folder / "history.json", report.pop("history"))
    plots.training(context.folder / "plots" / "training.png", history)
    best = select_threshold(table.logits, table.labels, target_prior=prior)
    return report | {
        "candidate_sha256": candidate.sha256,
        "parameters": parameters,
        "val_select_mcc_optimistic": best.value,
    }
