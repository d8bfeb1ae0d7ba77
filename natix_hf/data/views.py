"""torch datasets over `datasets` rows: augmented training views, views as `predict` sees them, cached features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from natix_hf.data.augment import augment
from natix_hf.data.config import AugmentConfig
from natix_hf.data.decode import pixels_of
from natix_hf.data.images import describe_cell, open_image
from natix_hf.data.rows import Rows

Item = dict[str, Any]


class TrainViews(Dataset[Item]):
    """Augmented views of the decode-once copies, indexed by `(epoch, row)`.

    Yields `pixel_values` float32 [3, size, size], normalised, and `labels`.
    """

    def __init__(
        self, rows: Rows, config: AugmentConfig, size: int, mean: list[float], std: list[float], seed: int
    ) -> None:
        self.decoded = rows.decoded.with_format("arrow")
        self.labels = rows.labels
        self.config = config
        self.size = size
        self.mean = np.asarray(mean, dtype=np.float32) * 255
        self.std = np.asarray(std, dtype=np.float32) * 255
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, row = key
        rng = np.random.default_rng([self.seed, epoch, row])
        view = augment(Image.fromarray(pixels_of(self.decoded, row)), self.config, self.size, rng)
        normalised = (view - self.mean) / self.std
        return {
            "pixel_values": torch.from_numpy(normalised).permute(2, 0, 1).contiguous(),
            "labels": int(self.labels[row]),
        }


class OriginalViews(Dataset[Item]):
    """The original images through the preprocessing of `predict`. Yields `pixel_values` and `labels`."""

    def __init__(self, rows: Rows, preprocess: Callable[[Image.Image], torch.Tensor]) -> None:
        self.source = rows.source.select_columns([rows.image_column])
        self.image_column = rows.image_column
        self.ids = rows.ids
        self.labels = rows.labels
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Item:
        cell = self.source[row][self.image_column]
        image = open_image(cell, describe_cell(cell, self.ids[row]))
        return {"pixel_values": self.preprocess(image), "labels": int(self.labels[row])}


class FeatureViews(Dataset[Item]):
    """Cached features, float32 [views, n, d]: epoch e reads view e modulo the number of views.

    Indexed by `(epoch, row)` in training and by `row` in evaluation (view 0). Yields `features` [d] and `labels`.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        epoch, row = key if isinstance(key, tuple) else (0, key)
        features = self.features[epoch % len(self.features), row]
        return {"features": torch.from_numpy(np.array(features)), "labels": int(self.labels[row])}
