"""The recipe's `data:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from natix_hf.errors import require
from natix_hf.synthetic import SyntheticConfig


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training views; each view is drawn from (seed, epoch, row)."""

    crop_scale: list[float] = field(default_factory=lambda: [0.5, 1.0])  # share of the image's area, least and most
    crop_ratio: list[float] = field(default_factory=lambda: [0.8, 1.25])  # width over height of the crop
    flip: bool = True  # mirror half of the views
    rotate: float = 10.0  # degrees, uniform in plus or minus this
    jitter: float = 0.3  # brightness, contrast and saturation are each multiplied by 1 plus or minus this
    grey: float = 0.0  # share of views without colour
    blur: float = 0.0  # share of views with a Gaussian blur
    erase: float = 0.0  # share of views with a rectangle (2 % to 20 % of the area) blanked

    def __post_init__(self) -> None:
        scale, ratio = self.crop_scale, self.crop_ratio
        require(
            len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1,
            "data.augment.crop_scale",
            scale,
            "[low, high] in (0, 1]",
        )
        require(len(ratio) == 2 and 0 < ratio[0] <= ratio[1], "data.augment.crop_ratio", ratio, "[low, high] above 0")
        require(0 <= self.rotate <= 180, "data.augment.rotate", self.rotate, "0 to 180 degrees")
        require(0 <= self.jitter < 1, "data.augment.jitter", self.jitter, "0 <= jitter < 1")
        for name in ("grey", "blur", "erase"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"data.augment.{name}", share, "a share from 0 to 1")


# How training views are made; `challenge`: as the subnet's exam shows a picture.
Augment = AugmentConfig | Literal["challenge"]


@dataclass(frozen=True)
class Exam:
    """Views of the subnet's exam in place of the pictures themselves: how many of each, and the seed of all."""

    views: int
    seed: int


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how their rows are divided."""

    # `synthetic`, a folder (images, parquet, save_to_disk) or a Hub dataset id; null: no labels, see phase4.unlabelled
    source: str | None = "synthetic"
    revision: str | None = None  # of a Hub dataset
    image_column: str = "image"
    label_column: str = "label"
    positive_class: str | None = None  # of named classes (folders of images), the one that is label 1
    group_by: str | None = None  # rows with one value of this column never straddle two splits; null: each row alone
    label_rule: Literal["none", "scene_description"] = "none"  # the validator's: 1 needs a description, 0 has none
    slices: list[str] = field(default_factory=list)  # columns by whose values phase 6 breaks the test figures down
    on_overlap: Literal["drop", "error"] = "drop"
    on_bad_image: Literal["error", "skip"] = "error"  # skip: rows whose image cannot be read are left out and listed
    target_prior: float | None = None  # share of label 1 that the model will meet; null: as found
    label_noise: float = 0.0  # share of train labels flipped on purpose
    cache_px: int = 256  # short side of the decode-once training cache; smaller images are kept as they are
    seed: int = 0
    exam: bool = (
        False  # threshold, gate, promise and figures are made of answers to the subnet's exam (docs/subnet.md)
    )
    exam_views: int = 4  # of each picture; a multiple of 4, for the levels of the exam are equally frequent
    # of training views; `challenge`: as the exam shows a picture, a level drawn for each view. Its crops want a
    # cache_px of 384: from smaller copies they are less sharp than the exam's
    augment: Augment = field(default_factory=AugmentConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        prior = self.target_prior
        named = self.source is None or bool(self.source.strip())
        require(named, "data.source", self.source, "synthetic, a folder, a Hub dataset id, or null")
        require(prior is None or 0 < prior < 1, "data.target_prior", prior, "a share between 0 and 1, or null")
        require(0 <= self.label_noise < 0.5, "data.label_noise", self.label_noise, "a share from 0 to below 0.5")
        require(self.cache_px >= 1, "data.cache_px", self.cache_px, "at least 1")
        require(self.seed >= 0, "data.seed", self.seed, "at least 0")
        views = self.exam_views
        require(views > 0 and views % 4 == 0, "data.exam_views", views, "a multiple of 4")
        require(self.exam or views == 4, "data.exam_views", views, "nothing unless data.exam is true")

    @property
    def drawn_exam(self) -> Exam | None:
        """What phases 2, 3, 5 and 6 ask; None: the pictures themselves."""
        return Exam(self.exam_views, self.seed) if self.exam else None
