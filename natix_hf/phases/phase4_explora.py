"""Phase 4, ExPLoRA: the backbone adapted without labels, then the supervised stage on it and on the stock one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedModel

from natix_hf.data.unlabelled import joined, unlabelled_rows
from natix_hf.errors import RecipeError
from natix_hf.metrics import select_threshold
from natix_hf.models.classifier import build_backbone, build_classifier, build_decoder
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.phases import plots
from natix_hf.phases.candidate import Candidate, save_candidate, store_logits, write_history
from natix_hf.phases.context import CHECKPOINTS, PhaseContext, finished_digest
from natix_hf.phases.graph import PHASES
from natix_hf.phases.phase2_threshold import choose_champion
from natix_hf.phases.pins import pinned_unlabelled
from natix_hf.provenance.files import atomic_folder, file_sha256, read_json, write_json
from natix_hf.provenance.manifest import MANIFEST, manifest_problems, read_manifest
from natix_hf.recipe import Recipe
from natix_hf.reporting import say
from natix_hf.trainers.config import SupervisedConfig
from natix_hf.trainers.self_supervised import check_pretraining, pretrain_backbone
from natix_hf.trainers.supervised import train_classifier

BACKBONE = "backbone"
CONTROL = "control"
REPORT = "self_supervised.json"
STAGE = "supervised.json"
UNLABELLED = "unlabelled.json"
_KEY = "self_supervised_key.json"
_HISTORY = "self_supervised_history.json"
_CURVE = "plots/self_supervised.png"
_TRAINING = f"{CHECKPOINTS}/self_supervised"
_RESAMPLES = 2000  # of the paired bootstrap against the control


def run(context: PhaseContext) -> dict[str, Any]:
    recipe = context.recipe
    report = _adapt(context)
    if not recipe.phase4.use_labeled_data:
        return report
    clear_device_cache(garbage_collection=True)  # the next model needs what the last one held of the GPU
    stage = recipe.phase4.supervised or recipe.phase1
    adapted = replace(recipe.model, backbone=str(context.folder / BACKBONE), revision=None)
    say("phase 4: the supervised stage on the adapted backbone")
    report["supervised"] = _train(context, context.folder, adapted, stage)
    control = _control_of_phase1(context, stage)
    if control is None:
        say("phase 4: the same stage on the stock backbone, as control")
        clear_device_cache(garbage_collection=True)
        control = Candidate(CONTROL, context.folder / CONTROL)
        report["control"] = {"from": CONTROL} | _train(context, control.folder, context.model, stage)
    else:
        report["control"] = {"from": control.name}
    if context.is_main:
        report["against_control"] = _compare(context, Candidate(context.folder.name, context.folder), control)
    return report


def finished_parts(context: PhaseContext) -> list[str]:
    """What a new attempt keeps of the last one: all of stage (a), where nothing that it depends on has changed. What
    only stage (b) depends on (phase 1 and its candidate, `supervised`) may have."""
    path, finished = context.folder / _KEY, (context.folder / MANIFEST).is_file()
    if not path.is_file() or read_json(path) != _key(context) or (finished and manifest_problems(context.folder)):
        return []
    return [_KEY, REPORT, BACKBONE, UNLABELLED, _HISTORY, _CURVE, _TRAINING]


def _key(context: PhaseContext) -> dict[str, Any]:
    recipe = context.recipe
    alone = replace(recipe, phase4=replace(recipe.phase4, supervised=None, use_labeled_data=False))
    return {
        "settings": alone.section_sha256("model", "phase4"),
        "rows": finished_digest(context.run_dir, PHASES[0]),
    }


def check_explora(recipe: Recipe, model: PreTrainedModel) -> None:
    """Refuses, before any work, what would not be ExPLoRA or does not fit the model, which may be without weights."""
    config = recipe.phase4
    if config.trainable != "all" and recipe.model.backbone is None:
        raise RecipeError(
            f"phase4.trainable={config.trainable} adapts a pretrained backbone, and model.backbone names none: "
            "name one, or set phase4.trainable=all for plain self-supervised pre-training"
        )
    backbone: Any = model.base_model
    check_pretraining(backbone, config, recipe.model.image_size)
    if recipe.data.source is None and (config.use_labeled_data or not config.unlabelled):
        raise RecipeError(
            "data.source is null, so there are no labels: set phase4.use_labeled_data=false and name images in "
            "phase4.unlabelled"
        )


def _adapt(context: PhaseContext) -> dict[str, Any]:
    """Stage (a), unless a cut-off attempt with the same settings has finished it: leaves the merged backbone."""
    recipe, config = context.recipe, context.recipe.phase4
    train = context.rows("train")
    labelled = config.probe_steps > 0 and len(train) > 0  # without probes no label is read
    probe = (train, context.rows("val_select")) if labelled else None
    done, weights = context.folder / REPORT, context.folder / BACKBONE / "model.safetensors"
    found: dict[str, Any] = read_json(done) if done.is_file() else {}
    finished = weights.is_file() and found.get("backbone_sha256") == file_sha256(weights)
    PartialState().wait_for_everyone()  # no rank writes the report before every rank has looked for it
    if finished:
        return found
    if context.is_main:
        write_json(context.folder / _KEY, _key(context))
    with PartialState().main_process_first():  # the others read what rank 0 has decoded
        commits = {source: pinned_unlabelled(context.run_dir, source) for source in config.unlabelled}
        parts, left_out = unlabelled_rows(config.unlabelled, recipe.data, context.load_data().splits, commits)
    if left_out and context.is_main:
        say(f"phase 4: {len(left_out)} unlabelled rows left out, the first: {next(iter(left_out.items()))}")
    processor = make_processor(context.model)

    def save(backbone: PreTrainedModel) -> Path:
        with atomic_folder(context.folder / BACKBONE) as temporary:
            backbone.save_pretrained(temporary)
            processor.save_pretrained(temporary)
        return context.folder / BACKBONE

    report = pretrain_backbone(
        build_backbone(context.model, seed=config.seed),
        processor,
        joined([part for part in (train, *parts) if len(part)]),
        probe,
        config,
        recipe.data.augment,
        save,
        context.folder / _TRAINING,
        None if config.objective == "dinov2" else build_decoder(context.model),
    )
    if context.is_main:
        history = write_history(context.folder / _HISTORY, report.pop("history"))
        plots.self_supervised(context.folder / _CURVE, history, report["best_step"])
        read = [row_id for part in parts for row_id in part.ids]
        write_json(context.folder / UNLABELLED, {"rows": read, "left_out": left_out})
        facts = {"trainable": config.trainable, "unlabelled": len(read), "unlabelled_left_out": len(left_out)}
        report = facts | report | {"backbone_sha256": file_sha256(weights)}
        write_json(done, report)
    PartialState().wait_for_everyone()  # the other ranks read the backbone that rank 0 has merged and written
    return report


def _train(context: PhaseContext, folder: Path, model_config: ModelConfig, stage: SupervisedConfig) -> dict[str, Any]:
    """The supervised stage: leaves a candidate in `folder`, unless a cut-off attempt has done so."""
    recipe = context.recipe
    done = folder / STAGE
    finished = done.is_file()
    PartialState().wait_for_everyone()
    if finished:
        found: dict[str, Any] = read_json(done)
        return found
    train, val_select = context.rows("train"), context.rows("val_select")
    processor = make_processor(model_config)
    report = train_classifier(
        build_classifier(model_config, seed=stage.seed),
        processor,
        train,
        val_select,
        stage,
        recipe.data.augment,
        recipe.data.target_prior,
        context.folder / CHECKPOINTS / folder.name,
        save=lambda merged: save_candidate(folder, merged, processor).model,
    )
    history = report.pop("history")
    if context.is_main:
        store_logits(Candidate(folder.name, folder), val_select)
        plots.training(folder / "plots" / "training.png", write_history(folder / "history.json", history))
        write_json(done, report)
    PartialState().wait_for_everyone()
    return report


def _control_of_phase1(context: PhaseContext, stage: SupervisedConfig) -> Candidate | None:
    """The baseline, where it is what the control would be: the same stage and seed on the same stock backbone."""
    folder, recipe = context.upstream(1), context.recipe
    if replace(stage, where="phase1") != recipe.phase1 or not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    as_now = manifest["section_sha256"] == recipe.section_sha256(*PHASES[1].sections)
    as_many = manifest["metrics"]["world_size"] == PartialState().num_processes  # else another global batch
    return Candidate(folder.name, folder) if as_now and as_many else None


def _compare(context: PhaseContext, adapted: Candidate, control: Candidate) -> dict[str, Any]:
    """MCC on val_select of both, each at its own best threshold (optimistic), and their paired difference."""
    prior = context.recipe.data.target_prior
    tables = {candidate.name: candidate.stored_logits("val_select") for candidate in (control, adapted)}
    best = {name: select_threshold(t.logits, t.labels, target_prior=prior) for name, t in tables.items()}
    thresholds = {name: chosen.threshold for name, chosen in best.items()}
    _, [comparison] = choose_champion(tables, thresholds, prior, _RESAMPLES)
    figures = {
        "val_select_mcc_optimistic": best[adapted.name].value,
        "control_mcc_optimistic": best[control.name].value,
    }
    return figures | {"mcc_gain": comparison["mcc_gain"]}
