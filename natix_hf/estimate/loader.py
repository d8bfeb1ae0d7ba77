"""How many pictures the processes of a loader make, by the speed of a core."""

from __future__ import annotations

from natix_hf.data import decode, exam_cache
from natix_hf.estimate.pictures import CoreRates
from natix_hf.estimate.work import VIEWS_TO_CHOOSE, Work
from natix_hf.recipe import Recipe
from natix_hf.trainers.config import TrainingSection


def stage_of(recipe: Recipe, name: str) -> TrainingSection:
    """The section of a stage: `phase1`, `phase4` or `phase4.supervised`."""
    if name == "phase4":
        return recipe.phase4
    return recipe.phase1 if name == "phase1" else recipe.phase4.supervised or recipe.phase1


def section_named(recipe: Recipe, stage: str) -> str:
    """The section in which a stage's keys are set: phase 4's classifier is trained as phase 1 where it has none."""
    return "phase1" if stage == "phase4.supervised" and recipe.phase4.supervised is None else stage


def workers_of(recipe: Recipe, stage: str, devices: int, cores: int) -> float:
    """Cores that make pictures for one device: its workers, as far as there are cores for them."""
    workers: int = stage_of(recipe, stage).training_fields().get("dataloader_num_workers", 0)
    return min(max(1, workers), cores / devices)


def loader_s(part: Work, recipe: Recipe, rates: CoreRates, devices: int, cores: int) -> float:
    """Seconds in which the loaders make the pictures of one optimizer step."""
    rate = rates.objective if part.model == "objective" else rates.train
    return part.pictures / devices / (rate * workers_of(recipe, part.stage, devices, cores))


def processes(part: Work, cores: int) -> int:
    """Processes that decode pictures or draw exam views for the first time: only many rows are divided."""
    rows = part.amount // (VIEWS_TO_CHOOSE if part.kind == "draw" else 1)
    least = exam_cache.ROWS_A_WORKER if part.kind == "draw" else decode.ROWS_A_WORKER
    return max(1, min(cores, rows // least))
