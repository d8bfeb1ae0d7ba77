"""The recipe's `phase4.mae:` section. Light on purpose: reading a recipe imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from natix_hf.errors import require


@dataclass(frozen=True)
class MaeConfig:
    """Masked autoencoding: He et al., arXiv 2111.06377."""

    mask_ratio: float = 0.75  # share of the patches that the encoder does not see
    norm_pix_loss: bool = True  # targets normalised by patch
    # These three count without a pretrained decoder alone: a ViT-MAE checkpoint brings its own.
    decoder_layers: int = 2
    decoder_width: int = 96
    decoder_heads: int = 3
    crop_scale: list[float] = field(default_factory=lambda: [0.35, 1.0])  # share of the image's area, least and most

    def __post_init__(self) -> None:
        require(0 < self.mask_ratio < 1, "phase4.mae.mask_ratio", self.mask_ratio, "a share between 0 and 1")
        require(self.decoder_layers >= 1, "phase4.mae.decoder_layers", self.decoder_layers, "at least 1")
        width, heads = self.decoder_width, self.decoder_heads
        require(width >= 4 and width % 4 == 0, "phase4.mae.decoder_width", width, "a multiple of 4")
        require(heads >= 1 and width % heads == 0, "phase4.mae.decoder_heads", heads, f"a divisor of {width}")
        scale = self.crop_scale
        fits = len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1
        require(fits, "phase4.mae.crop_scale", scale, "[low, high] in (0, 1]")
