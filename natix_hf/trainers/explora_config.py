"""The recipe's `phase4:` section. Light on purpose: reading a recipe imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from natix_hf.data.crops_config import CropConfig
from natix_hf.errors import RecipeError, require
from natix_hf.ssl.dinov2_config import DinoV2Config
from natix_hf.ssl.mae_config import MaeConfig
from natix_hf.trainers.config import SupervisedConfig, require_sane_training

# What stage (a) uses where neither recipe nor command line says otherwise: fields of TrainingArguments.
EXPLORA_DEFAULTS: dict[str, Any] = {
    "max_steps": 2000,
    "learning_rate": 3e-4,
    "weight_decay": 0.04,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "max_grad_norm": 3.0,
    "per_device_train_batch_size": 64,
    "save_total_limit": 2,
    "logging_steps": 20,
    "ddp_find_unused_parameters": False,
    "dataloader_num_workers": 1,
    "report_to": "none",
    "seed": 42,
}
_DECIDED_BY_PROBES = (
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_on_start"),
)


@dataclass(frozen=True)
class ExploraConfig:
    """ExPLoRA. Its own keys, beside any field of `transformers.TrainingArguments` for the self-supervised stage."""

    objective: Literal["dinov2", "mae"] | None = None  # null: dinov2 for the DINOv2 family, mae for a plain ViT
    # blocks: unfreeze_blocks alone, without LoRA, norms and cls token; all: plain self-supervised pre-training
    trainable: Literal["explora", "blocks", "all"] = "explora"
    rank: int = 64  # of LoRA
    alpha: float | None = None  # LoRA is scaled by alpha / rank; null: alpha = rank
    unfreeze_blocks: list[int] = field(default_factory=lambda: [-1])  # trained as they are, without LoRA
    unlabelled: list[str] = field(default_factory=list)  # further image sources, labels or not: folders, Hub datasets
    use_labeled_data: bool = True  # false: stop after the backbone
    probe_steps: int = 250  # probe, and keep the best backbone, every so many steps; 0: keep the last one
    probe_rows: int = 4000  # rows of each split that a probe reads at most
    mae: MaeConfig = field(default_factory=MaeConfig)
    dinov2: DinoV2Config = field(default_factory=DinoV2Config)
    crops: CropConfig = field(default_factory=CropConfig)
    supervised: SupervisedConfig | None = None  # the stage on the adapted backbone; null: as phase 1
    training: dict[str, Any] = field(default_factory=dict)  # filled with the TrainingArguments fields of the section

    def __post_init__(self) -> None:
        require(self.rank >= 1, "phase4.rank", self.rank, "at least 1")
        require(self.alpha is None or self.alpha > 0, "phase4.alpha", self.alpha, "above 0, or null")
        require(self.probe_steps >= 0, "phase4.probe_steps", self.probe_steps, "at least 0")
        require(self.probe_rows >= 20, "phase4.probe_rows", self.probe_rows, "at least 20")
        require_sane_training(self.training, "phase4")
        epochs, steps = self.training.get("num_train_epochs"), self.training.get("max_steps", -1)
        require(epochs is None or steps == -1, "phase4.num_train_epochs", epochs, "left out unless max_steps=-1")
        noise = self.training.get("neftune_noise_alpha")
        require(noise is None, "phase4.neftune_noise_alpha", noise, "left out: it is for language models")
        smoothing = self.training.get("label_smoothing_factor", 0)
        require(smoothing == 0, "phase4.label_smoothing_factor", smoothing, "0: no labels are read")
        if "num_train_epochs" in self.training and self.training.get("max_steps", -1) > 0:
            raise RecipeError(
                "phase4.num_train_epochs counts only with phase4.max_steps=-1: max_steps decides otherwise"
            )
        for key in _DECIDED_BY_PROBES:
            if key in self.training and not (key == "save_steps" and self.probe_steps == 0):
                raise RecipeError(f"phase4.{key} is refused: phase4.probe_steps decides what is kept, and when")
