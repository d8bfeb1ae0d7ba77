"""Training views that are made on the device, a batch at once. Workers hand over whole copies and what was drawn.

A view is sampled more finely than it will be, and the samples are averaged: what `pixels.cut` does for one view with
torch's antialiased resize, which takes no batch of different boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import grid_sample

from natix_hf.data.bicubic import cubic_kernel, cut_cubic
from natix_hf.data.drawn import Drawn
from natix_hf.data.pixels import STEPS, Steps, blur_radius, change, packed, weighted

if TYPE_CHECKING:
    from datasets import Dataset

# Px of a picture between two samples: bilinear interpolation sees all of them, cubic more than these.
_STRIDE = 1.6
# Samples that are held at once.
_AT_ONCE = 2**23


def same_size(copies: Sequence[np.ndarray]) -> torch.Tensor:
    """Pad pictures, uint8 [H, W, 3] each, to the largest height and width by their last px: uint8 [n, H, W, 3]."""
    height, width = (max(copy.shape[axis] for copy in copies) for axis in (0, 1))
    padded = np.empty((len(copies), height, width, 3), dtype=np.uint8)
    for place, copy in enumerate(copies):
        tall, wide = copy.shape[:2]
        padded[place, :tall, :wide] = copy
        padded[place, :tall, wide:] = copy[:, -1:]
        padded[place, tall:] = padded[place, tall - 1]
    return torch.from_numpy(padded)


def described(copy: np.ndarray, drawn: Sequence[Drawn], size: int) -> torch.Tensor:
    """What `made` needs to know of the views of a picture, float32 [views, 26]."""
    places = torch.tensor([place(copy, one, size) for one in drawn], dtype=torch.float32)
    return torch.cat([places.reshape(-1, 8), packed(drawn)], dim=1)


def place(copy: np.ndarray, drawn: Drawn, size: int) -> list[float]:
    """Where a view lies in a picture: the map to the picture (6), and its width and height."""
    across, down = drawn.to_picture(size)
    return [*across, *down, copy.shape[1], copy.shape[0]]


def device_steps(recolours: bool, sigma: float, solarises: bool = False, erases: bool = False) -> Steps:
    """The steps of a batch whose views are not looked at one by one: a device would have to be waited for."""
    return Steps(recolours, [(slice(None), blur_radius(sigma))] if sigma else [], solarises, erases)


def samples_a_px(decoded: Dataset, size: int, scale: Sequence[float], ratio: Sequence[float]) -> int:
    """Samples for each px of a view, in each direction: enough for the largest copy, so no view depends on others.

    Args:
        decoded: Dataset from `decode_once`.
        size: Side of a view in px.
        scale, ratio: Bounds of a crop's share of the area, and of its width / height.
    """
    from pyarrow import compute

    height, width = (compute.max(decoded.data.column(name)).as_py() or 1 for name in ("height", "width"))
    longest = math.sqrt(scale[1] * max(ratio[1], 1 / ratio[0]) * height * width)
    return max(1, math.ceil(min(longest, max(height, width)) / size / _STRIDE))


def made(
    copies: torch.Tensor, drawn: torch.Tensor, size: int, steps: Steps, finer: int, cubic: bool, rotated: bool
) -> torch.Tensor:
    """Make the views of a batch of pictures.

    Args:
        copies: From `same_size`, on any device.
        drawn: `described` of each picture, float32 [n, views, 26].
        size: Side of a view in px.
        steps: The steps that any view may need.
        finer: Samples for each px of a view (`samples_a_px`).
        cubic: Resize with cubic interpolation, else bilinear.
        rotated: Whether any view may be rotated.

    Returns:
        uint8 [n, views, 3, size, size].
    """
    n, views, _ = drawn.shape
    if not views:
        return torch.empty(n, 0, 3, size, size, dtype=torch.uint8, device=copies.device)
    together = at_once(views, size, finer)
    parts = []
    for at in range(0, n, together):
        part = drawn[at : at + together]
        pictures, places = copies[at : at + together], part[:, :, :8]
        whole = cubic and not rotated
        cut = cut_cubic(pictures, places, size) if whole else cut_all(pictures, places, size, finer, cubic)
        parts.append(change(cut, part[:, :, 8:].reshape(-1, STEPS), steps))
    return torch.cat(parts).view(n, views, 3, size, size)


def at_once(views: int, size: int, finer: int) -> int:
    """Pictures whose views fit into memory together."""
    return max(1, _AT_ONCE // (views * (finer * size) ** 2))


def cut_all(
    copies: torch.Tensor, places: torch.Tensor, size: int, finer: int, cubic: bool, black: bool = False
) -> torch.Tensor:
    """Rotate, crop, mirror and resize: float32 [n * views, 3, size, size]. `finer` samples a px, in each direction.

    With `black` all is black beyond a picture's edge, otherwise its edge goes on.
    """
    n, views, _ = places.shape
    height, width = copies.shape[1:3]
    # A px of the view also sees half of its neighbours; with the cubic kernel one and a half of them.
    margin = math.ceil(1.5 * finer) if cubic else finer // 2
    count = size * finer + 2 * margin
    at = (torch.arange(count, device=copies.device, dtype=torch.float32) - margin + 0.5) / finer
    a, b, x, c, d, y, own_width, own_height = places[..., None, None].unbind(dim=2)
    # Clamped to the centres of a picture's own px: beyond them lies the padding.
    across, down = a * at + b * at[:, None] + x, c * at + d * at[:, None] + y
    inside = (across >= 0) & (across < own_width) & (down >= 0) & (down < own_height) if black else None
    across = across.clamp(min=0.5).minimum(own_width - 0.5) * (2 / width) - 1
    down = down.clamp(min=0.5).minimum(own_height - 0.5) * (2 / height) - 1
    grid = torch.stack([across, down], dim=-1).view(n, views * count, count, 2)
    pixels = copies.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    mode = "bicubic" if cubic else "bilinear"
    sampled = grid_sample(pixels, grid, mode=mode, padding_mode="border", align_corners=False)
    sampled = sampled.view(n, 3, views, count, count).transpose(1, 2)
    sampled = (sampled if inside is None else sampled * inside[:, :, None]).reshape(n * views, 3, count, count)
    flat = places.reshape(n * views, 8)
    for axis, (one, other) in ((3, (0, 3)), (2, (1, 4))):
        shrink = torch.hypot(flat[:, one], flat[:, other])
        sampled = weighted(sampled, _antialias(shrink, finer, margin, cubic), axis, finer)
    return sampled.clamp_(0, 255) if cubic else sampled


def _antialias(shrink: torch.Tensor, finer: int, margin: int, cubic: bool) -> torch.Tensor:
    """Weights of the samples around a px of the view, [n, samples].

    Together with the interpolation between px of the picture they spread a view's px as far as the kernel of an
    antialiased resize. A view that is enlarged sees its nearest samples only.
    """
    taps = torch.arange(finer + 2 * margin, device=shrink.device)
    offsets = ((taps - margin + 0.5) / finer - 0.5).abs()
    half = (1 - shrink.clamp(min=1).square().reciprocal()).sqrt().clamp(min=1 / finer)
    apart = offsets / half[:, None]
    weights = cubic_kernel(apart) if cubic else (1 - apart).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)
