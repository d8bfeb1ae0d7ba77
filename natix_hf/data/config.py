"""The recipe's `data:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from natix_hf.section import Section
from natix_hf.synthetic import SyntheticConfig


@dataclass(frozen=True)
class AugmentConfig(Section):
    """Augmentation of training views; each view is drawn from (seed, epoch, row)."""

    place: ClassVar[str] = "data.augment"

    crop_scale: Annotated[list[float], "Least and most share of the image's area in a crop."] = field(
        default_factory=lambda: [0.5, 1.0]
    )
    crop_ratio: Annotated[list[float], "Least and most width over height of a crop."] = field(
        default_factory=lambda: [0.8, 1.25]
    )
    flip: Annotated[bool, "Mirror half of the views."] = True
    rotate: Annotated[float, "Rotate by a uniform angle of at most so many degrees, either way."] = 10.0
    jitter: Annotated[float, "Multiply brightness, contrast and saturation by 1 plus or minus at most this."] = 0.3
    grey: Annotated[float, "Share of views without colour."] = 0.0
    blur: Annotated[float, "Share of views with a Gaussian blur."] = 0.0
    erase: Annotated[float, "Share of views with a blanked rectangle of 2% to 20% of the area."] = 0.0

    def check(self) -> None:
        scale, ratio = self.crop_scale, self.crop_ratio
        self.require(len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, "crop_scale", "[low, high] in (0, 1]")
        self.require(len(ratio) == 2 and 0 < ratio[0] <= ratio[1], "crop_ratio", "[low, high] above 0")
        self.require(0 <= self.rotate <= 180, "rotate", "0 to 180 degrees")
        self.require(0 <= self.jitter < 1, "jitter", "0 to below 1")
        for name in ("grey", "blur", "erase"):
            self.require(0 <= getattr(self, name) <= 1, name, "a share from 0 to 1")


# How training views are made; `challenge`: as the subnet's exam shows a picture.
Augment = AugmentConfig | Literal["challenge"]


@dataclass(frozen=True)
class Exam:
    """Views of the subnet's exam in place of the pictures themselves: how many of each, and the seed of all."""

    views: int
    seed: int


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the images come from and how their rows are divided."""

    place: ClassVar[str] = "data"

    source: Annotated[
        str | None,
        "Labelled images: synthetic, a folder (class folders, parquet, save_to_disk) or a Hub dataset id; null: there "
        "are no labels, see phase4.unlabelled.",
    ] = "synthetic"
    revision: Annotated[str | None, "Branch, tag or commit of a Hub dataset."] = None
    image_column: Annotated[str, "Column that holds the images."] = "image"
    label_column: Annotated[str, "Column that holds the labels."] = "label"
    positive_class: Annotated[str | None, "Of classes with names, as folders have, the one that is label 1."] = None
    group_by: Annotated[
        str | None, "Column whose equal values stay together in one split; null: every row is its own group."
    ] = None
    label_rule: Annotated[
        Literal["none", "scene_description"],
        "scene_description is the validator's rule: label 1 counts only with a description, label 0 only without one.",
    ] = "none"
    slices: Annotated[list[str], "Columns by whose values phase 6 breaks the test figures down."] = field(
        default_factory=list
    )
    on_overlap: Annotated[
        Literal["drop", "error"],
        "A picture or group in two splits leaves the less protected one (drop), or stops the run (error).",
    ] = "drop"
    on_bad_image: Annotated[
        Literal["error", "skip"],
        "An image that cannot be read stops the run (error) or is left out and listed (skip).",
    ] = "error"
    target_prior: Annotated[float | None, "Share of label 1 that the model will meet in use; null: as found."] = None
    label_noise: Annotated[float, "Share of the train labels to flip on purpose."] = 0.0
    cache_px: Annotated[
        int, "Short side in px of the decoded copies that training reads; smaller images stay as they are."
    ] = 256
    seed: Annotated[int, "Seed of the division into splits, of label noise and of exam views."] = 0
    exam: Annotated[
        bool, "Fit and measure threshold, gate, guarantee and figures on views of the subnet's exam (docs/subnet.md)."
    ] = False
    exam_views: Annotated[int, "Exam views per picture; a multiple of 4, since the exam has four levels."] = 4
    augment: Annotated[
        Augment,
        "How training views are drawn: a section of keys, or challenge to draw them as the subnet's exam does, "
        "for which cache_px should be 384.",
    ] = field(default_factory=AugmentConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def check(self) -> None:
        prior, views = self.target_prior, self.exam_views
        named = self.source is None or bool(self.source.strip())
        self.require(named, "source", "synthetic, a folder, a Hub dataset id, or null")
        self.require(prior is None or 0 < prior < 1, "target_prior", "a share between 0 and 1, or null")
        self.require(0 <= self.label_noise < 0.5, "label_noise", "a share from 0 to below 0.5")
        self.require(self.cache_px >= 1, "cache_px", "at least 1")
        self.require(self.seed >= 0, "seed", "at least 0")
        self.require(views > 0 and views % 4 == 0, "exam_views", "a multiple of 4")
        self.require(self.exam or views == 4, "exam_views", "left out unless data.exam is true")

    @property
    def drawn_exam(self) -> Exam | None:
        """What phases 2, 3, 5 and 6 ask; None: the pictures themselves."""
        return Exam(self.exam_views, self.seed) if self.exam else None
