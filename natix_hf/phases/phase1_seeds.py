"""The further models of phase 1: the same start as the baseline's, trained with other seeds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from accelerate.utils.memory import clear_device_cache

from natix_hf.data.asked import Asked
from natix_hf.data.rows import Rows
from natix_hf.metrics import select_threshold
from natix_hf.phases.made_once import made_once
from natix_hf.results.answers import leave_candidate
from natix_hf.results.candidate import START, Candidate
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.teachers import distillation_of
from natix_hf.runs.trained import MEMBERS
from natix_hf.trainers.supervised_config import SupervisedConfig

MEMBER = "member.json"
MEMBER_FILES = ("model", "logits", "history.json", "plots")


def further_seeds(stage: SupervisedConfig) -> dict[str, int]:
    """The seeds of the further models, by the name of the model."""
    return {f"seed-{seed}": seed for seed in range(stage.seed + 1, stage.seed + (stage.seeds or 1))}


def train_seeds(context: PhaseContext, train: Rows, val_select: Asked) -> list[dict[str, Any]]:
    """Train the further models and leave each as a candidate is left. Every rank calls it.

    An interrupted attempt continues with the model, and the checkpoint, where it stopped.

    Returns:
        Figures of each for the manifest.
    """
    stage, seeds, reports = context.recipe.phase1, further_seeds(context.recipe.phase1), []
    for number, (name, seed) in enumerate(seeds.items(), start=2):
        candidate = Candidate(context.folder / MEMBERS / name)
        told = f"model {number} of {len(seeds) + 1}: training from the same start with seed {seed}"
        leave = partial(_leave, context, candidate, replace(stage.alone, seed=seed), train, val_select, told)
        report = made_once(context, candidate.folder / MEMBER, MEMBER_FILES, leave)
        if context.is_main:
            reports.append({"seed": seed} | member_figures(context, candidate, report))
    return reports


def _leave(
    context: PhaseContext, candidate: Candidate, stage: SupervisedConfig, train: Rows, val_select: Asked, told: str
) -> dict[str, Any]:
    context.tell(told)
    clear_device_cache(garbage_collection=True)  # the next model needs the GPU memory of the last one
    recipe, checkpoints = context.recipe, context.checkpoints / candidate.name
    rest = (recipe.data, checkpoints, context.is_main, distillation_of(context, stage), recipe.phase1.seed)
    return leave_candidate(candidate, context.model, stage, train, val_select, *rest)


def member_figures(context: PhaseContext, candidate: Candidate, report: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a model that a soup may be made of."""
    data = context.recipe.data
    table = candidate.stored_logits("val_select", data.choice_exam)
    best = select_threshold(table.logits, table.labels, target_prior=data.target_prior)
    return {
        "name": candidate.name,
        START: report[START],
        "candidate_sha256": candidate.sha256,
        "val_select_mcc_optimistic": best.value,
        "kept_step": report["kept_step"],
        "steps": report["steps"],
    }
