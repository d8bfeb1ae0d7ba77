"""The recipe's `phase4:` section. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from natix_hf.errors import RecipeError, cut, require
from natix_hf.section import LATER
from natix_hf.ssl.objectives import OBJECTIVES, ObjectiveSections
from natix_hf.trainers.config import Argument, LoggingSteps, SaveLimit, TrainingSection, Workers
from natix_hf.trainers.supervised_config import SupervisedConfig

_DECIDED_BY_PROBES = (
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_on_start"),
)


@dataclass(frozen=True, kw_only=True)
class ExploraConfig(ObjectiveSections, TrainingSection):
    """Settings of ExPLoRA. The backbone is adapted without labels, then the supervised stage trains a classifier."""

    place: ClassVar[str] = "phase4"

    objective: Annotated[
        str | None,
        f"The self-supervised objective: {' | '.join(OBJECTIVES)}; null: dinov2 for DINOv2 and DINOv3 backbones, "
        "mae for a plain ViT.",
    ] = None
    trainable: Annotated[
        Literal["explora", "blocks", "all"],
        "The weights to train. explora: LoRA, norms, cls token and unfreeze_blocks; blocks: only unfreeze_blocks; "
        "all: all weights, which is plain self-supervised pre-training.",
    ] = "explora"
    rank: Annotated[int, "Rank of LoRA."] = 64
    alpha: Annotated[float | None, "LoRA is scaled by alpha / rank; null sets alpha to rank."] = None
    unfreeze_blocks: Annotated[list[int], "Blocks to train in full, without LoRA; -1 is the last block."] = field(
        default_factory=lambda: [-1]
    )
    unlabelled: Annotated[
        list[str], "Additional sources of images, as folders or Hub dataset ids; their labels are never read."
    ] = field(default_factory=list)
    stream: Annotated[
        bool,
        "Read the images in passing, without decoded copies on the disk, for sources of hundreds of thousands of "
        "images; needs unlabelled and max_steps.",
    ] = field(default=False, metadata=LATER)
    shuffle_buffer: Annotated[
        int, "With stream: number of images, still encoded, that each loader process holds to mix their order."
    ] = field(default=1000, metadata=LATER)
    use_labeled_data: Annotated[
        bool, "Train the classifier on the adapted backbone; false stops after the self-supervised stage."
    ] = True
    probe_steps: Annotated[
        int, "Steps between two probes of the backbone; the best one is kept. 0: no probes, the last one is kept."
    ] = 250
    probe_rows: Annotated[int, "Largest number of rows of each split that a probe reads."] = 4000
    supervised: Annotated[
        SupervisedConfig | None, "The supervised stage on the adapted backbone, with phase1's keys; null: as phase1."
    ] = None
    max_steps: Annotated[int, Argument("Number of optimizer steps; -1 trains for num_train_epochs.")] = 2000
    learning_rate: float = 3e-4
    weight_decay: float = 0.04
    max_grad_norm: Annotated[
        float, Argument("Largest norm of the gradients; larger gradients are scaled down. 0 turns this off.")
    ] = 3.0
    save_total_limit: SaveLimit = 2
    logging_steps: LoggingSteps = 20
    dataloader_num_workers: Workers = 1

    def check(self) -> None:
        super().check()
        known = self.objective is None or self.objective in OBJECTIVES
        self.require(known, "objective", " | ".join(OBJECTIVES))
        self.require_within("rank", 1, 10**4)
        self.require(self.alpha is None or 0 < self.alpha <= 10**6, "alpha", "above 0, up to 1,000,000, or null")
        self.require_within("probe_steps", 0, 10**9)
        self.require_within("probe_rows", 20, 10**9)
        self.require_within("shuffle_buffer", 1, 10**7)
        alone = self.stream or self.shuffle_buffer == 1000
        self.require(alone, "shuffle_buffer", "left out unless phase4.stream is true")
        if self.stream:
            self._check_stream()
        if "num_train_epochs" in self.extra and self.max_steps != -1:  # max_steps would silently win
            epochs = self.extra["num_train_epochs"]
            raise RecipeError(
                f"{self.key('num_train_epochs')} is {cut(epochs)}: it takes effect only with max_steps=-1, and "
                f"max_steps "
                f"is {self.max_steps}"
            )
        noise, smoothing = self.extra.get("neftune_noise_alpha"), self.extra.get("label_smoothing_factor", 0)
        require(noise is None, self.key("neftune_noise_alpha"), noise, "left out: it is for language models")
        require(smoothing == 0, self.key("label_smoothing_factor"), smoothing, "0: no labels are read")
        for key in _DECIDED_BY_PROBES:
            if key in self.extra and not (key == "save_steps" and self.probe_steps == 0):
                raise RecipeError(f"{self.key(key)} is refused: phase4.probe_steps decides when a backbone is kept")

    def _check_stream(self) -> None:
        if not self.unlabelled:
            raise RecipeError(f"{self.key('stream')} is true, but there is no source: name some in phase4.unlabelled")
        if self.max_steps == -1:
            raise RecipeError(
                f"{self.key('stream')} is true, and a stream has no epochs: set phase4.max_steps to a number of steps"
            )
        if self.extra.get("auto_find_batch_size"):
            raise RecipeError(
                f"{self.key('auto_find_batch_size')} is refused with phase4.stream: a stream cannot begin again, set "
                "per_device_train_batch_size"
            )
