"""Block-wise masks over the patches of images, for masked image modelling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_ASPECT = (0.3, 3.3)  # height / width of a block
_LEAST_AREA = 4  # smallest block in patches, while at least that many are left to mask
_ATTEMPTS = 10  # failed attempts to place a block, after which the rest is spread over single patches


def block_masks(
    rng: np.random.Generator,
    n_images: int,
    grid: tuple[int, int],
    share: float = 0.5,
    ratio: Sequence[float] = (0.1, 0.5),
) -> np.ndarray:
    """Mask rectangles of patches in some of the images.

    Args:
        rng: Source of every draw.
        n_images: Number of images.
        grid: Rows and columns of patches.
        share: Share of the images that get a mask. `share * n_images` is rounded up or down at random, so that the
            share is right on average.
        ratio: Smallest and largest share of an image's patches to mask. At least one patch is masked.

    Returns:
        bool [n_images, rows * columns]; True where a patch is masked.
    """
    masks = np.zeros((n_images, grid[0] * grid[1]), dtype=bool)
    count = int(share * n_images + rng.random())
    for image in rng.permutation(n_images)[:count]:
        masked = max(1, round(float(rng.uniform(ratio[0], ratio[1])) * grid[0] * grid[1]))
        masks[image] = _blocks(rng, grid, masked).ravel()
    return masks


def _blocks(rng: np.random.Generator, grid: tuple[int, int], masked: int) -> np.ndarray:
    """Draw a mask, bool [rows, columns], with exactly `masked` patches."""
    mask = np.zeros(grid, dtype=bool)
    left = masked
    failed = 0
    while left and failed < _ATTEMPTS:
        area = float(rng.uniform(min(_LEAST_AREA, left), left))
        aspect = math.exp(float(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1]))))
        height = min(grid[0], max(1, round(math.sqrt(area * aspect))))
        width = min(grid[1], max(1, round(math.sqrt(area / aspect))))
        top, start = int(rng.integers(0, grid[0] - height + 1)), int(rng.integers(0, grid[1] - width + 1))
        block = mask[top : top + height, start : start + width]
        new = block.size - int(block.sum())
        if 0 < new <= left:
            block[:] = True
            left -= new
            failed = 0
        else:
            failed += 1
    if left:
        mask.flat[rng.choice(np.flatnonzero(~mask), left, replace=False)] = True
    return mask
