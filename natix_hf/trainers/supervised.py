"""The supervised stage of a run: train a classifier, keep the best checkpoint, and save a plain model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainingArguments

from natix_hf.data.asked import Asked
from natix_hf.data.config import Augment, ViewsOn
from natix_hf.data.rows import Rows
from natix_hf.models.adapters import AUTO, adapted_modules
from natix_hf.models.classifier import load_classifier
from natix_hf.models.tuner import count_trainable
from natix_hf.terminal import LABEL, tell
from natix_hf.trainers.arguments import optimizer_steps, require_a_batch, training_arguments, training_refused
from natix_hf.trainers.bakeoff import bake_off
from natix_hf.trainers.checkpoints import newest_complete_checkpoint
from natix_hf.trainers.distil import Distillation
from natix_hf.trainers.history import TrainingFacts
from natix_hf.trainers.merge_validation import MergeValidationCallback
from natix_hf.trainers.roadwork import RoadworkTrainer
from natix_hf.trainers.scores import EvaluationMetrics
from natix_hf.trainers.stage import Stage, first_images, make_stage
from natix_hf.trainers.supervised_config import SupervisedConfig


def train_classifier(
    model: PreTrainedModel,
    processor: Any,
    train: Rows,
    val_select: Asked,
    config: SupervisedConfig,
    augment: Augment,
    target_prior: float | None,
    checkpoints: Path,
    save: Callable[[PreTrainedModel], Path],
    quiet: bool = False,
    views_on: ViewsOn = "auto",
    distillation: Distillation | None = None,
) -> dict[str, Any]:
    """Train `model` in place and save it as a plain model with its best weights.

    An adapter is merged, and the merged model is compared with the trained one. An interrupted training continues from
    `checkpoints`.

    Args:
        model: A classifier with two labels.
        processor: Image processor of the model.
        train: Rows to train on.
        val_select: What is asked to choose the best checkpoint: pictures, or their views in the exam.
        config: Settings of the stage. `adapter: none` trains only the head, on features computed once. `auto` chooses
            an adapter first.
        augment: Augmentation of the training views.
        target_prior: Share of label 1 to train and score for. None: the share in the rows.
        checkpoints: Folder of the checkpoints.
        save: Writes the plain model and returns its folder. It is called only on the rank that writes.
        quiet: Print nothing while training.
        views_on: Where training views are made (`choose_place`).
        distillation: Teachers to learn from too, and rows without labels that they answer; `config.distil` says how.

    Returns:
        The facts of the training: `history` (the Trainer's log), `card` (`TrainingFacts`), best score and step, and
        seconds. With teachers also `taught`, the facts about them. With a PEFT adapter also the adapted modules and
        `merge`, the figures of the comparison. With `auto` also the facts of `bake_off`.

    Raises:
        MergeMismatchError: If the saved model differs from the trained one.
        RunError: If training diverged.
    """
    arguments = training_arguments(config.training_fields(), checkpoints, config.where)
    count = len(train) if distillation is None else len(distillation.rows(train))
    require_a_batch(arguments, count, config.where)
    rows = (processor, train, val_select)
    rest = (augment, target_prior)
    facts: dict[str, Any] = {}
    if config.adapter == AUTO:
        steps, folder = optimizer_steps(arguments, count), checkpoints / "bakeoff"

        def trial(name: str, options: dict[str, Any], training: dict[str, Any]) -> float:
            tried = replace(config, adapter=name, adapter_options=options, early_stopping_patience=None)
            settings = training_arguments(training, folder, config.where)
            stage = make_stage(copy.deepcopy(model), *rows, tried, *rest, settings, views_on, distillation)
            trainer = _trainer(stage, tried, target_prior, settings, quiet=True)
            trainer.train()
            return float(next(row["eval_mcc"] for row in trainer.state.log_history if "eval_mcc" in row))

        config, facts = bake_off(model, config, steps, trial, folder)
    stage = make_stage(model, *rows, config, *rest, arguments, views_on, distillation)
    trainer = _trainer(stage, config, target_prior, arguments, quiet)
    facts["trainable_parameters"] = count_trainable(stage.given["model"])
    facts |= {"taught": stage.taught} if stage.taught is not None else {}
    proof = None
    if stage.adapted is not None:
        facts["adapted_modules"] = adapted_modules(stage.adapted)
        proof = MergeValidationCallback(
            model=stage.adapted, images=lambda: first_images(stage.pictures), save=save, load=load_classifier
        )
        trainer.add_callback(proof)  # after the callbacks that change weights, so that it sees the kept weights
    card = TrainingFacts(_further_settings(config))
    trainer.add_callback(card)
    resume = newest_complete_checkpoint(checkpoints)
    begin = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    took = time.perf_counter() - begin
    if not quiet and arguments.should_save:
        _say_cost_of_scoring(trainer, val_select, int(resume.name.rpartition("-")[2]) if resume else 0, took)
    if proof is not None:
        facts["merge"] = proof.proof
    elif arguments.should_save:
        nn.Module.to(model, device="cpu").eval()
        save(model)
    return facts | {
        "card": card.facts,
        "history": trainer.state.log_history,
        "best_score": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "kept_step": trainer.state.best_global_step if arguments.load_best_model_at_end else trainer.state.global_step,
        "steps": trainer.state.global_step,
        "world_size": arguments.world_size,
        "resumed_from": resume.name if resume else None,
        "train_s": round(time.perf_counter() - begin, 1),
        "pace": trainer.pace.facts(),
    }


def _further_settings(config: SupervisedConfig) -> dict[str, str]:
    """What the card says of a training beside the settings of transformers, where it is not the default."""
    figures = {
        "layer decay": config.layer_decay,
        "learning rate of the classifier layer": config.head_learning_rate,
        "mixup": config.mixup,
    }
    told = {name: f"{figure:g}" for name, figure in figures.items() if figure is not None}
    if config.profit is not None:
        steps, rate = config.profit.reference_steps, config.profit.rate(config.learning_rate)
        told["PROFIT"] = f"reference steps: {steps} at {rate:g}, on {steps} of {steps + 1} parts of each batch"
    if config.teacher is not None:
        told |= {"temperature": f"{config.distil.temperature:g}", "share of the teacher": f"{config.distil.mix:g}"}
    return told


def _say_cost_of_scoring(trainer: RoadworkTrainer, asked: Asked, first_step: int, took: float) -> None:
    """Say what the scores of the epochs cost, in this process."""
    seconds = [
        row["eval_runtime"] for row in trainer.state.log_history if "eval_runtime" in row and row["step"] > first_step
    ]
    if seconds:
        what = "pictures" if asked.exam is None else f"exam views, {asked.views} of each picture"
        tell(
            f"{' ' * LABEL}each score: {len(asked):,} {what}, in {sum(seconds) / len(seconds):.1f} s; all together "
            f"{sum(seconds) / took:.0%} of the training",
            hang=LABEL,
        )


def _trainer(
    stage: Stage,
    config: SupervisedConfig,
    target_prior: float | None,
    arguments: TrainingArguments,
    quiet: bool = False,
) -> RoadworkTrainer:
    patience = config.early_stopping_patience
    try:
        return RoadworkTrainer(
            args=arguments,
            ema_decay=config.ema_decay,
            layer_decay=config.layer_decay,
            head_learning_rate=config.head_learning_rate,
            mixup=config.mixup,
            profit=config.profit,
            compute_metrics=EvaluationMetrics(target_prior),
            callbacks=[EarlyStoppingCallback(patience)] if patience is not None else [],
            quiet=quiet,
            **stage.given,
        )
    except (ImportError, ValueError) as error:
        raise training_refused(error, config.where) from None
