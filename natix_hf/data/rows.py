"""Rows by role. A phase gets the rows of its roles and no others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from natix_hf.data.config import NEAR_DUPLICATES, DataConfig
from natix_hf.data.decode import decode_once, decoded_columns
from natix_hf.data.division import make_splits
from natix_hf.data.near_duplicates import join_given, near_duplicate_groups, perceptual_hashes
from natix_hf.data.pixel_budget import MOST_MEGAPIXELS
from natix_hf.data.reviewed import apply_review, labels_after_review
from natix_hf.data.sources import SourceRows, load_source
from natix_hf.data.splits import Splits
from natix_hf.disk import naming_cache
from natix_hf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image


@dataclass(frozen=True)
class Rows:
    """The rows of one role. All fields are aligned.

    `labels` is int64 [n]. `source` holds the original images and `decoded` the copies for training. `origins` names
    the source of each row, `columns` holds further columns by name, and `shares` the largest share that a source may
    have in an epoch of training. `max_megapixels` is the budget of an image.
    """

    role: str
    ids: list[str]
    labels: np.ndarray
    groups: np.ndarray
    source: Dataset
    decoded: Dataset
    image_column: str
    origins: list[str] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    max_megapixels: float = MOST_MEGAPIXELS

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, at: np.ndarray) -> Rows:
        """The rows at these positions, int64."""
        rows = at.tolist()
        return replace(
            self,
            ids=[self.ids[i] for i in rows],
            labels=self.labels[at],
            groups=self.groups[at],
            source=self.source.select(rows),
            decoded=self.decoded.select(rows),
            origins=[self.origins[i] for i in rows] if self.origins else [],
            columns={name: [values[i] for i in rows] for name, values in self.columns.items()},
        )

    def images(self) -> Iterable[Image.Image]:
        """Yield the original images, decoded one at a time."""
        from natix_hf.data.images import describe_cell, open_image

        for row_id, cell in zip(self.ids, self.source[self.image_column], strict=True):
            yield open_image(cell, describe_cell(cell, row_id), max_megapixels=self.max_megapixels)


@dataclass(frozen=True)
class ImageData:
    """A loaded source with its splits."""

    config: DataConfig
    rows: SourceRows
    decoded: Dataset
    splits: Splits

    def role(self, role: str) -> Rows:
        at = self.splits.positions(role)
        index_of = {row_id: i for i, row_id in enumerate(self.rows.ids)}
        ids = [self.splits.ids[i] for i in at]
        indices = [index_of[row_id] for row_id in ids]
        return Rows(
            role=role,
            ids=ids,
            labels=np.asarray([self.splits.labels[i] for i in at], dtype=np.int64),
            groups=np.asarray([self.splits.groups[i] for i in at]),
            source=self.rows.images.select(indices),
            decoded=self.decoded.select(indices),
            image_column=self.config.image_column,
            origins=[self.rows.origins[i] for i in indices],
            columns={name: [values[i] for i in indices] for name, values in self.rows.columns.items()},
            shares={str(s.name): s.share for s in self.config.sources if s.share is not None},
            max_megapixels=self.config.max_megapixels,
        )


@naming_cache("datasets")
def load_image_data(config: DataConfig, splits: Splits | None = None) -> ImageData:
    """Load the source, decode every image once, and divide the rows unless `splits` are given.

    What a review left out or relabelled is taken out or changed after the division. Without a source every role is
    empty.

    Raises:
        DataError: As `load_source`, `decode_once`, `make_splits` and `apply_review` do, or if the source no longer
            matches `splits`.
    """
    if config.source is None:
        return _nothing(config)
    rows = load_source(config)
    decoded = decode_once(
        rows.images, rows.ids, config.image_column, config.cache_px, config.on_bad_image, config.cache,
        config.max_megapixels,
    )  # fmt: skip
    problems = {row_id: why for row_id, why in zip(rows.ids, decoded["problem"], strict=True) if why is not None}
    if config.group_by == NEAR_DUPLICATES:
        rows = replace(rows, groups=join_given(look_alikes(decoded), rows.groups))
    named = config.source if isinstance(config.source, str) else "data.source"
    if splits is None:
        _require_readable(rows, problems, named)
        splits = make_splits(
            rows.ids,
            rows.labels,
            rows.groups,
            list(decoded["sha256"]),
            rows.given,
            rows.left_out | {row_id: f"unreadable image: {why}" for row_id, why in problems.items()},
            seed=config.seed,
            on_overlap=config.on_overlap,
            label_noise=config.label_noise,
            origins=rows.origins,
        )
        splits = apply_review(splits, config)
    else:
        missing = set(splits.ids) - set(rows.ids)
        if missing:
            raise DataError(f"{named} lacks row {min(missing)} of splits.json: the source changed, begin a new run")
        lost = next((row_id for row_id in splits.ids if row_id in problems), None)
        if lost is not None:
            raise DataError(
                f"{problems[lost]}; it was readable when the rows were divided: repair it, or begin a new run"
            )
        # Row ids only name positions. The pixels show whether it is still the source that was divided.
        now = dict(zip(rows.ids, decoded["sha256"], strict=True))
        other = next((i for i, digest in zip(splits.ids, splits.sha256, strict=True) if now[i] != digest), None)
        if other is not None:
            raise DataError(f"row {other} of {named} holds another picture now: begin a new run")
    rows = replace(rows, labels=labels_after_review(rows.ids, rows.labels, splits))
    return ImageData(config, rows, decoded, splits)


def look_alikes(decoded: Dataset) -> np.ndarray:
    """The number of each picture's near-duplicate group, int64 [n]; -1 for a picture that cannot be read."""
    known, levels = thumbprints(decoded)
    found = np.full(len(decoded), -1, dtype=np.int64)
    if known:
        found[known] = near_duplicate_groups(perceptual_hashes(levels), levels)
    return found


def thumbprints(decoded: Dataset) -> tuple[list[int], np.ndarray]:
    """The rows of decoded pictures that can be read, and their thumbprints, uint8 [n, 256]."""
    thumbs = decoded.select_columns(["thumbprint"])["thumbprint"][:]
    known = [i for i, thumb in enumerate(thumbs) if thumb is not None]
    joined = b"".join(thumbs[i] for i in known)
    return known, np.frombuffer(joined, dtype=np.uint8).reshape(len(known), 256)


def _nothing(config: DataConfig) -> ImageData:
    from datasets import Dataset

    images = Dataset.from_dict({config.image_column: []})
    decoded = Dataset.from_dict({name: [] for name in decoded_columns()})
    none = np.zeros(0, dtype=np.int64)
    rows = SourceRows(images, [], none, [], [], [], [])
    return ImageData(config, rows, decoded, Splits([], [], [], [], []))


def _require_readable(rows: SourceRows, problems: dict[str, str], source: str) -> None:
    kept = np.array([row_id not in rows.left_out for row_id in rows.ids])
    unreadable = np.array([row_id in problems for row_id in rows.ids])
    for what, at in {
        "images": kept,
        "images with label 0": kept & (rows.labels == 0),
        "images with label 1": kept & (rows.labels == 1),
    }.items():
        if at.any() and unreadable[at].all():
            first = problems[rows.ids[int(np.flatnonzero(at)[0])]]
            raise DataError(f"none of the {at.sum()} {what} of {source} can be read ({first}): repair the source")
