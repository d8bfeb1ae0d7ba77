"""What a model is asked: rows, each as it is or at several views of the subnet's exam.

All arithmetic of views lives here. The views of a row follow each other: answer `views * row + i` is view i of that
row, at level `i % 4` of the exam.
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
from natix_hf.data.images import describe_cell, open_image
from natix_hf.data.rows import Rows
from natix_hf.subnet.challenge import LEVELS, challenge_image


class Asked:
    """Rows times views, aligned with the answers to them: `ids`, `groups`, `labels` and `levels` have one entry per
    answer, `row_ids` and `row_labels` one per row.

    Args:
        row_ids: a list of n row ids.
        row_groups: str [n].
        row_labels: int64 [n].
        exam: which views are asked; None: the pictures themselves.
        cells: the n cells of an undecoded image column; None where the pictures are not at hand.
    """

    def __init__(
        self,
        row_ids: list[str],
        row_groups: np.ndarray,
        row_labels: np.ndarray,
        exam: Exam | None = None,
        cells: Sequence[Any] | None = None,
    ) -> None:
        self.row_ids = row_ids
        self.row_groups = row_groups
        self.row_labels = row_labels
        self.exam = exam
        self.cells = cells

    @property
    def views(self) -> int:
        """The number of views of each row."""
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
        """The exam's level of each answer, int64. Without an exam there are no levels: all are 0."""
        return np.arange(len(self)) % self.views % len(LEVELS)

    def of_rows(self, values: Any) -> np.ndarray:
        """One value per row, repeated for each answer to that row."""
        return np.repeat(np.asarray(values), self.views)

    def picture(self, i: int) -> Image.Image:
        """What is shown for answer i: the original image, or the view that the exam makes of it (224 x 224 px).

        Raises:
            DataError: the image cannot be read.
        """
        return self._shown(self._open(i // self.views), i)

    def pictures_of(self, answers: Sequence[int]) -> list[Image.Image]:
        """`picture` of several answers. A row is decoded once where its views are neighbours."""
        shown = []
        for row, of_row in groupby(answers, key=lambda i: i // self.views):
            image = self._open(row)
            shown += [self._shown(image, i) for i in of_row]
        return shown

    def _open(self, row: int) -> Image.Image:
        assert self.cells is not None, "the pictures are not at hand"
        cell = self.cells[row]
        return open_image(cell, describe_cell(cell, self.row_ids[row]))

    def _shown(self, image: Image.Image, i: int) -> Image.Image:
        if self.exam is None:
            return image
        row, view = divmod(i, self.views)
        # A view depends on the row's id, not on which other rows are asked.
        name = f"{self.exam.seed}/{view // len(LEVELS)}/{self.row_ids[row]}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        return challenge_image(image, view % len(LEVELS), seed)


def ask(rows: Rows, exam: Exam | None = None) -> Asked:
    """The rows of a role, as they are or at the views of an exam."""
    cells = rows.source.select_columns([rows.image_column])[rows.image_column]
    return Asked(rows.ids, rows.groups, rows.labels, exam, cells)
