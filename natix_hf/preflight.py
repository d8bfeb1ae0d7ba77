"""What can be refused before any work: settings that do not fit the model, missing labels, a Hub that says no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from natix_hf.errors import UsageError
from natix_hf.recipe import Recipe
from natix_hf.runs.graph import PHASES, Phase
from natix_hf.runs.pins import pinned_model

# TrainingArguments want a folder; nothing is written there by a check.
_NOWHERE = Path("outputs")


def check_run(recipe: Recipe, wanted: Sequence[int], run_dir: Path | None, trains_here: bool) -> None:
    """Refuses what would fail later, after hours of decoding and training.

    Args:
        run_dir: of the run that goes on, with the commits that it has pinned; None: a new one.
        trains_here: training phases run in this process.

    Raises:
        UsageError: with the key or the phase, and what to do.
    """
    require_labels(recipe, wanted)
    if trains_here and any(PHASES[number].trains for number in wanted):
        check_trainings(recipe, [PHASES[number] for number in wanted], run_dir)
    if 6 in wanted and recipe.phase6.push:
        from natix_hf.bundle.push import check_push

        check_push(str(recipe.phase6.repo_id), recipe.phase6.tag)
    if 6 in wanted and recipe.phase6.onnx:
        check_onnx_export(recipe)


def check_trainings(recipe: Recipe, phases: Sequence[Phase], run_dir: Path | None) -> None:
    """Lets transformers refuse model and settings before any work begins, not after every image was decoded.

    Args:
        run_dir: of the run that goes on, with the commits that it has pinned; None: a new one.
    """
    from natix_hf.models.adapters import AUTO, adapter_config
    from natix_hf.models.classifier import check_model
    from natix_hf.models.preprocess import make_processor
    from natix_hf.phases.phase4_adapt import check_explora
    from natix_hf.trainers.arguments import check_training
    from natix_hf.trainers.bakeoff import entrants_for

    if run_dir is not None:
        recipe = replace(recipe, model=pinned_model(run_dir, recipe.model))
    stages = [recipe.phase1]
    if 4 in [phase.number for phase in phases]:
        check_training(recipe.phase4.training_fields(), _NOWHERE, "phase4")
        stages += [recipe.phase4.supervised] if recipe.phase4.supervised is not None else []
    if 3 in [phase.number for phase in phases]:
        check_training(recipe.phase3.training_fields(), _NOWHERE, "phase3")
    model = check_model(recipe.model)
    if 4 in [phase.number for phase in phases]:
        check_explora(recipe, model)
    for stage in stages:
        check_training(stage.training_fields(), _NOWHERE, stage.where)
        if stage.adapter == AUTO:
            entrants_for(model, stage.adapter_options, stage.where)
        elif stage.adapter not in ("none", "full"):
            adapter_config(model, stage.adapter, stage.adapter_options, total_steps=10**6, where=stage.where)
    make_processor(recipe.model)


def check_onnx_export(recipe: Recipe) -> None:
    from natix_hf.bundle.onnx_export import check_onnx
    from natix_hf.models.classifier import check_model

    check_onnx(check_model(recipe.model))


def require_labels(recipe: Recipe, wanted: Sequence[int]) -> None:
    needing = [number for number in wanted if number != 4]
    if recipe.data.source is None and needing:
        raise UsageError(f"phase {needing[0]} needs labelled images, and data.source is null: only phase 4 does not")
