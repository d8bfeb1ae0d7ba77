"""The recipe's `data.augment:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from natix_hf.section import Section


@dataclass(frozen=True)
class AugmentConfig(Section):
    """Augmentation of training views. The draws of a view depend only on (seed, epoch, row)."""

    place: ClassVar[str] = "data.augment"

    crop_scale: Annotated[list[float], "Smallest and largest share of the image's area in a crop."] = field(
        default_factory=lambda: [0.5, 1.0]
    )
    crop_ratio: Annotated[list[float], "Smallest and largest width / height of a crop."] = field(
        default_factory=lambda: [0.8, 1.25]
    )
    flip: Annotated[bool, "Mirror half of the views."] = True
    rotate: Annotated[float, "Largest angle of a random rotation in degrees, in either direction."] = 10.0
    jitter: Annotated[
        float, "Largest relative change of brightness, contrast and saturation; 0.3 means a factor of 0.7 to 1.3."
    ] = 0.3
    grey: Annotated[float, "Share of views without colour."] = 0.0
    blur: Annotated[float, "Share of views with a Gaussian blur."] = 0.0
    erase: Annotated[float, "Share of views with a blanked rectangle of 2% to 20% of the area."] = 0.0

    def check(self) -> None:
        scale, ratio = self.crop_scale, self.crop_ratio
        self.require(len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, "crop_scale", "[low, high] in (0, 1]")
        holds = len(ratio) == 2 and 0.001 <= ratio[0] <= ratio[1] <= 1000
        self.require(holds, "crop_ratio", "[low, high] above 0, from 0.001 to 1,000")
        self.require(0 <= self.rotate <= 180, "rotate", "0 to 180 degrees")
        self.require(0 <= self.jitter < 1, "jitter", "0 to below 1")
        for name in ("grey", "blur", "erase"):
            self.require(0 <= getattr(self, name) <= 1, name, "a share from 0 to 1")
