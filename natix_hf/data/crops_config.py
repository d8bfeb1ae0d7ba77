"""The recipe's `phase4.crops:` section: several crops per image for self-supervised training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from natix_hf.errors import require
from natix_hf.section import LATER, Section

# Side of a local crop as a share of a global one: 98 of 224 px with 14 px patches, 96 px with 16 px patches.
_LOCAL_SHARE = 0.43


@dataclass(frozen=True)
class CropConfig(Section):
    """Crops for the dinov2 objective: two global crops per image, and several local ones."""

    place: ClassVar[str] = "phase4.crops"

    local_crops: Annotated[int, "Number of local crops per image, beside the two global ones."] = 8
    local_size: Annotated[
        int | None,
        "Side of a local crop in px, a multiple of the patch size; null: the multiple closest to 0.43 of a global "
        "crop.",
    ] = None
    global_scale: Annotated[list[float], "Smallest and largest share of the image's area in a global crop."] = field(
        default_factory=lambda: [0.32, 1.0]
    )
    local_scale: Annotated[list[float], "Smallest and largest share of the image's area in a local crop."] = field(
        default_factory=lambda: [0.05, 0.32]
    )
    ratio: Annotated[list[float], "Smallest and largest width / height of a crop."] = field(
        default_factory=lambda: [0.75, 4 / 3]
    )
    flip: Annotated[bool, "Mirror half of the crops."] = True
    jitter: Annotated[list[float], "Largest changes of brightness, contrast, saturation and hue."] = field(
        default_factory=lambda: [0.4, 0.4, 0.2, 0.1]
    )
    jitter_share: Annotated[float, "Share of crops with jitter."] = 0.8
    grey: Annotated[float, "Share of crops without colour."] = 0.2
    blur: Annotated[
        list[float], "Share of crops with blur: of the first global crop, the second global crop, the local crops."
    ] = field(default_factory=lambda: [1.0, 0.1, 0.5])
    solarise: Annotated[float, "Share of second global crops whose bright pixels are inverted."] = 0.2
    interpolation: Annotated[
        Literal["bilinear", "bicubic"],
        "How a crop is resized; bicubic, as DINOv2 does, keeps finer detail and is slower.",
    ] = field(default="bilinear", metadata=LATER)

    def check(self) -> None:
        self.require_within("local_crops", 0, 1000)
        self.require_within("local_size", 1, 8192)
        for name in ("global_scale", "local_scale"):
            scale = getattr(self, name)
            self.require(len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, name, "[low, high] in (0, 1]")
        ratio, jitter, blur = self.ratio, self.jitter, self.blur
        holds = len(ratio) == 2 and 0.001 <= ratio[0] <= ratio[1] <= 1000
        self.require(holds, "ratio", "[low, high] above 0, from 0.001 to 1,000")
        self.require(
            len(jitter) == 4 and all(0 <= strength < 1 for strength in jitter[:3]) and 0 <= jitter[3] <= 0.5,
            "jitter",
            "[brightness, contrast, saturation, hue], each 0 to below 1, hue up to 0.5",
        )
        for name in ("jitter_share", "grey", "solarise"):
            self.require(0 <= getattr(self, name) <= 1, name, "a share from 0 to 1")
        holds = len(blur) == 3 and all(0 <= share <= 1 for share in blur)
        self.require(holds, "blur", "three shares from 0 to 1: global 1, global 2, local")

    def local_pixels(self, global_size: int, patch_size: int) -> int:
        """Side of a local crop in px, where global crops have `global_size` px.

        Raises:
            RecipeError: If `local_size` is not a multiple of the patch size, or is larger than a global crop.
        """
        if self.local_size is None:
            return max(1, round(_LOCAL_SHARE * global_size / patch_size)) * patch_size
        allowed = f"a multiple of the backbone's patch of {patch_size} px up to model.image_size, or null"
        fits = self.local_size % patch_size == 0 and self.local_size <= global_size
        require(fits, self.key("local_size"), self.local_size, allowed)
        return self.local_size
