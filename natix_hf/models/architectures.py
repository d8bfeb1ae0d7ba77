"""The supported architectures: what the toolkit must know of each, in one table. Light: imports nothing heavy.

To add one: a row here, and, where transformers has no image-classification class for it, a module with the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the toolkit must know of a transformers `model_type`.

    Attributes:
        positions (`str`):
            How position embeddings follow the image size. `"fixed"`: there is one for each patch of `image_size`, and
            the model interpolates only if a call says `interpolate_pos_encoding=True`, which classifiers do not. Or
            its windows are laid out for `image_size`. `"interpolated"`: it interpolates learned ones for every image,
            as DINOv2 does. `"computed"`: there are none to interpolate (rotary ones, or a convolution's).
        objective (`str`, *optional*):
            The self-supervised objective that its public weights were made with, which phase 4 takes by default.
            `None`: it cannot be trained without labels here.
        known_to_the_miner (`bool`): The subnet's official miner (transformers 4.45.2) has a class for it.
        pooled (`bool`):
            `AutoModel` gives it a pooler, which its classifier lacks: it must be loaded with
            `add_pooling_layer=False`.
        extra_tokens (`int`): Tokens between the cls token and the patches, beside `num_register_tokens`.
        stages (`bool`):
            Its blocks stand in stages, and each stage after the first halves height and width. It has no cls token,
            and its classifier reads the mean over all places. Its config holds `depths`, the blocks of each stage.
        head (`str`, *optional*):
            The module that registers its image-classification class, where transformers has none.
    """

    positions: Literal["fixed", "interpolated", "computed"]
    objective: str | None
    known_to_the_miner: bool
    pooled: bool = False
    extra_tokens: int = 0
    stages: bool = False
    head: str | None = None


ARCHITECTURES: dict[str, Architecture] = {
    "vit": Architecture(positions="fixed", objective="mae", known_to_the_miner=True, pooled=True),
    "dinov2": Architecture(positions="interpolated", objective="dinov2", known_to_the_miner=True),
    "dinov2_with_registers": Architecture(positions="interpolated", objective="dinov2", known_to_the_miner=False),
    "dinov3_vit": Architecture(
        positions="computed", objective="dinov2", known_to_the_miner=False, head="natix_hf.models.dinov3"
    ),
    "convnextv2": Architecture(positions="computed", objective=None, known_to_the_miner=True, stages=True),
    "swinv2": Architecture(positions="fixed", objective=None, known_to_the_miner=True, stages=True),
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


def why_not_unlabelled(model_type: str) -> str | None:
    """Why a supported architecture cannot be trained without labels here; `None` if it can be, or is not supported."""
    found = architecture_of(model_type)
    if found is None or found.objective is not None:
        return None
    others = " or ".join(name for name, other in ARCHITECTURES.items() if other.objective is not None)
    reason = ", because it has no cls token, and its stages merge patches, so that none can be hidden"
    return f"a {model_type} cannot be trained without labels here{reason if found.stages else ''}: use {others}"


def size_step(patch_size: int, depths: Sequence[int] | None) -> int:
    """What the side of an image must be a multiple of, in px: the patch, which every stage after the first doubles.

    Args:
        patch_size (`int`): Side of a patch in px.
        depths (sequence of `int`, *optional*): The blocks of each stage; `None` for a model without stages.
    """
    return patch_size << max(0, len(depths or ()) - 1)


def prefix_tokens(config: Any) -> int:
    """The number of tokens before the first patch: the cls token, registers, and any other; 0 for one in stages."""
    found = architecture_of(config.model_type)
    if found is not None and found.stages:
        return 0
    extra = found.extra_tokens if found is not None else 0
    return 1 + extra + int(getattr(config, "num_register_tokens", 0))
