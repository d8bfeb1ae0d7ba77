"""The recipe's `data:` section."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from natix_hf.data.augment_config import AugmentConfig as AugmentConfig
from natix_hf.labels import LabelNames
from natix_hf.provenance.stored import before
from natix_hf.section import LATER, OF_DATA, Section
from natix_hf.synthetic import SyntheticConfig

# How training views are drawn. `challenge` draws them like the views of the subnet's exam.
Augment = AugmentConfig | Literal["challenge"]
# Where training views are made of the decoded copies.
ViewsOn = Literal["auto", "device", "workers"]


_LEVELS = 4  # of the exam: subnet/challenge.py has them, which imports too much for a recipe
# How the views of an exam are drawn. 1: from the picture itself. 2: from the validator's own JPEG of it. Raise the
# number with every change of a view: answers to views of two versions are never mixed.
EXAM_VERSION = 2


@dataclass(frozen=True)
class Exam:
    """Views of the subnet's exam that replace the pictures: the number per picture, the seed, and how they are
    drawn."""

    views: int
    seed: int
    version: int = field(default=EXAM_VERSION, metadata=before(1))

    @property
    def is_current(self) -> bool:
        """True if the views are drawn as this version of the package draws them."""
        return self.version == EXAM_VERSION

    @property
    def chooses(self) -> bool:
        """True for the views by which phases 1 and 4 choose: one at each level."""
        return self.is_current and self.views == _LEVELS


# The value of `group_by` that joins pictures that look alike.
NEAR_DUPLICATES = "near_duplicates"


@dataclass(frozen=True)
class GroupPattern(Section):
    """Groups by a part of each picture's path."""

    place: ClassVar[str] = "data.group_by"

    pattern: Annotated[
        str,
        "A regular expression that is searched in each picture's path relative to the source. Its groups in brackets, "
        "or all that it matches, name the group of the row.",
    ] = ""

    def check(self) -> None:
        try:
            re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            self.require(False, "pattern", f"a regular expression ({error})")
        self.require(bool(self.pattern), "pattern", r"a regular expression, such as ^(.*)_f\d+")


_A_COLUMN = "the name of a column, not a path"


def _is_column(name: str) -> bool:
    """Whether a text may be the name of a column. A slash inside is one of those of TensorFlow, `image/encoded`."""
    is_path = re.match(r"[/\\]|~[^/\\]*[/\\]|~$|\.{1,2}(?:[/\\]|$)|[A-Za-z]:[/\\]|\w+://", name) or re.search(
        r"\\|\.\./|/\.\.", name
    )
    return bool(name.strip()) and name.isprintable() and is_path is None


GroupBy = str | GroupPattern | None


@dataclass(frozen=True)
class SourceConfig(Section):
    """One of several sources. A key that is null takes the value of `data`, except revision and config."""

    place: ClassVar[str] = "data.source"

    source: Annotated[str, "A folder, an archive, a table or a Hub dataset id, as for data.source."] = ""
    name: Annotated[str | None, "Name of the source in row ids and figures; null: the last part of its path."] = None
    role: Annotated[
        Literal["all", "train"],
        "Rows of a source with the role train stand in train alone: nothing is measured on them.",
    ] = "all"
    label: Annotated[
        Literal["no", "yes"] | None, "The label of every picture of the source; null: the source gives the labels."
    ] = None
    share: Annotated[
        float | None, "Largest share of the training rows of an epoch that may come from the source; null: no limit."
    ] = None
    revision: Annotated[str | None, "Branch, tag or commit, if the source is on the Hub."] = None
    config: Annotated[str | None, "Name of the configuration, if the source has several."] = None
    image_column: Annotated[str | None, "As data.image_column, for this source."] = None
    label_column: Annotated[str | None, "As data.label_column, for this source."] = None
    positive_class: Annotated[str | None, "As data.positive_class, for this source.", OF_DATA] = None
    exclude_classes: Annotated[list[str] | None, "As data.exclude_classes, for this source.", OF_DATA] = None
    group_by: Annotated[str | GroupPattern | None, "As data.group_by, for this source."] = None
    label_rule: Annotated[Literal["none", "scene_description"] | None, "As data.label_rule, for this source."] = None

    def check(self) -> None:
        self.require(bool(self.source.strip()), "source", "a folder, an archive, a table or a Hub dataset id")
        for key in ("image_column", "label_column", "group_by"):
            given = getattr(self, key)
            self.require(not isinstance(given, str) or _is_column(given), key, _A_COLUMN)
        self.require(self.share is None or 0 < self.share < 1, "share", "a share between 0 and 1, or null")
        self.require(
            self.group_by != NEAR_DUPLICATES,
            "group_by",
            "a column or a pattern; near_duplicates joins pictures of all sources: set data.group_by",
        )


