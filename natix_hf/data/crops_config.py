"""The recipe's `phase4.crops:` section: several crops of one image, for self-supervised training."""

from __future__ import annotations

from dataclasses import dataclass, field

from natix_hf.errors import require

_LOCAL_SHARE = 0.43  # of the global crop's side: 98 px of 224 for patches of 14, 96 px for patches of 16


@dataclass(frozen=True)
class CropConfig:
    """Two global crops and some local ones; every draw is from (seed, epoch, row)."""

    local_crops: int = 8  # small crops an image, beside the two global ones
    local_size: int | None = None  # px, a multiple of the patch; null: the nearest to .43 of the global crop
    global_scale: list[float] = field(default_factory=lambda: [0.32, 1.0])  # share of the image's area
    local_scale: list[float] = field(default_factory=lambda: [0.05, 0.32])
    ratio: list[float] = field(default_factory=lambda: [0.75, 4 / 3])  # width over height of every crop
    flip: bool = True  # mirror half of the crops
    jitter: list[float] = field(default_factory=lambda: [0.4, 0.4, 0.2, 0.1])  # brightness, contrast, saturation, hue
    jitter_share: float = 0.8  # share of crops with jitter
    grey: float = 0.2  # share of crops without colour
    blur: list[float] = field(default_factory=lambda: [1.0, 0.1, 0.5])  # share: global 1, global 2, local
    solarise: float = 0.2  # share of second global crops whose bright pixels are inverted

    def __post_init__(self) -> None:
        require(self.local_crops >= 0, "phase4.crops.local_crops", self.local_crops, "at least 0")
        size = self.local_size
        require(size is None or size >= 1, "phase4.crops.local_size", size, "at least 1, or null")
        for name in ("global_scale", "local_scale"):
            scale = getattr(self, name)
            holds = len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1
            require(holds, f"phase4.crops.{name}", scale, "[low, high] in (0, 1]")
        ratio, jitter = self.ratio, self.jitter
        require(len(ratio) == 2 and 0 < ratio[0] <= ratio[1], "phase4.crops.ratio", ratio, "[low, high] above 0")
        require(
            len(jitter) == 4 and all(0 <= strength < 1 for strength in jitter[:3]) and 0 <= jitter[3] <= 0.5,
            "phase4.crops.jitter",
            jitter,
            "[brightness, contrast, saturation, hue], each 0 to below 1, hue up to 0.5",
        )
        for name in ("jitter_share", "grey", "solarise"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"phase4.crops.{name}", share, "a share from 0 to 1")
        shares = self.blur
        holds = len(shares) == 3 and all(0 <= share <= 1 for share in shares)
        require(holds, "phase4.crops.blur", shares, "three shares from 0 to 1: global 1, global 2, local")

    def local_pixels(self, global_size: int, patch_size: int) -> int:
        """Side in px of a local crop beside global ones of `global_size` px.

        Raises:
            RecipeError: `local_size` is not a multiple of the patch, or larger than a global crop.
        """
        if self.local_size is None:
            return max(1, round(_LOCAL_SHARE * global_size / patch_size)) * patch_size
        allowed = f"a multiple of the backbone's patch of {patch_size} px up to model.image_size, or null"
        fits = self.local_size % patch_size == 0 and self.local_size <= global_size
        require(fits, "phase4.crops.local_size", self.local_size, allowed)
        return self.local_size
