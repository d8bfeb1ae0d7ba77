"""Rows as the subnet's validator would send them: exam views of every picture, its levels in turn, seeded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from natix_hf.data.images import describe_cell, open_image
from natix_hf.subnet.challenge import LEVELS, challenge_image


class ExamViews(Dataset[dict[str, torch.Tensor]]):
    """`pixel_values` of the exam's views, by a model's preprocessing; view `views * row + i` is that row at level
    `i % 4`.

    Args:
        cells: an image column of `datasets`, undecoded. ids: of its rows: what a view looks like hangs on them, not on
            which other rows are asked.
        seed: the other half of what decides a view.
        views: of each row.
    """

    def __init__(
        self,
        cells: Sequence[Any],
        ids: Sequence[str],
        preprocess: Callable[[Image.Image], torch.Tensor],
        seed: int,
        views: int = len(LEVELS),
    ) -> None:
        self.cells = cells
        self.ids = ids
        self.preprocess = preprocess
        self.seed = seed
        self.views = views

    def __len__(self) -> int:
        return len(self.ids) * self.views

    def __getitem__(self, view: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([view])[0]

    def __getitems__(self, views: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """A whole batch, as a DataLoader asks for it: neighbours are views of one row, which is decoded once."""
        items = []
        for row, of_row in groupby(views, key=lambda view: view // self.views):
            image = self._open(row)
            items += [{"pixel_values": self.preprocess(self._seen(image, view))} for view in of_row]
        return items

    def picture(self, view: int) -> Image.Image:
        """What is sent: RGB, 224 x 224 px."""
        return self._seen(self._open(view // self.views), view)

    def _open(self, row: int) -> Image.Image:
        cell = self.cells[row]
        return open_image(cell, describe_cell(cell, self.ids[row]))

    def _seen(self, image: Image.Image, view: int) -> Image.Image:
        row, i = divmod(view, self.views)
        name = f"{self.seed}/{i // len(LEVELS)}/{self.ids[row]}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        return challenge_image(image, i % len(LEVELS), seed)
