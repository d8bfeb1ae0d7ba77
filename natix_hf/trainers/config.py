"""Settings of a supervised training stage. Light on purpose: reading a recipe imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from natix_hf.errors import require

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


@dataclass(frozen=True)
class SupervisedConfig:
    """Its own keys, beside any field of `transformers.TrainingArguments`."""

    adapter: Literal["none", "full"] = (
        "full"  # none: frozen backbone, head trained on cached features; full: everything
    )
    feature_views: int = 1  # views a row for `adapter: none`: the first as predict sees it, the others augmented
    early_stopping_patience: int | None = None  # evaluations without a better score before training stops
    prior_by: Literal["sampler", "loss"] = "sampler"  # how training meets data.target_prior
    training: dict[str, Any] = field(default_factory=dict)  # filled with the TrainingArguments fields of the section

    def __post_init__(self) -> None:
        patience = self.early_stopping_patience
        views = self.feature_views
        require(views >= 1, "phase1.feature_views", views, "at least 1")
        require(views == 1 or self.adapter == "none", "phase1.feature_views", views, "1 unless adapter is none")
        require(self.training.get("seed", 0) >= 0, "phase1.seed", self.training.get("seed"), "at least 0")
        require(patience is None or patience >= 1, "phase1.early_stopping_patience", patience, "at least 1, or null")
        for key in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"):
            require(self.training.get(key, 1) > 0, f"phase1.{key}", self.training.get(key), "above 0")
