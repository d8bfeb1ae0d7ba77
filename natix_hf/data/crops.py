"""Several augmented crops of each image, with masks, for self-supervised training. No labels are read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from natix_hf.data.augment import views_of
from natix_hf.data.crops_config import CropConfig
from natix_hf.data.decode import pixels_of
from natix_hf.data.drawn import Drawn, draw_crop, strongest_blur
from natix_hf.data.masking import block_masks
from natix_hf.data.on_device import described, device_steps, made, same_size, samples_a_px
from natix_hf.data.pixels import Normalise

if TYPE_CHECKING:
    import datasets

Crops = dict[str, torch.Tensor]


class MultiCropViews(Dataset[Crops]):
    """Crops of the decoded copies, indexed by `(epoch, row)`. Every draw depends only on the key and the seed.

    An item holds `global_crops` uint8 [2, 3, size, size], `local_crops` uint8 [local_crops, 3, s, s], and `masks`
    bool [2, patches of a global crop]. `finish` normalises both kinds of crops.

    With `on_device`, `finish` makes them too. An item then holds the copy, uint8 [H, W, 3], as `pixel_values`, and
    what to make of it in the places of the crops.

    Args:
        decoded: Dataset from `decode_once` (`Rows.decoded`).
        config: Number and augmentation of the crops.
        size: Side of a global crop in px, a multiple of `patch_size`.
        patch_size: Side of a patch in px.
        mean, std: Three values each for the normalisation of pixels from 0 to 1.
        seed: Seed of every draw.
        mask_share, mask_ratio: See `block_masks`.
    """

    def __init__(
        self,
        decoded: datasets.Dataset,
        config: CropConfig,
        size: int,
        patch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        mask_share: float = 0.5,
        mask_ratio: Sequence[float] = (0.1, 0.5),
    ) -> None:
        self.decoded = decoded.with_format("arrow")
        self.config = config
        self.cubic = config.interpolation == "bicubic"
        self.size = size
        self.local_size = config.local_pixels(size, patch_size)
        self.grid = (size // patch_size, size // patch_size)
        self.normalise = Normalise(mean, std)
        self.seed = seed
        self.on_device = False
        self.finer = {
            "global_crops": samples_a_px(decoded, size, config.global_scale, config.ratio),
            "local_crops": samples_a_px(decoded, self.local_size, config.local_scale, config.ratio),
        }
        self.mask_share = mask_share
        self.mask_ratio = tuple(mask_ratio)

    def __len__(self) -> int:
        return len(self.decoded)

    def __getitem__(self, key: tuple[int, int]) -> Crops:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Crops]:
        """Make a whole batch. The DataLoader calls this."""
        return self.draw(keys, pixels_of(self.decoded, [row for _, row in keys]))

    def draw(self, keys: Sequence[tuple[int, int]], copies: Sequence[np.ndarray]) -> list[Crops]:
        """Draw the crops and masks of each copy, uint8 [H, W, 3]."""
        items = [self._item(key, copy) for key, copy in zip(keys, copies, strict=True)]
        if not self.on_device:
            return items
        return [item | {"pixel_values": copy} for item, copy in zip(items, same_size(copies), strict=True)]

    def finish(self, batch: Crops) -> Crops:
        """Turn a batch of items into the inputs of an objective, on the device where the batch is."""
        if "pixel_values" in batch:
            batch, config = dict(batch), self.config
            copies, sigma = batch.pop("pixel_values"), strongest_blur(self.size)
            recolours = config.jitter_share > 0 or config.grey > 0
            large = device_steps(recolours, sigma if any(config.blur[:2]) else 0.0, config.solarise > 0)
            small = device_steps(recolours, sigma if config.blur[2] else 0.0)
            for name, size, steps in (("global_crops", self.size, large), ("local_crops", self.local_size, small)):
                batch[name] = made(copies, batch[name], size, steps, self.finer[name], self.cubic, rotated=False)
        return self.normalise(batch)

    def _item(self, key: tuple[int, int], copy: np.ndarray) -> Crops:
        rng = np.random.default_rng([self.seed, *key])
        masks = block_masks(rng, 2, self.grid, self.mask_share, self.mask_ratio)
        height, width, _ = copy.shape
        large = [global_crop(width, height, which, self.config, self.size, rng) for which in range(2)]
        small = [local_crop(width, height, self.config, self.size, rng) for _ in range(self.config.local_crops)]
        make = described if self.on_device else partial(views_of, cubic=self.cubic)
        return {
            "global_crops": make(copy, large, self.size),
            "local_crops": make(copy, small, self.local_size),
            "masks": torch.from_numpy(masks),
        }


def global_crop(width: int, height: int, which: int, config: CropConfig, size: int, rng: np.random.Generator) -> Drawn:
    """Draw the first (`which` 0) or second (`which` 1) global crop of a picture of this size."""
    solarise = config.solarise if which == 1 else 0.0
    return draw_crop(width, height, config, config.global_scale, config.blur[which], size / 224, solarise, rng)


def local_crop(width: int, height: int, config: CropConfig, global_size: int, rng: np.random.Generator) -> Drawn:
    """Draw a local crop of a picture of this size. Its blur has as many px as in the global crops."""
    return draw_crop(width, height, config, config.local_scale, config.blur[2], global_size / 224, 0.0, rng)
