"""torch datasets over rows: augmented training views, the views that `predict` sees, and cached features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from mmap import mmap
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from natix_hf.data.asked import Asked
from natix_hf.data.augment import augment, draw_at
from natix_hf.data.config import Augment, ViewsOn
from natix_hf.data.decode import pixels_of
from natix_hf.data.drawn import strongest_blur
from natix_hf.data.exam_on_device import described_challenge, made_challenges
from natix_hf.data.on_device import described, device_steps, made, same_size, samples_a_px
from natix_hf.data.pixels import Normalise
from natix_hf.data.rows import Rows
from natix_hf.subnet.challenge import SIZE

Item = dict[str, Any]


# How training views are made. Raise the number with every change of their pixels: features of views of two versions
# are never mixed.
VIEWS_VERSION = 3


def finished(views: Any, batch: Item) -> Item:
    """Turn a batch of a dataset's items into the inputs of a model, on the device where the batch is.

    Workers hand over pictures as bytes, which are a quarter of the floats. A dataset that does so has a method
    `finish`. Items of other datasets, such as a user's own, are inputs already.
    """
    finish = getattr(views, "finish", None)
    return batch if finish is None else finish(batch)


def choose_place(views: Any, views_on: ViewsOn, device: torch.device) -> None:
    """Decide where views are made, before they are read: by `data.views_on`, for training on `device`.

    Views of another class are left alone.
    """
    inner = getattr(views, "views", views)  # what MaskedViews and StreamedViews hold
    if hasattr(inner, "on_device"):
        inner.on_device = views_on == "device" or (views_on == "auto" and device.type == "cuda")


class TrainViews(Dataset[Item]):
    """Augmented views of the decoded copies, indexed by `(epoch, row)`.

    An item holds `pixel_values` uint8 [3, size, size], and `labels`. `finish` normalises the pixels of a batch.

    Attributes:
        on_device: `finish` makes the views too. An item then holds in `pixel_values` the copy, uint8 [H, W, 3], and in
            `drawn` what to make of it.
        drawn_for: Size of the model for which views are drawn. A teacher of another size sees the student's views.
    """

    def __init__(self, rows: Rows, config: Augment, size: int, mean: list[float], std: list[float], seed: int) -> None:
        self.decoded = rows.decoded.with_format("arrow")
        self.labels = rows.labels
        self.config = config
        self.size = size
        self.normalise = Normalise(mean, std)
        self.seed = seed
        self.on_device = False
        self.drawn_for = size
        if config == "challenge":
            self.finer = samples_a_px(rows.decoded, SIZE, [1, 1], [1, 1])
        else:
            self.finer = samples_a_px(rows.decoded, size, config.crop_scale, config.crop_ratio)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Item]:
        """Make a whole batch. The DataLoader calls this, so that a batch pays the overhead of `datasets` only once."""
        items = self.draw(keys, pixels_of(self.decoded, [row for _, row in keys]))
        return [item | {"labels": int(self.labels[row])} for item, (_, row) in zip(items, keys, strict=True)]

    def draw(self, keys: Sequence[tuple[int, int]], copies: Sequence[np.ndarray]) -> list[Item]:
        """Draw a view of each copy, uint8 [H, W, 3], without a label."""
        config, size = self.config, self.size
        pairs = list(zip(copies, (np.random.default_rng([self.seed, *key]) for key in keys), strict=True))
        if not self.on_device:
            return [{"pixel_values": augment(copy, config, size, rng, self.drawn_for)} for copy, rng in pairs]
        if config == "challenge":
            drawn = [described_challenge(copy, rng) for copy, rng in pairs]
        else:
            drawn = [described(c, [draw_at(c, config, size, rng, self.drawn_for)], size) for c, rng in pairs]
        return [{"pixel_values": c, "drawn": one} for c, one in zip(same_size(copies), drawn, strict=True)]

    def finish(self, batch: Item) -> Item:
        """Turn a batch of items into the inputs of a model, on the device where the batch is."""
        if "drawn" in batch:
            batch = dict(batch)
            batch["pixel_values"] = self._made(batch["pixel_values"], batch.pop("drawn"))
        return self.normalise(batch)

    def _made(self, copies: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        config, size = self.config, self.size
        if config == "challenge":
            return made_challenges(copies, drawn, size, self.finer)
        recolours, sigma = config.jitter > 0 or config.grey > 0, strongest_blur(size) if config.blur else 0.0
        steps = device_steps(recolours, sigma, erases=config.erase > 0)
        return made(copies, drawn, size, steps, self.finer, cubic=True, rotated=config.rotate > 0)[:, 0]


class MaskedViews(Dataset[Item]):
    """`TrainViews` without labels but with noise, by which a masked autoencoder picks the patches to mask.

    Indexed by `(epoch, row)`. An item holds `pixel_values` uint8 [3, size, size] and `noise` float32 [patches].
    """

    def __init__(self, views: TrainViews, patches: int) -> None:
        self.views = views
        self.patches = patches

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Item]:
        """Make a whole batch. The DataLoader calls this."""
        return self.draw(keys, pixels_of(self.views.decoded, [row for _, row in keys]))

    def draw(self, keys: Sequence[tuple[int, int]], copies: Sequence[np.ndarray]) -> list[Item]:
        """Draw a view of each copy, uint8 [H, W, 3], and its noise."""
        items = self.views.draw(keys, copies)
        for (epoch, row), item in zip(keys, items, strict=True):
            # The final 1 makes these draws independent of the draws of the view.
            noise = np.random.default_rng([self.views.seed, epoch, row, 1]).random(self.patches, dtype=np.float32)
            item["noise"] = torch.from_numpy(noise)
        return items

    def finish(self, batch: Item) -> Item:
        """Turn a batch of items into the inputs of an objective, on the device where the batch is."""
        return self.views.finish(batch)


class NumberedViews(Dataset[Item]):
    """`TrainViews` with the number of their row in place of a label. They cannot be drawn for a stream, whose rows
    have no numbers.

    Indexed by `(epoch, row)`. An item holds what those of `TrainViews` hold of pictures, and `row`, int64.
    """

    def __init__(self, views: TrainViews) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Item]:
        """Make a whole batch. The DataLoader calls this."""
        items = self.views.draw(keys, pixels_of(self.views.decoded, [row for _, row in keys]))
        return [item | {"row": torch.tensor(row)} for item, (_, row) in zip(items, keys, strict=True)]

    def finish(self, batch: Item) -> Item:
        """Turn a batch of items into the inputs of an objective, on the device where the batch is."""
        return self.views.finish(batch)


class AskedViews(Dataset[Item]):
    """Preprocessed pictures of `Asked`, one per answer.

    An item holds `pixel_values` float32 [3, H, W] and `labels`.
    """

    def __init__(self, asked: Asked, preprocess: Callable[[Image.Image], torch.Tensor]) -> None:
        self.asked = asked
        self.labels = asked.labels
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, i: int) -> Item:
        return self.__getitems__([i])[0]

    def __getitems__(self, answers: Sequence[int]) -> list[Item]:
        """Make a whole batch. The DataLoader calls this."""
        pictures = zip(self.asked.pictures_of(answers), answers, strict=True)
        return [{"pixel_values": self.preprocess(image), "labels": int(self.labels[i])} for image, i in pictures]


class FeatureViews(Dataset[Item]):
    """Cached features, float32 [views, n, d]. Epoch e reads view e modulo the number of views.

    Indexed by `(epoch, row)` in training and by `row` in evaluation, which reads view 0. An item holds `features` [d]
    and `labels`.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[Item]:
        """Make a whole batch. The DataLoader calls this."""
        pairs = [key if isinstance(key, tuple) else (0, key) for key in keys]
        views, rows = [epoch % len(self.features) for epoch, _ in pairs], [row for _, row in pairs]
        values = torch.from_numpy(np.asarray(self.features)[views, rows])
        return [{"features": values[i], "labels": int(self.labels[row])} for i, row in enumerate(rows)]

    def __reduce__(self) -> tuple[Any, ...]:
        # A spawned worker maps the file itself. Pickling the array would send it a copy of all features.
        whole_file = isinstance(getattr(self.features, "base", None), mmap)
        if isinstance(self.features, np.memmap) and whole_file:
            return _map_features, (str(self.features.filename), self.labels)
        return FeatureViews, (self.features, self.labels)


def _map_features(path: str, labels: np.ndarray) -> FeatureViews:
    return FeatureViews(np.load(path, mmap_mode="r"), labels)
