"""Block-wise masks: how many images, how many patches, in one piece rather than scattered, equal for equal seeds."""

from __future__ import annotations

import numpy as np
import pytest

from natix_hf.data.masking import block_masks


def draw(seed: int, n_images: int = 8, grid: tuple[int, int] = (16, 16), **settings: object) -> np.ndarray:
    return block_masks(np.random.default_rng(seed), n_images, grid, **settings)  # type: ignore[arg-type]


def test_half_of_the_images_by_a_tenth_to_a_half() -> None:
    shares = []
    for seed in range(100):
        masks = draw(seed)
        assert masks.shape == (8, 256) and masks.dtype == bool
        masked = masks.any(axis=1)
        assert masked.sum() == 4
        shares += masks[masked].mean(axis=1).tolist()
    assert min(shares) >= 0.1 - 1 / 256 and max(shares) <= 0.5 + 1 / 256
    assert np.mean(shares) == pytest.approx(0.3, abs=0.02) and np.std(shares) > 0.08
    where = np.mean([draw(seed).mean(axis=1) > 0 for seed in range(100)], axis=0)
    assert where.min() > 0.3 and where.max() < 0.7, "every place in the batch is masked as often"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
def test_the_share_of_two_crops_holds_on_average(share: float) -> None:
    counts = [int(draw(seed, n_images=2, grid=(4, 4), share=share).any(axis=1).sum()) for seed in range(400)]
    assert np.mean(counts) / 2 == pytest.approx(share, abs=0.04)
    assert set(counts) <= {int(2 * share), -int(-2 * share // 1)}, "as near to the share as a whole number can be"


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 7), (14, 14)])
@pytest.mark.parametrize("ratio", [0.25, 0.95])  # of the larger not every block finds a place
def test_every_grid_keeps_the_ratio(grid: tuple[int, int], ratio: float) -> None:
    for seed in range(30):
        counts = draw(seed, grid=grid, share=1.0, ratio=(ratio, ratio)).sum(axis=1)
        assert (counts == max(1, round(ratio * grid[0] * grid[1]))).all()


def test_masks_are_blocks() -> None:
    """Of the neighbours of a masked patch far more are masked than of patches drawn singly."""

    def neighbours(masks: np.ndarray) -> float:
        cells = masks.reshape(-1, 16, 16)
        both = (cells[:, :, 1:] & cells[:, :, :-1]).sum() + (cells[:, 1:] & cells[:, :-1]).sum()
        return float(both / cells.sum())

    blocks = np.concatenate([draw(seed, share=1.0, ratio=(0.3, 0.3)) for seed in range(10)])
    scattered = np.random.default_rng(0).random(blocks.shape) < 0.3
    assert neighbours(blocks) > 1.3 > 0.7 > neighbours(scattered)


def test_equal_seeds_draw_equal_masks() -> None:
    assert (draw(3) == draw(3)).all() and (draw(3) != draw(4)).any()
