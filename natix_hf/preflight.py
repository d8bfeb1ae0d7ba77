"""Checks before any work: settings that do not fit the model, missing labels, a Hub that would refuse the push."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from natix_hf.disk import cache_folders, require_writable, sockets_fit
from natix_hf.errors import UsageError
from natix_hf.provenance.hub import is_repo_id
from natix_hf.recipe import Recipe
from natix_hf.runs.graph import PHASES, Phase
from natix_hf.runs.pins import pinned_model
from natix_hf.runs.trained import other_run
from natix_hf.subnet.official import IMAGE_SIZE, size_line
from natix_hf.terminal import say

SPREAD = (
    "a model that is spread over devices (FSDP, DeepSpeed) is refused, because exact resume and the proof of a merge "
    "need whole weights, and a ViT fits on one device: use accelerate_configs/ddp_2gpu.yaml"
)
_FOR_A_GPU = ("bf16", "tf32")  # fp16 cannot run on a CPU at all
# TrainingArguments need a folder. A check writes nothing there.
_NOWHERE = Path("outputs")


def check_run(recipe: Recipe, wanted: Sequence[int], run_dir: Path | None, trains_here: bool) -> None:
    """Find now what would otherwise fail after hours of decoding and training.

    Args:
        run_dir: The run to continue, with the commits that it has pinned; None for a new run.
        trains_here: Training phases run in this process.

    Raises:
        UsageError: with the key or the phase, and what to do.
    """
    require_gpu(recipe, wanted)
    require_labels(recipe, wanted)
    if any(PHASES[number].trains for number in wanted):
        warn_of_the_size(recipe)
    require_caches(recipe)
    if 4 in wanted:
        require_unlabelled(recipe.phase4.unlabelled)
    if recipe.phase1.teacher is not None and (1 in wanted or (4 in wanted and recipe.phase4.use_labeled_data)):
        from natix_hf.runs.teachers import check_teachers

        check_teachers(recipe, run_dir)
        require_unlabelled(recipe.phase1.distil.unlabelled, "phase1.distil.unlabelled")
    if 2 in wanted:
        for run in recipe.phase2.soup_of:
            other_run(run)
    if 6 in wanted and recipe.data.synthetic_half is not None:
        require_unlabelled([recipe.data.synthetic_half], "data.synthetic_half")
    if trains_here and any(PHASES[number].trains for number in wanted):
        check_trainings(recipe, [PHASES[number] for number in wanted], run_dir)
    if 6 in wanted and recipe.phase6.push:
        from natix_hf.bundle.push import check_push

        check_push(str(recipe.phase6.repo_id), recipe.phase6.tag)
    if 6 in wanted and recipe.phase6.onnx:
        check_onnx_export(recipe)


def warn_of_the_size(recipe: Recipe) -> None:
    """Say before the training that a model for the subnet, which has a hotkey, takes pictures of another size."""
    for_subnet = recipe.phase6.submitted_by is not None and recipe.data.labels.of_subnet
    if for_subnet and recipe.model.image_size != IMAGE_SIZE:
        say(f"warning  {size_line(recipe.model.image_size)}")


def require_gpu(recipe: Recipe, wanted: Sequence[int]) -> None:
    """Raise a `UsageError` if torch cannot use a GPU of this machine, or if there is none and the recipe is for one,
    unless the CPU was asked for. Nobody who pays for a GPU wants to train on the CPU without knowing."""
    from natix_hf.models.device import cpu_was_asked_for, runs_on_cpu, why_no_gpu

    if cpu_was_asked_for() or not runs_on_cpu():
        return
    reason = why_no_gpu()
    if reason is not None:
        raise UsageError(f"{reason}, or run on the CPU with --cpu")
    for phase in (PHASES[number] for number in wanted if PHASES[number].trains):
        fields = recipe.stage(phase.number).training_fields()
        for key in _FOR_A_GPU:
            if fields.get(key):
                raise UsageError(
                    f"phase{phase.number}.{key} is for a GPU, and PyTorch sees none on this machine: take one with a "
                    f"GPU, set phase{phase.number}.{key}=false, or run on the CPU with --cpu"
                )


def require_caches(recipe: Recipe) -> None:
    """Raise a `UsageError` if a cache that the recipe will use cannot be written to, before any library tries.

    A Hub cache that already holds the backbone may be read-only.
    """
    if not sockets_fit():
        variable, folder = cache_folders()["temporary"]
        raise UsageError(
            f"{folder} is too long a path for the sockets of the loader's processes, which would wait for ever: set "
            f"{variable} to a folder with a short path, such as one in your home folder"
        )
    uses = ["temporary", "features"]
    if recipe.data.source is not None or recipe.phase4.unlabelled:
        uses.append("datasets")
    backbone = recipe.model.backbone
    if backbone is not None and is_repo_id(backbone) and not Path(backbone).expanduser().exists():
        if not (cache_folders()["hub"][1] / f"models--{backbone.replace('/', '--')}").is_dir():
            uses.append("hub")
    for line in require_writable(uses):
        raise UsageError(line)


def require_whole_models() -> None:
    """Raise a `UsageError` if accelerate was told to spread the model over devices."""
    if any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM")):
        raise UsageError(SPREAD)


def check_trainings(recipe: Recipe, phases: Sequence[Phase], run_dir: Path | None) -> None:
    """Build the models and settings of training phases without weights, so that transformers refuses bad ones now.

    Args:
        run_dir: The run to continue, with the commits that it has pinned; None for a new run.

    Raises:
        UsageError: with the key and what to do.
    """
    from natix_hf.models.adapters import AUTO, adapter_config
    from natix_hf.models.classifier import check_model, require_answers
    from natix_hf.models.preprocess import make_processor
    from natix_hf.phases.phase4_adapt import check_explora
    from natix_hf.trainers.arguments import check_training, require_checkpointing
    from natix_hf.trainers.bakeoff import entrants_for

    if run_dir is not None:
        recipe = replace(recipe, model=pinned_model(run_dir, recipe.model))
    stages = [recipe.phase1]
    if 4 in [phase.number for phase in phases]:
        check_training(recipe.phase4.training_fields(), _NOWHERE, "phase4")
        stages += [recipe.phase4.supervised] if recipe.phase4.supervised is not None else []
    if 3 in [phase.number for phase in phases]:
        check_training(recipe.phase3.training_fields(), _NOWHERE, "phase3")
    if 1 in [phase.number for phase in phases] and recipe.phase1.profit is not None:
        require_answers(recipe.model, recipe.data.labels)
    model = check_model(recipe.model)
    if 4 in [phase.number for phase in phases]:
        check_explora(recipe, model)
    for stage in stages:
        fields = stage.training_fields()
        check_training(fields, _NOWHERE, stage.where)
        require_checkpointing(fields, model, stage.where)
        if stage.adapter == AUTO:
            entrants_for(model, stage.adapter_options, stage.where)
        elif stage.adapter not in ("none", "full"):
            adapter_config(model, stage.adapter, stage.adapter_options, total_steps=10**6, where=stage.where)
    make_processor(recipe.model)


def check_onnx_export(recipe: Recipe) -> None:
    """Raise a `UsageError` if the model of a recipe cannot be exported to ONNX here."""
    from natix_hf.bundle.onnx_export import check_onnx
    from natix_hf.models.classifier import check_model

    check_onnx(check_model(recipe.model))


def require_unlabelled(sources: Sequence[str], key: str = "phase4.unlabelled") -> None:
    """Raise a `UsageError` if a further source of images is neither on this disk nor the id of a data set."""
    from natix_hf.data.part import SYNTHETIC

    for source in sources:
        if source != SYNTHETIC and not Path(source).expanduser().exists() and not is_repo_id(source):
            raise UsageError(
                f"{key}: there is no folder or file {source} (seen from {Path.cwd()}): check the path, or "
                "name a dataset of the Hub as org/name"
            )


def require_labels(recipe: Recipe, wanted: Sequence[int]) -> None:
    """Raise a `UsageError` if a wanted phase needs labels and the recipe has none."""
    needing = [number for number in wanted if number != 4]
    if recipe.data.source is None and needing:
        raise UsageError(
            f"phase {needing[0]} needs labelled images, but data.source is null: set it, or run phase 4 alone"
        )
