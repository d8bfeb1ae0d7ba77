"""Phase 4, ExPLoRA: adapt the backbone without labels, then run the supervised stage on it and on the original one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache

from natix_hf.data.config import DataConfig
from natix_hf.metrics import select_threshold
from natix_hf.models.config import ModelConfig
from natix_hf.phases.made_once import made_once
from natix_hf.phases.phase4_adapt import adapt_backbone, adapted_model
from natix_hf.phases.phase4_adapt import finished_parts as finished_parts
from natix_hf.provenance.manifest import read_manifest
from natix_hf.provenance.stored import to_json
from natix_hf.results.answers import leave_candidate
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import choose_champion
from natix_hf.results.figures import Gain
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.runs.graph import PHASES
from natix_hf.runs.inputs import backbone_files, teacher_files
from natix_hf.runs.teachers import distillation_of, require_unseen_start
from natix_hf.terminal import LABEL, tell
from natix_hf.trainers.supervised_config import SupervisedConfig

CONTROL = "control"
_STAGE = "supervised.json"
_RESAMPLES = 2000  # of the paired bootstrap of the gain over the control


def run(context: PhaseContext) -> Outcome:
    """Leave the adapted backbone and, if labels are used, a candidate and its control. Every rank calls it."""
    recipe = context.recipe
    if recipe.phase4.use_labeled_data:
        require_unseen_start(context)
    report = adapt_backbone(context)
    if not recipe.phase4.use_labeled_data:
        return Outcome(report, _told(report)) if context.is_main else Outcome()
    stage, candidate = recipe.phase4.supervised or recipe.phase1, Candidate(context.folder)
    adapted = adapted_model(context.run_dir, recipe.model)
    if context.is_main:
        tell(f"{' ' * LABEL}{_told(report)}", hang=LABEL)
        tell(f"{' ' * LABEL}training the classifier on the adapted backbone")
    report["supervised"] = _train(context, candidate, adapted, stage)
    control = _control_of_phase1(context, stage)
    if control is None:
        if context.is_main:
            tell(f"{' ' * LABEL}training the control: the same classifier on the original backbone")
        control = Candidate(context.folder / CONTROL)
        report["control"] = {"from": CONTROL} | _train(context, control, context.model, stage)
    else:
        report["control"] = {"from": control.name}
    if not context.is_main:
        return Outcome()
    report["against_control"] = against = _compare(candidate, control, recipe.data)
    gain = f"gain {Gain(**against['mcc_gain']).told}"
    told = f"MCC {against['val_select_mcc_optimistic']:.3f} on val_select (optimistic), {gain} over the control"
    return Outcome(report, told)


def _told(report: dict[str, Any]) -> str:
    before, after = report["score_before"], report["best_score"]
    probes = (
        f", probe AUROC {before:.3f} before, {after:.3f} after" if before is not None and after is not None else ""
    )
    return f"backbone adapted on {report['images']:,} images, step {report['best_step']} kept{probes}"


def _train(context: PhaseContext, candidate: Candidate, model: ModelConfig, stage: SupervisedConfig) -> dict[str, Any]:
    """Run the supervised stage and leave a candidate, unless an interrupted attempt has already done so."""

    def leave() -> dict[str, Any]:
        clear_device_cache(garbage_collection=True)  # the next model needs the GPU memory of the last one
        train, val_select = context.rows("train"), context.ask_to_choose("val_select")
        checkpoints = context.checkpoints / candidate.name
        rest = (context.recipe.data, checkpoints, context.is_main, distillation_of(context, stage))
        return leave_candidate(candidate, model, stage, train, val_select, *rest)

    files = ("model", "logits", "history.json", "plots/training.png")
    return made_once(context, candidate.folder / _STAGE, files, leave)


def _control_of_phase1(context: PhaseContext, stage: SupervisedConfig) -> Candidate | None:
    """The baseline of phase 1, if it is what the control would be: same stage, same seed, same original backbone."""
    folder, recipe = context.finished(1), context.recipe
    if folder is None or replace(stage.alone, where="phase1") != recipe.phase1.alone:
        return None
    manifest = read_manifest(folder)
    as_now = manifest["section_sha256"] == recipe.section_sha256(*PHASES[1].sections)
    as_now &= manifest.get("backbone", {}) == backbone_files(recipe.model.backbone)
    as_now &= manifest.get("teacher", {}) == teacher_files(recipe, PHASES[1])
    as_many = manifest["metrics"]["world_size"] == PartialState().num_processes  # the same global batch
    return Candidate(folder) if as_now and as_many else None


def _compare(adapted: Candidate, control: Candidate, data: DataConfig) -> dict[str, Any]:
    """Compare two candidates on val_select: the MCC of each at its best threshold (optimistic) and the paired gain."""
    prior, exam = data.target_prior, data.choice_exam
    tables = {candidate.name: candidate.stored_logits("val_select", exam) for candidate in (control, adapted)}
    best = {name: select_threshold(t.logits, t.labels, target_prior=prior) for name, t in tables.items()}
    thresholds = {name: chosen.threshold for name, chosen in best.items()}
    _, [comparison] = choose_champion(tables, thresholds, prior, _RESAMPLES)
    return {
        "val_select_mcc_optimistic": best[adapted.name].value,
        "control_mcc_optimistic": best[control.name].value,
        "mcc_gain": to_json(comparison.mcc_gain),
    }