# The budget of one picture in megapixels, unless a caller gives another (data/pixel_budget.py).
MOST_MEGAPIXELS = 128.0


@dataclass(frozen=True)
class DataConfig(Section):
    """The source of the images and the division of their rows."""

    place: ClassVar[str] = "data"

    source: Annotated[
        str | list[str | SourceConfig] | None,
        "Labelled images: synthetic, a folder (class folders, tables, parquet, save_to_disk), a zip or tar archive, a "
        "table, a Hub dataset id, or a list of several; null: no labelled images, see phase4.unlabelled.",
    ] = "synthetic"
    revision: Annotated[str | None, "Branch, tag or commit of a Hub dataset."] = None
    config: Annotated[str | None, "Name of the configuration, for a data set that has several."] = field(
        default=None, metadata=LATER
    )
    image_column: Annotated[str, "Column that holds the images."] = "image"
    label_column: Annotated[str, "Column that holds the labels."] = "label"
    positive_class: Annotated[
        str | None,
        "The class that becomes label 1: the name of a class folder, or a value of the label column. All other "
        "classes become 0.",
        OF_DATA,
    ] = None
    exclude_classes: Annotated[list[str], "Classes whose rows are left out, such as [unsure].", OF_DATA] = field(
        default_factory=list, metadata=LATER
    )
    group_by: Annotated[
        str | GroupPattern | None,
        "Rows of one group stay in one split: a column with the group's name, {pattern: REGEX} for a part of each "
        "picture's path, or near_duplicates for pictures that look alike; null: each row is its own group.",
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
    max_megapixels: Annotated[
        float,
        "Budget of a picture in megapixels; it protects memory. A larger JPEG is decoded at 1/2, 1/4 or 1/8 of its "
        "size, any other larger picture is one that cannot be read. Slow formats cost a multiple (docs/data.md).",
    ] = field(default=MOST_MEGAPIXELS, metadata=LATER)
    target_prior: Annotated[
        float | None, "Share of label 1 that the model will meet in use; null: the share in the data."
    ] = None
    label_noise: Annotated[float, "Share of the train labels to flip on purpose."] = 0.0
    exclude: Annotated[
        str | list[str] | None,
        "Rows of train and val_select to leave out: the reviewed list of natix-hf audit (its rows with the action "
        "exclude), a table with the column row_id alone, or a list of several files.",
    ] = field(default=None, metadata=LATER)
    relabel: Annotated[
        str | list[str] | None,
        "Rows of train and val_select that get another label: the reviewed list of natix-hf audit (its rows with the "
        "action relabel), a table with the columns row_id and label, or a list of several files.",
    ] = field(default=None, metadata=LATER)
    cache_px: Annotated[
        int, "Short side in px of the decoded copies that training reads; smaller images keep their size."
    ] = 256
    cache: Annotated[
        Literal["raw", "jpeg"],
        "How these copies are stored: raw keeps their exact pixels; jpeg (quality 95) needs a sixth of the disk and "
        "some 2 ms more per view.",
    ] = field(default="raw", metadata=LATER)
    seed: Annotated[int, "Seed of the splits, the label noise and the exam views."] = 0
    exam: Annotated[
        bool,
        "Use views of the subnet's exam to choose epochs and candidates, to fit the threshold, gate and guarantee, "
        "and to measure all figures (docs/subnet.md).",
    ] = False
    exam_views: Annotated[
        int, "Exam views per picture in phases 2, 3, 5 and 6; a multiple of 4, because the exam has four levels."
    ] = 4
    synthetic_half: Annotated[
        str | None,
        "Labelled pictures that a model has generated, as for data.source (one source): the other half of the exam. "
        "Phase 6 measures on them; nothing is trained or chosen with them. Needs data.exam.",
    ] = field(default=None, metadata=LATER)
    augment: Annotated[
        Augment,
        "How training views are drawn: a section of keys, or challenge to draw them like the views of the subnet's "
        "exam; then set cache_px to 384.",
    ] = field(default_factory=AugmentConfig)
    views_on: Annotated[
        ViewsOn,
        "Where training views are made: workers (the loader's processes), device (a batch at once, where the model "
        "is), or auto, which takes the device if it is a GPU.",
    ] = field(default="auto", metadata=LATER)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    labels: LabelNames = field(default_factory=LabelNames, metadata=LATER)
    question: Annotated[
        str | None,
        "The question that the answers are about, for model card and report. With null it is the subnet's question, "
        "or the two names where data.labels gives others.",
    ] = field(default=None, metadata=LATER)

    def check(self) -> None:
        for key in ("image_column", "label_column"):  # before the sources, which inherit them
            self.require(_is_column(getattr(self, key)), key, _A_COLUMN)
        self.require(all(map(_is_column, self.slices)), "slices", f"a list of columns, each {_A_COLUMN}")
        self.require(not isinstance(self.group_by, str) or _is_column(self.group_by), "group_by", _A_COLUMN)
        prior, views = self.target_prior, self.exam_views
        several = self.source if isinstance(self.source, list) else [self.source]
        named = all(not isinstance(source, str) or source.strip() for source in several) and bool(several)
        self.require(named, "source", "synthetic, a folder, a Hub dataset id, a list of sources, or null")
        names = [source.name for source in self.sources]
        self.require(len(set(names)) == len(names), "source", f"sources of different names, but they are {names}")
        shares = [source.share for source in self.sources]
        bounded = [share for share in shares if share is not None]
        self.require(
            len(bounded) < len(shares) or sum(bounded) >= 1 or not shares,
            "source",
            "a list with a source without a share, because the shares of all add up to less than 1",
        )
        self.require(
            not all(source.role == "train" for source in self.sources) or not names,
            "source",
            "a list with a source that may be measured on, without role: train",
        )
        self.require(prior is None or 0 < prior < 1, "target_prior", "a share between 0 and 1, or null")
        self.require(0 <= self.label_noise < 0.5, "label_noise", "a share from 0 to below 0.5")
        for key in ("exclude", "relabel"):
            files = getattr(self, key)
            told = files is None or (bool(files) and all(map(str.strip, [files] if isinstance(files, str) else files)))
            self.require(told, key, "a file, a list of files, or null")
        most = self.max_megapixels
        self.require(0 < most <= 10**4, "max_megapixels", "above 0, up to 10,000")
        self.require_within("cache_px", 1, 10**5)
        self.require_within("seed", 0, 2**63 - 1)
        self.require(0 < views <= 4000 and views % _LEVELS == 0, "exam_views", "a multiple of 4, up to 4,000")
        self.require(self.exam or views == _LEVELS, "exam_views", "left out unless data.exam is true")
        half = self.synthetic_half
        self.require(half is None or bool(half.strip()), "synthetic_half", "a folder, a Hub dataset id, or null")
        self.require(self.exam or half is None, "synthetic_half", "left out unless data.exam is true")
        asked = self.question
        self.require(
            asked is None or (asked == asked.strip() != "" and asked.isprintable()), "question", "one line, or null"
        )

    @property
    def asked_question(self) -> str:
        """The question in words."""
        return self.labels.question if self.question is None else self.question

    @property
    def sources(self) -> list[SourceConfig]:
        """Every source with all its keys filled in. Two sources of one name get a number."""
        several = isinstance(self.source, list)
        given = self.source if isinstance(self.source, list) else [self.source] if self.source is not None else []
        inherited = [key for key in _INHERITED if not (several and key in ("revision", "config"))]
        found: list[SourceConfig] = []
        for entry in given:
            source = entry if isinstance(entry, SourceConfig) else SourceConfig(source=str(entry))
            values = {key: getattr(self, key) for key in inherited if getattr(source, key) is None}
            if self.group_by == NEAR_DUPLICATES:
                values.pop("group_by", None)
            name = source.name or _short_name(source.source)
            taken = sum(_short_name(other.source) == name for other in found)
            found.append(replace(source, name=name if source.name or not taken else f"{name}-{taken + 1}", **values))
        return found

    @property
    def drawn_exam(self) -> Exam | None:
        """The exam of phases 2, 3, 5 and 6. None: they ask about the pictures themselves."""
        return Exam(self.exam_views, self.seed) if self.exam else None

    @property
    def choice_exam(self) -> Exam | None:
        """The exam by which epochs, adapters, probes and candidates are compared: one view at each level, however many
        `exam_views` there are. None: they are compared on the pictures themselves."""
        return Exam(_LEVELS, self.seed) if self.exam else None

    @property
    def groups_known(self) -> bool:
        """Whether something says of every source that is measured on which rows belong together. Without it nothing
        may be called independent; that pictures look different does not make them so."""
        measured = [source for source in self.sources if source.role != "train"]
        return self.group_by != NEAR_DUPLICATES and all(source.group_by is not None for source in measured)


# The keys that a source takes from `data` where it has none of its own.
_INHERITED = (
    "revision",
    "config",
    "image_column",
    "label_column",
    "positive_class",
    "exclude_classes",
    "group_by",
    "label_rule",
)


def _short_name(source: str) -> str:
    """The last part of a path or repository."""
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1] or source
