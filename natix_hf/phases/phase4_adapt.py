"""Stage (a) of phase 4: adapt the backbone without labels, merge it, and keep it for as long as it stays valid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from natix_hf.data.asked import ask
from natix_hf.data.frames import LABELLED, open_sources
from natix_hf.data.rows import Rows
from natix_hf.data.stream import Stream
from natix_hf.data.unlabelled import joined, unlabelled_rows
from natix_hf.errors import RecipeError
from natix_hf.models.classifier import build_backbone, build_decoder, save_model
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.models.resolved import resolved_config
from natix_hf.provenance.files import atomic_folder, file_sha256, write_json
from natix_hf.provenance.parts import parts_to_keep, read_part, write_part
from natix_hf.recipe import Recipe
from natix_hf.results import plots
from natix_hf.results.answers import write_history
from natix_hf.runs.context import CHECKPOINTS, PhaseContext
from natix_hf.runs.freshness import finished_digest
from natix_hf.runs.graph import CHOICE, PHASES
from natix_hf.runs.inputs import backbone_files
from natix_hf.runs.pins import pinned_unlabelled
from natix_hf.ssl.objectives import default_objective, takes_decoder, version_of
from natix_hf.terminal import LABEL, tell
from natix_hf.trainers.self_supervised import check_pretraining, pretrain_backbone

BACKBONE = "backbone"
REPORT = "self_supervised.json"
UNLABELLED = "unlabelled.json"
_KEY = "self_supervised_key.json"
_HISTORY = "self_supervised_history.json"
_CURVE = "plots/self_supervised.png"
_SAMPLE = 256  # frames of a stream on which backbones are compared; they are kept in memory
_TRAINING = f"{CHECKPOINTS}/self_supervised"


def check_explora(recipe: Recipe, model: PreTrainedModel) -> None:
    """Refuse settings that are no ExPLoRA or do not fit the model, before any work. The model needs no weights.

    Raises:
        RecipeError: with the keys and what to do.
    """
    config = recipe.phase4
    if config.trainable != "all" and recipe.model.backbone is None:
        raise RecipeError(
            f"phase4.trainable={config.trainable} adapts a pretrained backbone, but model.backbone is null: "
            "set it, or set phase4.trainable=all for plain self-supervised pre-training"
        )
    if recipe.phase1.profit is not None and config.use_labeled_data and config.supervised is None:
        raise RecipeError(
            "phase1.profit continues a trained classifier, and phase 4 puts a fresh classifier layer on the adapted "
            "backbone: give phase4.supervised settings of its own, or set phase4.use_labeled_data=false"
        )
    backbone: Any = model.base_model
    check_pretraining(backbone, config, recipe.model.image_size)
    if recipe.data.source is None and (config.use_labeled_data or not config.unlabelled):
        raise RecipeError(
            "data.source is null, so there are no labels: set phase4.use_labeled_data=false and name sources of "
            "images in phase4.unlabelled"
        )


def adapted_model(run_dir: Path, model: ModelConfig) -> ModelConfig:
    """The model of a recipe, from the backbone that phase 4 has adapted."""
    return replace(model, backbone=str(run_dir / PHASES[4].folder / BACKBONE), revision=None)


def adapt_backbone(context: PhaseContext) -> dict[str, Any]:
    """Run stage (a), unless an interrupted attempt with the same settings has finished it. It leaves the merged
    backbone."""
    recipe, config = context.recipe, context.recipe.phase4
    train = context.rows("train")
    labelled = config.probe_steps > 0 and len(train) > 0  # only probes read labels
    probe = (ask(train, recipe.data.choice_exam), context.ask_to_choose("val_select")) if labelled else None
    done, weights = context.folder / REPORT, context.folder / BACKBONE / "model.safetensors"
    found = read_part(done, context.tell)
    PartialState().wait_for_everyone()  # every rank looks for the report before rank 0 writes it
    if found is not None:
        return found
    if context.is_main:
        write_json(context.folder / _KEY, _key(context))
    commits = {source: pinned_unlabelled(context.run_dir, source) for source in config.unlabelled}
    images, stream, unlabelled = (_streamed if config.stream else _stored)(context, train, commits)
    processor = make_processor(context.model)

    def save(backbone: PreTrainedModel) -> Path:
        with atomic_folder(context.folder / BACKBONE) as temporary:
            save_model(temporary, backbone, processor)
        return context.folder / BACKBONE

    report = pretrain_backbone(
        build_backbone(context.model, seed=config.seed),
        processor,
        images,
        probe,
        config,
        recipe.data.augment,
        save,
        context.folder / _TRAINING,
        build_decoder(context.model) if takes_decoder(config.objective) else None,
        stream,
        recipe.data.views_on,
    )
    if stream is not None:
        unlabelled |= _told_stream(report.pop("streamed"), config.per_device_train_batch_size, context.is_main)
    if context.is_main:
        history = write_history(context.folder / _HISTORY, report.pop("history"))
        plots.self_supervised(context.folder / _CURVE, history, report["best_step"])
        write_json(context.folder / UNLABELLED, unlabelled)
        facts = {"trainable": config.trainable, **_counts(unlabelled)}
        report = facts | report | {"backbone_sha256": file_sha256(weights)}
        write_part(done, report, (BACKBONE, UNLABELLED, _HISTORY, _CURVE))
    PartialState().wait_for_everyone()  # the other ranks read the backbone that rank 0 writes
    return report


def _stored(context: PhaseContext, train: Rows, commits: dict[str, str | None]) -> tuple[Rows, None, dict[str, Any]]:
    """Decode all images once: the rows to train on, and what `unlabelled.json` says of them."""
    config = context.recipe.phase4
    with PartialState().main_process_first():  # the others read what rank 0 has decoded
        parts, left_out = unlabelled_rows(config.unlabelled, context.recipe.data, context.load_data().splits, commits)
    if left_out and context.is_main:
        row, why = next(iter(left_out.items()))
        tell(f"{' ' * LABEL}{len(left_out)} unlabelled rows left out, the first is {row} ({why})", hang=LABEL)
    images = joined([part for part in (train, *parts) if len(part)])
    return images, None, {"rows": [row_id for part in parts for row_id in part.ids], "left_out": left_out}


def _streamed(
    context: PhaseContext, train: Rows, commits: dict[str, str | None]
) -> tuple[Rows, Stream, dict[str, Any]]:
    """Open the sources, and with them the labelled train rows: a sample, the stream, and what it was made of."""
    recipe, config = context.recipe, context.recipe.phase4
    shards, others = open_sources(config.unlabelled, recipe.data, commits, train)
    if context.is_main:
        for source, count in others.items():
            if count:
                tell(
                    f"{' ' * LABEL}{count} files of {source} are neither pictures nor tar shards: left out", hang=LABEL
                )
    stream = Stream(shards, recipe.data, context.load_data().splits, config.shuffle_buffer, config.seed)
    facts = {"streamed": True, "sources": config.unlabelled, "shards": len(shards), "other_files": others}
    return stream.sample(min(config.probe_rows, _SAMPLE)), stream, facts


def _told_stream(streamed: dict[str, Any], batch_size: int, is_main: bool) -> dict[str, Any]:
    """What `unlabelled.json` says of a stream after the training. A person is told what was left out."""
    reasons, left_out = streamed["reasons"], streamed["left_out"]
    if reasons and is_main:
        row, why = next(iter(reasons.items()))
        count = sum(left_out.values())
        tell(f"{' ' * LABEL}frames left out: {count:,}, the first is {row} ({why})", hang=LABEL)
    views = streamed["batches"] * batch_size
    return {"frames": streamed["seen"], "views": views, "left_out_frames": left_out, "left_out": reasons}


def _counts(unlabelled: dict[str, Any]) -> dict[str, Any]:
    """The figures of `unlabelled.json` for the manifest."""
    if "rows" in unlabelled:
        rows, left_out = len(unlabelled["rows"]), len(unlabelled["left_out"])
        return {"unlabelled": rows, "unlabelled_left_out": left_out}
    return {
        "unlabelled": sum(count for source, count in unlabelled["frames"].items() if source != LABELLED),
        "unlabelled_left_out": sum(unlabelled["left_out_frames"].values()),
        "streamed": True,
        "streamed_views": unlabelled["views"],
    }


def finished_parts(context: PhaseContext) -> list[str]:
    """The files that a new attempt keeps: all of stage (a), if nothing that it depends on has changed.

    Changes that concern stage (b) alone (phase 1 and its candidate, `supervised`) do not matter.
    """
    names = (REPORT, BACKBONE, UNLABELLED, _HISTORY, _CURVE, _TRAINING)
    return parts_to_keep(context.folder / _KEY, _key(context), names)


def _key(context: PhaseContext) -> dict[str, Any]:
    recipe = context.recipe
    alone = replace(recipe, phase4=replace(recipe.phase4, supervised=None, use_labeled_data=False))
    name = recipe.phase4.objective or default_objective(resolved_config(context.model, recipe.data.labels).model_type)
    version = version_of(name)
    return {
        "settings": alone.section_sha256("model", "phase4", *(CHOICE if recipe.phase4.probe_steps > 0 else ())),
        "rows": finished_digest(context.run_dir, PHASES[0]),
        "backbone": backbone_files(recipe.model.backbone),
    } | ({"objective_version": version} if version > 1 else {})
