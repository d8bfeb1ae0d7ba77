"""Settings of a supervised training stage. Light on purpose: reading a recipe imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from natix_hf.errors import require
from natix_hf.models.adapters import check_adapter

# What a stage uses where neither recipe nor command line says otherwise: fields of TrainingArguments.
TRAINING_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 10,
    "learning_rate": 5e-4,
    "weight_decay": 0.05,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 128,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "metric_for_best_model": "mcc",
    "load_best_model_at_end": True,
    "logging_steps": 20,
    "ddp_find_unused_parameters": False,
    "dataloader_num_workers": 1,
    "report_to": "none",
    "seed": 42,
}
# What the run folder, the export phase or the base Trainer decides.
TRAINING_REFUSED: dict[str, str] = {
    "hub_token": "a token never belongs in a recipe: log in with `hf auth login` or set HF_TOKEN",
    "push_to_hub": "only the export phase uploads",
    "output_dir": "the run folder decides it; see --run-dir",
    "remove_unused_columns": "the Trainer keeps the columns it needs",
    "resume_from_checkpoint": "an interrupted phase continues by itself; see --run-dir",
    "logging_nan_inf_filter": "it would hide a NaN loss; a NaN always stops the run",
    "data_seed": "`seed` decides the order of the rows and every view of them",
    "batch_eval_metrics": "an epoch is scored on all its logits at once",
    "prediction_loss_only": "an epoch is scored on its logits",
}
# What `EvaluationMetrics` and the Trainer give to choose the best epoch by.
SCORES = ("mcc", "mcc_at_half", "auroc", "nll", "loss")
# Bounds that transformers does not check, or checks after every image was decoded: (keys, least, most).
_BOUNDS: tuple[tuple[tuple[str, ...], float, float], ...] = (
    (("gradient_accumulation_steps", "eval_accumulation_steps", "save_total_limit", "ddp_timeout"), 1, math.inf),
    (("weight_decay", "max_grad_norm", "warmup_steps", "adam_epsilon", "dataloader_num_workers"), 0, math.inf),
    (("eval_delay",), 0, math.inf),
    (("seed",), 0, 2**32 - 1),
)
_ABOVE_0 = (
    *("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("logging_steps", "eval_steps", "save_steps"),
)
_BELOW_1 = ("adam_beta1", "adam_beta2", "label_smoothing_factor")


@dataclass(frozen=True)
class SupervisedConfig:
    """Its own keys, beside any field of `transformers.TrainingArguments`."""

    # none: frozen backbone, head trained on cached features; full: everything; a tuner of PEFT, as lora or dora; auto:
    # the best of lora, dora, adalora and lokr by a bake-off, which costs as many steps again
    adapter: str = "full"
    adapter_options: dict[str, Any] = field(default_factory=dict)  # of PEFT's config class; auto: r, target_modules
    feature_views: int = 1  # views a row for `adapter: none`: the first as predict sees it, the others augmented
    early_stopping_patience: int | None = None  # evaluations without a better score before training stops
    ema_decay: float | None = None  # keep an average of the weights, over about 1 / (1 - ema_decay) steps; null: off
    prior_by: Literal["sampler", "loss"] = "sampler"  # how training meets data.target_prior
    training: dict[str, Any] = field(default_factory=dict)  # filled with the TrainingArguments fields of the section
    where: str = field(default="phase1", metadata={"not_a_key": True})  # its place in the recipe, for errors

    def __post_init__(self) -> None:
        patience = self.early_stopping_patience
        views, where = self.feature_views, self.where
        check_adapter(self.adapter, self.adapter_options, where)
        require(views >= 1, f"{where}.feature_views", views, "at least 1")
        require(views == 1 or self.adapter == "none", f"{where}.feature_views", views, "1 unless adapter is none")
        decay = self.ema_decay
        require(decay is None or 0 < decay < 1, f"{where}.ema_decay", decay, "a share between 0 and 1, or null")
        require(patience is None or patience >= 1, f"{where}.early_stopping_patience", patience, "at least 1, or null")
        require_sane_training(self.training, where)
        score = self.training.get("metric_for_best_model")
        known = score is None or str(score).removeprefix("eval_") in SCORES
        require(known, f"{where}.metric_for_best_model", score, " | ".join(SCORES))
        if patience is not None:
            needed = "a score where early_stopping_patience is set"
            require(score is not None, f"{where}.metric_for_best_model", None, needed)
            strategy = self.training.get("eval_strategy")
            needed = "epoch or steps where early_stopping_patience is set"
            require(strategy != "no", f"{where}.eval_strategy", strategy, needed)


def require_sane_training(training: dict[str, Any], where: str) -> None:
    """Refuses values of TrainingArguments that transformers would take and no training survives."""
    given = {key: value for key, value in training.items() if value is not None}
    for keys, least, most in _BOUNDS:
        allowed = f"at least {least}" if most == math.inf else f"{least} to {most}"
        for key in keys:
            require(least <= given.get(key, least) <= most, f"{where}.{key}", given.get(key), allowed)
    for key in _ABOVE_0:
        require(given.get(key, 1) > 0, f"{where}.{key}", given.get(key), "above 0")
    for key in _BELOW_1:
        require(0 <= given.get(key, 0) < 1, f"{where}.{key}", given.get(key), "0 to below 1")
    steps = given.get("max_steps", -1)
    require(steps == -1 or steps >= 1, f"{where}.max_steps", steps, "at least 1, or -1 for num_train_epochs")
