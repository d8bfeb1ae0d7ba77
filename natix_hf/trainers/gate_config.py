"""The recipe's `phase3:` section. Light on purpose: reading a recipe imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from natix_hf.errors import require
from natix_hf.trainers.config import require_sane_training

# What the gate uses where neither recipe nor command line says otherwise: fields of TrainingArguments.
GATE_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 40,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 64,
    "ddp_find_unused_parameters": False,
    "report_to": "none",
    "seed": 42,
}
_ONE_PASS = (
    *("eval_strategy", "save_strategy", "load_best_model_at_end", "metric_for_best_model", "eval_on_start"),
    *("eval_steps", "save_steps", "logging_strategy", "logging_steps"),
)


@dataclass(frozen=True)
class GateConfig:
    """The learned gate. Its own keys, beside any field of `transformers.TrainingArguments`."""

    # correctness: was the answer right?; confidnet: the probability of the true class (arXiv 1910.04851)
    method: Literal["correctness", "confidnet"] = "correctness"
    hidden: int = 64  # width of the gate's hidden layer
    folds: int = 5  # of the cross-fit on val_select, by group
    n_resamples: int = 2000  # of the paired group bootstrap that decides between the gate and the margin
    training: dict[str, Any] = field(default_factory=dict)  # filled with the TrainingArguments fields of the section

    def __post_init__(self) -> None:
        require(self.hidden >= 1, "phase3.hidden", self.hidden, "at least 1")
        require(self.folds >= 2, "phase3.folds", self.folds, "at least 2")
        require(self.n_resamples >= 100, "phase3.n_resamples", self.n_resamples, "at least 100")
        require_sane_training(self.training, "phase3")
        for key in _ONE_PASS:
            given = self.training.get(key)
            require(given is None, f"phase3.{key}", given, "left out: a gate is trained in seconds and never scored")
        smoothing = self.training.get("label_smoothing_factor", 0)
        require(smoothing == 0, "phase3.label_smoothing_factor", smoothing, "0: its targets stay as they are")
