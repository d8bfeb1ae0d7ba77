"""The pictures that a model is asked about: each row as it is, or at several views of the subnet's exam.

This file holds all arithmetic of views. The views of a row are neighbours: answer `views * row + i` belongs to view i
of that row, at level `i % 4` of the exam.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from natix_hf.data.config import Exam
from natix_hf.data.images import describe_cell, open_image, pixel_sha256
from natix_hf.data.pixel_budget import MOST_MEGAPIXELS
from natix_hf.data.rows import Rows
from natix_hf.errors import DataError
from natix_hf.subnet.challenge import LEVELS, cached_picture, decode_jpeg, sent_jpeg


class Asked:
    """Rows times views, aligned with a model's answers.

    `ids`, `groups`, `labels` and `levels` have one entry per answer. `row_ids` and `row_labels` have one entry per
    row.

    Args:
        row_ids: List of n row ids.
        row_groups: Groups, str [n].
        row_labels: Labels, int64 [n].
        exam: The views of each row. None: the pictures themselves.
        cells: The n cells of an undecoded image column. None if the pictures are not needed.
        fingerprint: What identifies the pictures, for the key of a cache. Empty: nothing does.
        generated: The pictures were made by a model. The exam draws their views as those of such pictures.
        digests: The n pixel digests that the pictures must have. None: they are not compared.
        max_megapixels: The budget of a picture.
    """

    def __init__(
        self,
        row_ids: list[str],
        row_groups: np.ndarray,
        row_labels: np.ndarray,
        exam: Exam | None = None,
        cells: Sequence[Any] | None = None,
        fingerprint: str = "",
        generated: bool = False,
        digests: Sequence[str] | None = None,
        max_megapixels: float = MOST_MEGAPIXELS,
    ) -> None:
        self.row_ids = row_ids
        self.row_groups = row_groups
        self.row_labels = row_labels
        self.exam = exam
        self.cells = cells
        self.fingerprint = fingerprint
        self.generated = generated
        self.digests = digests
        self.max_megapixels = max_megapixels

    @property
    def views(self) -> int:
        """Number of views per row."""
        return self.exam.views if self.exam is not None else 1

    def __len__(self) -> int:
        return len(self.row_ids) * self.views

    @cached_property
    def ids(self) -> list[str]:
        return [row_id for row_id in self.row_ids for _ in range(self.views)]

    @cached_property
    def groups(self) -> np.ndarray:
        return self.of_rows(self.row_groups)

    @cached_property
    def labels(self) -> np.ndarray:
        return self.of_rows(self.row_labels)

    @cached_property
    def levels(self) -> np.ndarray:
        """Level of each answer in the exam, int64. All are 0 without an exam."""
        return np.arange(len(self)) % self.views % len(LEVELS)

    def of_rows(self, values: Any) -> np.ndarray:
        """Repeat one value per row for each answer to that row."""
        return np.repeat(np.asarray(values), self.views)

    def select(self, rows: np.ndarray) -> Asked:
        """Ask about the rows at these positions only, int64 [m]."""
        cells = None if self.cells is None else _Chosen(self.cells, rows)
        ids = [self.row_ids[i] for i in rows]
        groups, labels = self.row_groups[rows], self.row_labels[rows]
        digests, most = None if self.digests is None else [self.digests[int(i)] for i in rows], self.max_megapixels
        return Asked(ids, groups, labels, self.exam, cells, self.fingerprint, self.generated, digests, most)

    def picture(self, i: int) -> Image.Image:
        """The picture for answer i: the original image, or its exam view of 224 x 224 px.

        Raises:
            DataError: If the image cannot be read, is not the one that was divided, or is too large for the exam.
        """
        return self.pictures_of([i])[0]

    def pictures_of(self, answers: Sequence[int]) -> list[Image.Image]:
        """The pictures for several answers. Neighbouring views of a row share one decoding and one first JPEG."""
        shown = []
        for row, of_row in groupby(answers, key=lambda i: i // self.views):
            if self.exam is None:
                shown += [self._open(row) for _ in of_row]
            else:
                cached = self._cached(row)
                shown += [decode_jpeg(self._sent(cached, row, i % self.views)) for i in of_row]
        return shown

    def jpegs_of(self, row: int) -> list[bytes]:
        """The JPEG files that the validator sends about a row, one for each view of the exam, in their order.

        Raises:
            DataError: As in `picture`.
        """
        assert self.exam is not None, "whole pictures are not sent"
        cached = self._cached(row)
        return [self._sent(cached, row, view) for view in range(self.views)]

    def _open(self, row: int) -> Image.Image:
        assert self.cells is not None, "this object was made without pictures"
        cell = self.cells[row]
        image = open_image(cell, describe_cell(cell, self.row_ids[row]), max_megapixels=self.max_megapixels)
        if self.digests is not None and pixel_sha256(image) != self.digests[row]:
            raise DataError(
                f"row {self.row_ids[row]} holds another picture than when the rows were divided: restore it, or begin "
                "a new run"
            )
        return image

    def _cached(self, row: int) -> Image.Image:
        """A row's picture as the validator's cache holds it."""
        image = self._open(row)
        try:
            return cached_picture(image, generated=self.generated)
        except ValueError as error:
            raise DataError(f"row {self.row_ids[row]}: {error}") from None

    def _sent(self, cached: Image.Image, row: int, view: int) -> bytes:
        # A view depends on the id of its row only, so it is the same whatever other rows are asked.
        assert self.exam is not None and self.exam.is_current, "views of another version cannot be drawn again"
        name = f"{self.exam.seed}/{view // len(LEVELS)}/{self.row_ids[row]}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        return sent_jpeg(cached, view % len(LEVELS), seed)


class _Chosen(Sequence[Any]):
    """Some of the cells of a column, which are read when they are asked for."""

    def __init__(self, cells: Sequence[Any], rows: np.ndarray) -> None:
        self.cells, self.rows = cells, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        return self.cells[int(self.rows[i])]


def ask(rows: Rows, exam: Exam | None = None) -> Asked:
    """Ask about the rows of a role, as they are or at the views of an exam."""
    cells = rows.source.select_columns([rows.image_column])[rows.image_column]
    fingerprint = f"{rows.role} {rows.decoded._fingerprint}"
    # A sample of a stream was never divided, so nothing says what its pictures must be.
    digests = rows.decoded["sha256"][:] if "sha256" in rows.decoded.column_names else None
    most = rows.max_megapixels
    return Asked(rows.ids, rows.groups, rows.labels, exam, cells, fingerprint, digests=digests, max_megapixels=most)
