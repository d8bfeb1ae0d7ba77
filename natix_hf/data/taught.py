"""Training views with the answers of a teacher to the very same views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from natix_hf.data.views import Item, finished

# What an item holds of the teacher.
TEACHER = "teacher"


class TaughtViews(Dataset[Item]):
    """Views of rows, each with the teacher's answer. Epoch e reads view e modulo the number of views.

    Indexed by `(epoch, row)`. An item holds what an item of `views` holds, and `teacher`, a float32 scalar.

    Args:
        views: `TrainViews` or `FeatureViews`.
        answers: The teacher's probability of label 1 at the temperature, float32 [views, n].
    """

    def __init__(self, views: Any, answers: np.ndarray) -> None:
        self.views = views
        self.answers = answers

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Item]:
        """Make a whole batch. The DataLoader calls this."""
        read = [(epoch % len(self.answers), row) for epoch, row in keys]
        answers = torch.from_numpy(self.answers[[view for view, _ in read], [row for _, row in read]])
        items = self.views.__getitems__(read)
        return [item | {TEACHER: answer} for item, answer in zip(items, answers, strict=True)]

    def finish(self, batch: Item) -> Item:
        """Turn a batch of items into the inputs of a training, on the device where the batch is."""
        return finished(self.views, batch)
