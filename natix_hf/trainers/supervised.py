"""The supervised stage: a classifier trained on rows, best checkpoint by val_select, with or without its backbone."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.training_args import OptimizerNames

from natix_hf.callbacks.adalora import AdaLoraCallback
from natix_hf.callbacks.merge_validation import MergeValidationCallback
from natix_hf.callbacks.model_card import ModelCardCallback
from natix_hf.data.asked import ask
from natix_hf.data.config import Augment
from natix_hf.data.rows import Rows
from natix_hf.data.sampler import EpochSampler
from natix_hf.data.views import AskedViews, FeatureViews, TrainViews
from natix_hf.errors import RecipeError, UsageError
from natix_hf.metrics import prior_weights
from natix_hf.models.adapters import AUTO, adapted_modules, add_adapter
from natix_hf.models.classifier import head_of, load_classifier
from natix_hf.models.device import runs_on_cpu
from natix_hf.models.features import Head, View, cached_features
from natix_hf.models.preprocess import Preprocess
from natix_hf.models.tuner import Adapted, count_trainable
from natix_hf.provenance.files import ids_sha256
from natix_hf.trainers.bakeoff import bake_off
from natix_hf.trainers.base import newest_complete_checkpoint
from natix_hf.trainers.config import SupervisedConfig
from natix_hf.trainers.roadwork import EvaluationMetrics, RoadworkTrainer


def training_arguments(training: dict[str, Any], output_dir: Path, where: str = "phase1") -> TrainingArguments:
    """TrainingArguments of a recipe's section `where`, with what a launched or plain process needs.

    Raises:
        RecipeError: transformers refuses the values. UsageError: the process was launched wrongly.
    """
    on_cpu = runs_on_cpu()
    if on_cpu and training.get("fp16"):
        raise RecipeError(f"{where}.fp16 needs a GPU: use bf16, or leave it out")
    settings: dict[str, Any] = {
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "dataloader_persistent_workers": training.get("dataloader_num_workers", 0) > 0,
        "logging_nan_inf_filter": False,
        "label_names": ["labels"],  # Trainer looks for it in forward(), where a head on features has none
        "disable_tqdm": not sys.stderr.isatty(),
        "greater_is_better": not str(training.get("metric_for_best_model", "")).endswith(("loss", "nll")),
        "restore_callback_states_from_checkpoint": True,  # early stopping goes on counting after a resume
    }
    try:
        arguments = TrainingArguments(output_dir=str(output_dir), **(settings | training))
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        raise training_refused(error, where) from None
    if "tensorboard" in (arguments.report_to or []) and importlib.util.find_spec("tensorboard") is None:
        raise RecipeError(f"{where}.report_to: tensorboard is not installed: pip install 'natix_hf[tensorboard]'")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if arguments.world_size != launched:
        raise UsageError(
            f"{launched} processes were launched but each trains alone: use a file of accelerate_configs/"
        )
    if arguments.n_gpu > 1:
        raise UsageError(
            f"this process sees {arguments.n_gpu} GPUs: start it with `natix-hf run` or `accelerate launch`, "
            "or show it one GPU with CUDA_VISIBLE_DEVICES=0"
        )
    return arguments


def check_training(training: dict[str, Any], output_dir: Path, where: str = "phase1") -> None:
    """Refuses settings that transformers would refuse only when training begins: optimizer, schedule, reporting."""
    arguments = training_arguments(training, output_dir, where)
    try:
        for report in get_reporting_integration_callbacks(arguments.report_to):
            report()
        if not OptimizerNames(arguments.optim).value.startswith(_NEED_A_MODEL):
            make, settings = RoadworkTrainer.get_optimizer_cls_and_kwargs(arguments)
            optimizer, schedule = make([nn.Parameter(torch.zeros(1))], **settings), arguments.lr_scheduler_type
            extra: Any = arguments.lr_scheduler_kwargs
            get_scheduler(schedule, optimizer, arguments.get_warmup_steps(100), 100, extra)
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        raise training_refused(error, where) from None


# Optimizers that look into the model.
_NEED_A_MODEL = ("galore", "apollo", "lomo", "adalomo")


def training_refused(error: Exception, where: str) -> RecipeError:
    return RecipeError(f"{where}: transformers refuses these settings: {str(error).strip().splitlines()[0]}")


def train_classifier(
    model: PreTrainedModel,
    processor: Any,
    train: Rows,
    val_select: Rows,
    config: SupervisedConfig,
    augment: Augment,
    target_prior: float | None,
    checkpoints: Path,
    save: Callable[[PreTrainedModel], Path],
) -> dict[str, Any]:
    """Trains `model` in place and saves it with its best weights, an adapter merged and the merge proven; continues
    from `checkpoints` if training was cut off.

    Args:
        config: `adapter: none` trains the head alone, on features computed once; `auto` chooses an adapter first.
        target_prior: share of label 1 to train and score for; None: as found.
        checkpoints: folder of the Trainer's checkpoints.
        save: writes the plain model and returns its folder; called on the writing rank alone.

    Returns:
        What happened: `history` (Trainer's log), `card` (what `ModelCardCallback` took down), best score and step,
        seconds; with an adapter of PEFT its modules, and `merge`, the proof; with `auto` also what `bake_off` tells.

    Raises:
        MergeMismatchError: the saved model does not answer as the trained one did.
    """
    arguments = training_arguments(config.training_fields(), checkpoints, config.where)
    require_a_batch(arguments, len(train), config.where)
    rows = (processor, train, val_select, augment, target_prior)
    facts: dict[str, Any] = {}
    if config.adapter == AUTO:
        steps, folder = _optimizer_steps(arguments, len(train)), checkpoints / "bakeoff"

        def trial(name: str, options: dict[str, Any], training: dict[str, Any]) -> float:
            tried = replace(config, adapter=name, adapter_options=options, early_stopping_patience=None)
            settings = training_arguments(training, folder, config.where)
            trainer, *_ = _build(copy.deepcopy(model), *rows, tried, settings)
            trainer.train()
            return float(next(row["eval_mcc"] for row in trainer.state.log_history if "eval_mcc" in row))

        config, facts = bake_off(model, config, steps, trial, folder)
    trainer, trained, adapted, originals = _build(model, *rows, config, arguments)
    facts["trainable_parameters"] = count_trainable(trained)
    proof = None
    if adapted is not None:
        facts["adapted_modules"] = adapted_modules(adapted)
        proof = MergeValidationCallback(
            model=adapted, images=lambda: first_images(originals), save=save, load=load_classifier
        )
        trainer.add_callback(proof)  # the last one: it sees the weights that are kept
    card = ModelCardCallback()
    trainer.add_callback(card)
    resume = newest_complete_checkpoint(checkpoints)
    begin = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
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
    }


def _build(
    model: PreTrainedModel,
    processor: Any,
    train: Rows,
    val_select: Rows,
    augment: Augment,
    target_prior: float | None,
    config: SupervisedConfig,
    arguments: TrainingArguments,
) -> tuple[RoadworkTrainer, nn.Module, PeftModel | None, AskedViews]:
    """The Trainer, what it trains, the adapter in that, and the rows that it is scored on."""
    preprocess = Preprocess(processor)
    seed = arguments.seed
    views = TrainViews(train, augment, processor.size["height"], processor.image_mean, processor.image_std, seed)
    originals = AskedViews(ask(val_select), preprocess)
    trained: Any = model
    datasets: dict[str, Any] = {"train_dataset": views, "eval_dataset": originals}
    if config.adapter == "none":
        trained = Head(head_of(model))
        datasets = _feature_datasets(model, processor, train, val_select, views, originals, config, augment, arguments)
        # To read a batch of features takes less than a worker takes to hand it over.
        arguments.dataloader_num_workers, arguments.dataloader_persistent_workers = 0, False
    adapted = None
    if config.adapter not in ("none", "full"):
        steps = _optimizer_steps(arguments, len(train))
        adapted = add_adapter(model, config.adapter, config.adapter_options, steps, seed, config.where)
        trained = Adapted(adapted)
    by_sampler = target_prior is not None and config.prior_by == "sampler"
    by_loss = target_prior is not None and config.prior_by == "loss"
    patience = config.early_stopping_patience
    try:
        trainer = RoadworkTrainer(
            model=trained,
            args=arguments,
            train_sampler=EpochSampler(train.labels, seed, target_prior if by_sampler else None),
            class_weights=_class_weights(train, target_prior) if by_loss else None,
            ema_decay=config.ema_decay,
            adalora=AdaLoraCallback(adapted) if adapted is not None and config.adapter == "adalora" else None,
            compute_metrics=EvaluationMetrics(target_prior),
            callbacks=[EarlyStoppingCallback(patience)] if patience is not None else [],
            **datasets,
        )
    except (ImportError, ValueError) as error:
        raise training_refused(error, config.where) from None
    return trainer, trained, adapted, originals


def require_a_batch(arguments: TrainingArguments, rows: int, where: str) -> None:
    """Raises `UsageError` where dropping what fills no batch would leave nothing to train on."""
    batch = arguments.per_device_train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < batch:
        raise UsageError(
            f"{where}.dataloader_drop_last leaves nothing of {rows} train rows in batches of {batch}: "
            "lower per_device_train_batch_size"
        )


def first_images(views: AskedViews, most: int = 32) -> torch.Tensor:
    """Some rows as `predict` sees them, float32 [n, 3, H, W]: evenly spaced, for the rows are sorted by class."""
    chosen = torch.linspace(0, len(views) - 1, min(most, len(views))).round().long().tolist()
    return torch.stack([views[row]["pixel_values"] for row in chosen])


def _optimizer_steps(arguments: TrainingArguments, rows: int) -> int:
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    batch = arguments.per_device_train_batch_size * arguments.world_size
    batches = rows // batch if arguments.dataloader_drop_last else math.ceil(rows / batch)
    an_epoch: int = max(1, math.ceil(batches / arguments.gradient_accumulation_steps))
    return math.ceil(float(arguments.num_train_epochs) * an_epoch)


def _feature_datasets(
    model: nn.Module,
    processor: Any,
    train: Rows,
    val_select: Rows,
    views: TrainViews,
    originals: AskedViews,
    config: SupervisedConfig,
    augment: Augment,
    arguments: TrainingArguments,
) -> dict[str, Any]:
    """View 0 of every train row is what predict sees; views 1, 2, … are augmented, drawn as epochs 1, 2, …"""

    def features(views: list[View], rows: Rows, extra: Any) -> Any:
        key = [processor.to_dict(), rows.role, ids_sha256(rows.ids), rows.decoded._fingerprint, extra]
        workers = arguments.dataloader_num_workers
        batch_size = arguments.per_device_eval_batch_size
        with arguments.main_process_first(desc="features"):  # the others read what rank 0 has computed
            return cached_features(model, views, key, batch_size, workers, arguments.device)

    plain: View = (AskedViews(ask(train), originals.preprocess), range(len(train)))
    augmented: list[View] = [
        (views, [(view, row) for row in range(len(train))]) for view in range(1, config.feature_views)
    ]
    extra = [augment if augment == "challenge" else asdict(augment), arguments.seed] if augmented else None
    return {
        "train_dataset": FeatureViews(
            features([plain, *augmented], train, [config.feature_views, extra]), train.labels
        ),
        "eval_dataset": FeatureViews(
            features([(originals, range(len(val_select)))], val_select, None), val_select.labels
        ),
    }


def _class_weights(train: Rows, target_prior: float | None) -> list[float]:
    weights = prior_weights(train.labels, target_prior)
    return [float(weights[train.labels == label][0]) for label in (0, 1)]
