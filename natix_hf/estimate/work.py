"""What the phases of a recipe compute: pictures to decode, optimizer steps, pictures to score and to answer.

`smoke` multiplies these amounts with what this machine needs for each, `estimate` with what a GPU would need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from natix_hf.data.config import DataConfig
from natix_hf.recipe import Recipe
from natix_hf.results.soup import WISE_SHARES
from natix_hf.runs.graph import CANDIDATE_PHASES
from natix_hf.trainers.config import TrainingSection, count_steps
from natix_hf.trainers.supervised_config import SupervisedConfig

# decode: a picture for the first time; draw: an exam view that is kept; train: an optimizer step; score: one score of
# a model in training; save: a checkpoint; features, answer: a picture or view in full float32; gate: a step of a gate.
Kind = Literal["decode", "draw", "train", "score", "save", "features", "answer", "gate"]
# The model that computes: a classifier, the self-supervised objective, or a classifier layer on features.
Model = Literal["classifier", "objective", "head", ""]
VIEWS_TO_CHOOSE = 4  # of each picture, where candidates are chosen by the exam: one at each level
_MOST_EVALS = 10**6


@dataclass(frozen=True)
class Counts:
    """The pictures of each role that a recipe reads, and further ones without labels."""

    train: int
    val_select: int
    val_calib: int
    test: int
    unlabelled: int = 0

    @property
    def labelled(self) -> int:
        """Pictures of `data.source`."""
        return self.train + self.val_select + self.val_calib + self.test


@dataclass(frozen=True)
class Work:
    """So many units of one kind in one phase.

    Args:
        model: The model that computes.
        stage: The section whose settings hold: `phase1`, `phase4` or `phase4.supervised`; "" where none does.
        pictures: Pictures or views of one unit: of an optimizer step on all devices together, or of a score.
    """

    phase: int
    kind: Kind
    amount: int
    model: Model = ""
    stage: str = ""
    pictures: int = 1


def work_of(recipe: Recipe, phases: Sequence[int], counts: Counts, devices: int = 1) -> list[Work]:
    """List all that `natix-hf run` would compute. Early stopping may end a training before.

    Args:
        phases: The phases, in the order in which they run.
        counts: How many pictures there are.
        devices: Number of GPUs, or 1.
    """
    data, drawn = recipe.data, recipe.data.exam_views if recipe.data.exam else 1
    found = [Work(0, "decode", counts.labelled)]
    if 1 in phases or 4 in phases:
        found.append(Work(1 if 1 in phases else 4, "draw", counts.val_select * _chosen_views(data) * data.exam))
    if 1 in phases:
        found += _supervised(recipe.phase1, data, counts, 1, devices)
    if 4 in phases:
        found += _self_supervised(recipe, counts, devices)
        if recipe.phase4.use_labeled_data:
            stage = (recipe.phase4.supervised or recipe.phase1).alone
            control = not (1 in phases and _control_is_phase1(recipe))
            found += _supervised(stage, data, counts, 4, devices, times=1 + control)
    candidates = sum(number in phases for number in CANDIDATE_PHASES)
    if 2 in phases and drawn > _chosen_views(data):
        found.append(Work(2, "answer", candidates * counts.val_select * drawn, "classifier"))
    if 2 in phases:
        found.append(Work(2, "answer", _soup_answers(recipe) * counts.val_select * drawn, "classifier"))
    if 3 in phases:
        found.append(Work(3, "answer", counts.val_select * drawn, "classifier"))
        found.append(Work(3, "gate", _gate_steps(recipe, counts.val_select * drawn, devices)))
    if 5 in phases:
        found.append(Work(5, "answer", counts.val_calib * drawn, "classifier"))
    if 6 in phases:
        found.append(Work(6, "answer", counts.test * drawn, "classifier"))
    return [work for work in found if work.amount > 0]


def members_of(stage: SupervisedConfig) -> int:
    """The models that phase 1 leaves beside its candidate."""
    return (stage.seeds or 1) - 1 + (stage.folds or 0) * stage.keep_folds


def _soup_answers(recipe: Recipe) -> int:
    """How many models phase 2 asks to make a soup, beyond those that have answered. Members of other runs, which it
    asks too, cannot be counted without reading them."""
    soup, members = recipe.phase2.soup, members_of(recipe.phase1)
    further = recipe.data.exam and recipe.data.exam_views > _chosen_views(recipe.data)
    trials = {"none": 0, "uniform": 1, "greedy": members, "wise": WISE_SHARES}[soup]  # which the soup is one of
    return trials + members * bool(further) * (soup in ("uniform", "greedy"))


def uncounted(recipe: Recipe) -> str:
    """What a recipe computes and `work_of` does not know, in words; "" if there is nothing."""
    taught = recipe.phase1.teacher is not None and (1 in recipe.phases or 4 in recipe.phases)
    more = ", and its steps on the images of distil.unlabelled" if recipe.phase1.distil.unlabelled else ""
    return f"phase1.teacher: its one answer to every view{more}" if taught else ""


def _chosen_views(data: DataConfig) -> int:
    return VIEWS_TO_CHOOSE if data.choice_exam is not None else 1


def _control_is_phase1(recipe: Recipe) -> bool:
    stage = recipe.phase4.supervised or recipe.phase1
    return replace(stage.alone, where="phase1") == recipe.phase1.alone


def _supervised(
    stage: SupervisedConfig, data: DataConfig, counts: Counts, phase: int, devices: int, times: int = 1
) -> list[Work]:
    """A classifier, and those of its folds and further seeds: the training, its scores and checkpoints, and answers on
    val_select."""
    where = "phase1" if phase == 1 else "phase4.supervised"
    views = _chosen_views(data)
    asked, rows = counts.val_select * views, counts.train
    folds, seeds = stage.folds or 1, (stage.seeds or 1) - 1
    trainings = times * folds + seeds  # those of k folds, and of the baseline, together read the rows k times
    answered = times + seeds + bool(stage.folds) + folds * stage.keep_folds  # times that val_select is
    bake_off = 2 if stage.adapter == "auto" else 1  # its trials take as many steps as the stage itself
    steps = steps_of(stage, rows, devices)
    head, read = stage.adapter == "none", rows * stage.feature_views
    other_views = seeds * read * (stage.feature_views > 1)  # a further seed draws others; the first view is the same
    model: Model = "head" if head else "classifier"
    return [
        Work(phase, "features", (times * folds * (read + asked) + other_views) * head, "classifier", where),
        Work(phase, "train", trainings * bake_off * steps, model, where, rows_a_step(stage, devices)),
        Work(phase, "score", trainings * _times(stage, "eval", steps, rows, devices), model, where, asked),
        Work(phase, "save", trainings * _times(stage, "save", steps, rows, devices), model, where),
        Work(phase, "answer", answered * asked + rows * views * bool(stage.folds), "classifier", where),
    ]


def _self_supervised(recipe: Recipe, counts: Counts, devices: int) -> list[Work]:
    config = recipe.phase4
    rows = counts.train + counts.unlabelled
    steps = steps_of(config, rows, devices)
    found = [Work(4, "decode", counts.unlabelled * (not config.stream))]
    found.append(Work(4, "train", steps, "objective", "phase4", rows_a_step(config, devices)))
    if config.probe_steps > 0:
        # Only the main process probes.
        probes = 1 + math.ceil(steps / config.probe_steps)  # one before training, and one after the last step
        val = min(counts.val_select, config.probe_rows) if counts.train else 0
        read = min(counts.train or rows, config.probe_rows) + val
        found.append(Work(4, "score", probes, "objective", "phase4", read))
    found.append(Work(4, "save", _saves_of_objective(recipe, steps), "objective", "phase4"))
    return found


def _saves_of_objective(recipe: Recipe, steps: int) -> int:
    config = recipe.phase4
    every = config.probe_steps or config.extra.get("save_steps", 500)
    return int(steps // every) if every >= 1 else math.ceil(1 / every)


def rows_a_step(stage: TrainingSection, devices: int) -> int:
    """Pictures of one optimizer step on all devices together."""
    accumulated = stage.training_fields().get("gradient_accumulation_steps", 1)
    return int(stage.per_device_train_batch_size * accumulated * devices)


def steps_of(stage: TrainingSection, rows: int, devices: int) -> int:
    """Optimizer steps of a whole training on so many rows."""
    return count_steps(stage.training_fields(), rows, devices)


def _times(stage: SupervisedConfig, what: str, steps: int, rows: int, devices: int) -> int:
    """How often a training scores (`eval`) or saves (`save`)."""
    fields = stage.training_fields()
    strategy = fields[f"{what}_strategy"]
    if strategy in ("no", "best"):
        return 0 if strategy == "no" else _times(stage, "eval", steps, rows, devices)
    if strategy == "epoch":
        an_epoch = steps_of(replace(stage, num_train_epochs=1, extra=_without_max(stage)), rows, devices)
        return math.ceil(steps / an_epoch)
    every = fields.get(f"{what}_steps") or fields.get("logging_steps", 500)
    return min(_MOST_EVALS, math.ceil(1 / every) if every < 1 else int(steps // every))


def _without_max(stage: TrainingSection) -> dict[str, object]:
    return {key: value for key, value in stage.extra.items() if key != "max_steps"}


def _gate_steps(recipe: Recipe, answers: int, devices: int) -> int:
    """Optimizer steps of the gates of all folds, and of the one on all answers."""
    config = recipe.phase3
    seen = answers * (config.folds - 1) // config.folds
    return config.folds * steps_of(config, seen, devices) + steps_of(config, answers, devices)
