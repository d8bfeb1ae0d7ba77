"""Several augmented crops of each image, with masks, for self-supervised training. No labels are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import Dataset

from natix_hf.data.augment import _LUMA, _crop_box
from natix_hf.data.config import AugmentConfig
from natix_hf.data.crops_config import CropConfig
from natix_hf.data.decode import pixels_of
from natix_hf.data.masking import block_masks

if TYPE_CHECKING:
    import datasets

Crops = dict[str, torch.Tensor]

# RGB to luma and two chroma axes (YIQ). A change of hue is a rotation of the two chroma axes.
_TO_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
_ROWS_OF_LUMA = np.tile(_LUMA, (3, 1))


class MultiCropViews(Dataset[Crops]):
    """Crops of the decoded copies, indexed by `(epoch, row)`. Every draw depends only on the key and the seed.

    An item holds `global_crops` float32 [2, 3, size, size], `local_crops` float32 [local_crops, 3, s, s], and `masks`
    bool [2, patches of a global crop]. Both kinds of crops are normalised.

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
        self.mean = np.asarray(mean, dtype=np.float32).reshape(3, 1, 1) * 255
        self.std = np.asarray(std, dtype=np.float32).reshape(3, 1, 1) * 255
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
        n_local = self.config.local_crops
        large = np.empty((len(keys), 2, 3, self.size, self.size), dtype=np.float32)
        small = np.empty((len(keys), n_local, 3, self.local_size, self.local_size), dtype=np.float32)
        masks = np.empty((len(keys), 2, self.grid[0] * self.grid[1]), dtype=bool)
        for place, (epoch, row) in enumerate(keys):
            rng = np.random.default_rng([self.seed, epoch, row])
            image = Image.fromarray(copies[place])
            masks[place] = block_masks(rng, 2, self.grid, self.mask_share, self.mask_ratio)
            for crop in range(2):
                large[place, crop] = global_crop(image, crop, self.config, self.size, rng).transpose(2, 0, 1)
            for crop in range(n_local):
                view = local_crop(image, self.config, self.local_size, self.size, rng)
                small[place, crop] = view.transpose(2, 0, 1)
        for pixels in (large, small):
            pixels -= self.mean
            pixels /= self.std
        global_crops, local_crops = torch.from_numpy(large), torch.from_numpy(small)
        hidden = torch.from_numpy(masks)
        return [
            {"global_crops": global_crops[i], "local_crops": local_crops[i], "masks": hidden[i]}
            for i in range(len(keys))
        ]


def global_crop(image: Image.Image, which: int, config: CropConfig, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the first (`which` 0) or second (`which` 1) global crop of an RGB image, uint8 [size, size, 3]."""
    solarise = config.solarise if which == 1 else 0.0
    return _crop(image, config, config.global_scale, size, size / 224, config.blur[which], solarise, rng)


def local_crop(
    image: Image.Image, config: CropConfig, size: int, global_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw a local crop of an RGB image, uint8 [size, size, 3]. Its blur has as many px as in the global crops."""
    return _crop(image, config, config.local_scale, size, global_size / 224, config.blur[2], 0.0, rng)


def _crop(
    image: Image.Image,
    config: CropConfig,
    scale: list[float],
    size: int,
    blur_unit: float,
    blur: float,
    solarise: float,
    rng: np.random.Generator,
) -> np.ndarray:
    shape = AugmentConfig(crop_scale=scale, crop_ratio=config.ratio)
    box = _crop_box(image.width, image.height, shape, rng)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if config.flip and rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    brightness, contrast, saturation, hue = 1.0, 1.0, 1.0, 0.0
    if rng.random() < config.jitter_share:
        strengths = np.asarray(config.jitter)
        brightness, contrast, saturation, hue = (np.array([1, 1, 1, 0]) + rng.uniform(-strengths, strengths)).tolist()
    if rng.random() < config.grey:
        saturation = 0.0
    if (brightness, contrast, saturation, hue) != (1, 1, 1, 0):
        view = _recolour(view, brightness, contrast, saturation, hue)
    if rng.random() < blur:
        view = view.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.1, 2.0)) * blur_unit))
    if rng.random() < solarise:
        view = ImageOps.solarize(view, 128)
    return np.asarray(view)


def _recolour(view: Image.Image, brightness: float, contrast: float, saturation: float, hue: float) -> Image.Image:
    """Turn the hue by a share `hue` of a full circle, then scale saturation, contrast and brightness.

    Hue and saturation keep a pixel's grey. All four steps are therefore one affine map, which PIL applies in one pass.
    """
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turn = _FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _TO_YIQ
    colour = saturation * turn + (1 - saturation) * _ROWS_OF_LUMA
    mean = np.array(view.reduce(view.size).getpixel((0, 0)), dtype=np.float64)
    shift = brightness * (1 - contrast) * float(mean @ _LUMA)
    affine = np.column_stack([brightness * contrast * colour, np.full(3, shift)])
    return view.convert("RGB", tuple(affine.ravel().tolist()))
