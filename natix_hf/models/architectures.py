"""The supported architectures: what the toolkit must know of each, in one table. Light: imports nothing heavy.

To add one: a row here, and, where transformers has no image-classification class for it, a module with the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the toolkit must know of a transformers `model_type`.

    Attributes:
        positions (`str`):
            How position embeddings follow the image size. `"fixed"`: there is one for each patch of `image_size`, and
            the model interpolates only if a call says `interpolate_pos_encoding=True`, which classifiers do not.
            `"interpolated"`: it interpolates learned ones for every image, as DINOv2 does. `"computed"`: there are
            none to interpolate (rotary ones).
        objective (`str`, *optional*):
            The self-supervised objective that its public weights were made with, which phase 4 takes by default.
            `None`: it cannot be trained without labels here.
        known_to_the_miner (`bool`): The subnet's official miner (transformers 4.45.2) has a class for it.
        pooled (`bool`):
            `AutoModel` gives it a pooler, which its classifier lacks: it must be loaded with
            `add_pooling_layer=False`.
        extra_tokens (`int`): Tokens between the cls token and the patches, beside `num_register_tokens`.
        head (`str`, *optional*):
            The module that registers its image-classification class, where transformers has none.
    """

    positions: Literal["fixed", "interpolated", "computed"]
    objective: str | None
    known_to_the_miner: bool
    pooled: bool = False
    extra_tokens: int = 0
    head: str | None = None


ARCHITECTURES: dict[str, Architecture] = {
    "vit": Architecture(positions="fixed", objective="mae", known_to_the_miner=True, pooled=True),
    "dinov2": Architecture(positions="interpolated", objective="dinov2", known_to_the_miner=True),
    "dinov2_with_registers": Architecture(positions="interpolated", objective="dinov2", known_to_the_miner=False),
    "dinov3_vit": Architecture(
        positions="computed", objective="dinov2", known_to_the_miner=False, head="natix_hf.models.dinov3"
    ),
}
VIT_MAE = "vit_mae"
# Checkpoints whose encoder is one of the architectures above.
ENCODERS = {VIT_MAE: "vit"}


def architecture_of(model_type: str) -> Architecture | None:
    """The row of a model, or of a checkpoint's encoder; `None` for a model that is not supported."""
    return ARCHITECTURES.get(ENCODERS.get(model_type, model_type))


def has_fixed_size(model_type: str) -> bool:
    """Whether the model takes images of one size alone."""
    found = architecture_of(model_type)
    return found is not None and found.positions == "fixed"


def is_unknown_to_the_miner(model_type: str | None) -> bool:
    """Whether the official miner has no class for a supported architecture."""
    found = ARCHITECTURES.get(model_type or "")
    return found is not None and not found.known_to_the_miner


def loading_options(model_type: str) -> dict[str, Any]:
    """What `AutoModel` must be told so that it makes the backbone that classifiers have."""
    found = architecture_of(model_type)
    return {"add_pooling_layer": False} if found is not None and found.pooled else {}


def prefix_tokens(config: Any) -> int:
    """The number of tokens before the first patch: the cls token, registers, and any other."""
    found = architecture_of(config.model_type)
    extra = found.extra_tokens if found is not None else 0
    return 1 + extra + int(getattr(config, "num_register_tokens", 0))
