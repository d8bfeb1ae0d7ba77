"""The recipe's `data:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from natix_hf.section import Section
from natix_hf.synthetic import SyntheticConfig


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
        self.require(len(ratio) == 2 and 0 < ratio[0] <= ratio[1], "crop_ratio", "[low, high] above 0")
        self.require(0 <= self.rotate <= 180, "rotate", "0 to 180 degrees")
        self.require(0 <= self.jitter < 1, "jitter", "0 to below 1")
        for name in ("grey", "blur", "erase"):
            self.require(0 <= getattr(self, name) <= 1, name, "a share from 0 to 1")


# How training views are drawn. `challenge` draws them like the views of the subnet's exam.
Augment = AugmentConfig | Literal["challenge"]


@dataclass(frozen=True)
class Exam:
    """Views of the subnet's exam that replace the pictures: the number per picture, and the seed."""

    views: int
    seed: int


@dataclass(frozen=True)
class DataConfig(Section):
    """The source of the images and the division of their rows."""

    place: ClassVar[str] = "data"

    source: Annotated[
        str | None,
        "Labelled images: synthetic, a folder (class folders, parquet, save_to_disk) or a Hub dataset id; null: no "
        "labelled images, see phase4.unlabelled.",
    ] = "synthetic"
    revision: Annotated[str | None, "Branch, tag or commit of a Hub dataset."] = None
    image_column: Annotated[str, "Column that holds the images."] = "image"
    label_column: Annotated[str, "Column that holds the labels."] = "label"
    positive_class: Annotated[
        str | None, "Name of the class that becomes label 1, where classes have names, as class folders do."
    ] = None
    group_by: Annotated[
        str | None, "Column of the groups: rows with equal values stay in one split; null: each row is its own group."
    ] = None
    label_rule: Annotated[
        Literal["none", "scene_description"],
        "scene_description is the validator's rule: label 1 counts only with a description, label 0 only without.",
    ] = "none"
    slices: Annotated[list[str], "Columns by which phase 6 breaks down the test figures."] = field(
        default_factory=list
    )
    on_overlap: Annotated[
        Literal["drop", "error"],
        "A picture or group in two splits: drop removes it from the less protected one; error stops the run.",
    ] = "drop"
    on_bad_image: Annotated[
        Literal["error", "skip"],
        "An image that cannot be read: error stops the run; skip leaves the image out and lists it.",
    ] = "error"
    target_prior: Annotated[
        float | None, "Share of label 1 that the model will meet in use; null: the share in the data."
    ] = None
    label_noise: Annotated[float, "Share of the train labels to flip on purpose."] = 0.0
    cache_px: Annotated[
        int, "Short side in px of the decoded copies that training reads; smaller images keep their size."
    ] = 256
    seed: Annotated[int, "Seed of the splits, the label noise and the exam views."] = 0
    exam: Annotated[
        bool,
        "Use views of the subnet's exam to fit the threshold, gate and guarantee and to measure all figures "
        "(docs/subnet.md).",
    ] = False
    exam_views: Annotated[int, "Exam views per picture; a multiple of 4, because the exam has four levels."] = 4
    augment: Annotated[
        Augment,
        "How training views are drawn: a section of keys, or challenge to draw them like the views of the subnet's "
        "exam; then set cache_px to 384.",
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
        """The exam of phases 2, 3, 5 and 6. None: they ask about the pictures themselves."""
        return Exam(self.exam_views, self.seed) if self.exam else None
