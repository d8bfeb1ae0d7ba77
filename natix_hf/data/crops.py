"""Several augmented crops of each image, with masks, for self-supervised training. No labels are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from natix_hf.data.augment import views_of
from natix_hf.data.crops_config import CropConfig
from natix_hf.data.decode import pixels_of
from natix_hf.data.drawn import Drawn, draw_crop
from natix_hf.data.masking import block_masks
from natix_hf.data.pixels import Normalise

if TYPE_CHECKING:
    import datasets

Crops = dict[str, torch.Tensor]


class MultiCropViews(Dataset[Crops]):
    """Crops of the decoded copies, indexed by `(epoch, row)`. Every draw depends only on the key and the seed.

    An item holds `global_crops` uint8 [2, 3, size, size], `local_crops` uint8 [local_crops, 3, s, s], and `masks`
    bool [2, patches of a global crop]. `finish` normalises both kinds of crops.

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
        self.size = size
        self.local_size = config.local_pixels(size, patch_size)
        self.grid = (size // patch_size, size // patch_size)
        self.finish = Normalise(mean, std)
        self.seed = seed
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
        return [self._item(key, copy) for key, copy in zip(keys, copies, strict=True)]

    def _item(self, key: tuple[int, int], copy: np.ndarray) -> Crops:
        rng = np.random.default_rng([self.seed, *key])
        masks = block_masks(rng, 2, self.grid, self.mask_share, self.mask_ratio)
        height, width, _ = copy.shape
        large = [global_crop(width, height, which, self.config, self.size, rng) for which in range(2)]
        small = [local_crop(width, height, self.config, self.size, rng) for _ in range(self.config.local_crops)]
        local_crops = torch.empty(0, 3, self.local_size, self.local_size, dtype=torch.uint8)
        return {
            "global_crops": views_of(copy, large, self.size),
            "local_crops": views_of(copy, small, self.local_size) if small else local_crops,
            "masks": torch.from_numpy(masks),
        }


def global_crop(width: int, height: int, which: int, config: CropConfig, size: int, rng: np.random.Generator) -> Drawn:
    """Draw the first (`which` 0) or second (`which` 1) global crop of a picture of this size."""
    solarise = config.solarise if which == 1 else 0.0
    return draw_crop(width, height, config, config.global_scale, config.blur[which], size / 224, solarise, rng)


def local_crop(width: int, height: int, config: CropConfig, global_size: int, rng: np.random.Generator) -> Drawn:
    """Draw a local crop of a picture of this size. Its blur has as many px as in the global crops."""
    return draw_crop(width, height, config, config.local_scale, config.blur[2], global_size / 224, 0.0, rng)
