"""The recipe's `model:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from natix_hf.errors import RecipeError, require

PACKAGED_PREFIX = "packaged:"
# The subnet's official miner (transformers 4.45.2) has no class for these.
UNKNOWN_TO_THE_MINER = ("dinov2_with_registers", "dinov3_vit")


@dataclass(frozen=True)
class ModelConfig:
    """Which vision transformer to start from."""

    backbone: str | None = None  # a Hub id, a folder, or `packaged:NAME`; null: random weights from `config`
    revision: str | None = None  # of a backbone on the Hub
    config: dict[str, Any] = field(
        default_factory=dict
    )  # fields of its transformers config; `model_type` if no backbone
    image_size: int = 224  # px, square

    def __post_init__(self) -> None:
        require(self.image_size >= 1, "model.image_size", self.image_size, "at least 1")
        if self.backbone is None and "model_type" not in self.config:
            raise RecipeError(
                "model: name a backbone, or give model.config with a model_type to start from random weights"
            )
