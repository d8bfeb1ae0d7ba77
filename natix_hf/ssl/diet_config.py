"""The recipe's `phase4.diet:` section. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from natix_hf.section import Section


@dataclass(frozen=True)
class DietConfig(Section):
    """Settings of the diet objective, which tells the images apart (Ibrahim et al., arXiv:2302.10260).

    The views are those of `data.augment` with the strengths given here.
    """

    place: ClassVar[str] = "phase4.diet"

    label_smoothing: Annotated[float, "Share of the target that is spread over all images."] = 0.8
    crop_scale: Annotated[list[float], "Smallest and largest share of the image's area in a training view."] = field(
        default_factory=lambda: [0.2, 1.0]
    )
    jitter: Annotated[float, "Largest relative change of brightness, contrast and saturation."] = 0.4
    grey: Annotated[float, "Share of views without colour."] = 0.2
    blur: Annotated[float, "Share of views with a Gaussian blur."] = 0.5

    def check(self) -> None:
        self.require(0 <= self.label_smoothing < 1, "label_smoothing", "a share from 0 to below 1")
        scale = self.crop_scale
        self.require(len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, "crop_scale", "[low, high] in (0, 1]")
        self.require(0 <= self.jitter < 1, "jitter", "0 to below 1")
        for name in ("grey", "blur"):
            self.require(0 <= getattr(self, name) <= 1, name, "a share from 0 to 1")
