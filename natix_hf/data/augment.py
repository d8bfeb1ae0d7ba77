"""Augmentation of one training view. Every draw comes from one generator, so it can be repeated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from natix_hf.data.augment_config import AugmentConfig
from natix_hf.data.config import Augment
from natix_hf.data.drawn import Drawn, draw_view
from natix_hf.data.pixels import Steps, change, cut, packed
from natix_hf.subnet.challenge import LEVELS, apply_challenge, draw_challenge, jpeg


def augment(
    picture: np.ndarray, config: Augment, size: int, rng: np.random.Generator, drawn_for: int | None = None
) -> torch.Tensor:
    """Draw one training view.

    The steps are rotation, random resized crop, flip, colour, blur and erasing. With `challenge` the view is drawn
    like a view of the subnet's exam instead.

    Args:
        picture: uint8 [H, W, 3], of any size.
        config: Strengths of the steps, or `challenge`.
        size: Side of the square view in px.
        rng: Source of every draw, seeded by (seed, epoch, row).
        drawn_for: Draw the view that a model of so many px would see, and make it of `size` px. None: `size`.

    Returns:
        uint8 [3, size, size].
    """
    if config == "challenge":
        return _challenge(Image.fromarray(picture), size, rng)
    return views_of(picture, [draw_at(picture, config, size, rng, drawn_for)], size)[0]


def draw_at(
    picture: np.ndarray, config: AugmentConfig, size: int, rng: np.random.Generator, drawn_for: int | None
) -> Drawn:
    """Draw a view of `size` px, as `augment` does."""
    height, width, _ = picture.shape
    own = drawn_for or size
    return draw_view(width, height, config, own, rng).at(size / own)


def views_of(picture: np.ndarray, drawn: Sequence[Drawn], size: int, cubic: bool = True) -> torch.Tensor:
    """Make several views of a picture, uint8 [n, 3, size, size], resized with cubic interpolation or bilinear."""
    views = torch.empty(len(drawn), 3, size, size)
    for one, view in zip(drawn, views, strict=True):
        cut(picture, one, view, cubic)
    return change(views, packed(drawn), Steps.of(drawn))


def _challenge(image: Image.Image, size: int, rng: np.random.Generator) -> torch.Tensor:
    drawn = draw_challenge(image.width, image.height, int(rng.choice(LEVELS)), rng)
    view = jpeg(apply_challenge(image, drawn, rng))
    if view.width != size:
        view = view.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous()
