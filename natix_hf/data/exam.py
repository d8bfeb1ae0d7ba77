"""Rows as the subnet's validator would send them: every picture at each level of the exam, seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from natix_hf.data.images import describe_cell, open_image
from natix_hf.subnet.challenge import LEVELS, challenge_image


class ExamViews(Dataset[dict[str, torch.Tensor]]):
    """`pixel_values` of the exam's views, by a model's preprocessing; view `4 row + level` is that row at that level.

    Args:
        cells: an image column of `datasets`, undecoded. ids: of its rows, for errors.
        seed: with row and level it decides the view.
    """

    def __init__(
        self, cells: Sequence[Any], ids: Sequence[str], preprocess: Callable[[Image.Image], torch.Tensor], seed: int
    ) -> None:
        self.cells = cells
        self.ids = ids
        self.preprocess = preprocess
        self.seed = seed

    def __len__(self) -> int:
        return len(self.ids) * len(LEVELS)

    def __getitem__(self, view: int) -> dict[str, torch.Tensor]:
        row, level = divmod(view, len(LEVELS))
        cell = self.cells[row]
        image = open_image(cell, describe_cell(cell, self.ids[row]))
        return {"pixel_values": self.preprocess(challenge_image(image, level, self.seed * 2**32 + row))}
