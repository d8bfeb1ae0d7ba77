"""The recipe's `phase4.mae:` section. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from natix_hf.section import Section


@dataclass(frozen=True)
class MaeConfig(Section):
    """Settings of the mae objective, masked autoencoding (He et al., arXiv:2111.06377)."""

    place: ClassVar[str] = "phase4.mae"

    mask_ratio: Annotated[float, "Share of the patches that are hidden from the encoder."] = 0.75
    norm_pix_loss: Annotated[bool, "Normalise the target pixels of each patch."] = True
    decoder_layers: Annotated[int, "Number of decoder layers; a pretrained ViT-MAE decoder keeps its own."] = 2
    decoder_width: Annotated[int, "Width of the decoder; a pretrained ViT-MAE decoder keeps its own."] = 96
    decoder_heads: Annotated[int, "Number of attention heads; a pretrained ViT-MAE decoder keeps its own."] = 3
    crop_scale: Annotated[list[float], "Smallest and largest share of the image's area in a training view."] = field(
        default_factory=lambda: [0.35, 1.0]
    )

    def check(self) -> None:
        self.require(0 < self.mask_ratio < 1, "mask_ratio", "a share between 0 and 1")
        self.require_within("decoder_layers", 1, 1000)
        width, heads, scale = self.decoder_width, self.decoder_heads, self.crop_scale
        self.require(4 <= width <= 65_536 and width % 4 == 0, "decoder_width", "a multiple of 4, up to 65,536")
        self.require(heads >= 1 and width % heads == 0, "decoder_heads", f"a divisor of {width}")
        self.require(len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, "crop_scale", "[low, high] in (0, 1]")
