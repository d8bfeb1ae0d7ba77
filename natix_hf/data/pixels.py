"""From a picture and what was drawn (`Drawn`) to the pixels of a view, in torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import grid_sample, interpolate, pad

from natix_hf.data.bicubic import cut_cubic_one
from natix_hf.data.drawn import Drawn, Row
from natix_hf.subnet.challenge import LUMA


def cut(picture: np.ndarray, drawn: Drawn, view: torch.Tensor, cubic: bool) -> None:
    """Rotate, crop, mirror and resize a picture. It is antialiased where it shrinks, and has no black corner.

    Args:
        picture: uint8 [H, W, 3].
        drawn: What to do.
        view: Gets the result: float32 [3, size, size], from 0 to 255.
        cubic: Resize with cubic interpolation, as the image processor of every model does, else bilinear.
    """
    size, mode = view.shape[1], "bicubic" if cubic else "bilinear"
    matrix = drawn.to_picture(size)
    only_shrinks = not drawn.degrees and _shrinks(matrix[0]) and _shrinks(matrix[1])
    (left, right, width), (top, bottom, height) = windows(matrix, picture.shape, size, bool(drawn.degrees))
    if cubic and not drawn.degrees and not only_shrinks:
        view.copy_(cut_cubic_one(picture[top:bottom, left:right], (left, top), matrix, size))
        return
    # A copy, because torch takes no read-only memory. Its channels stay last, which torch resizes fastest.
    pixels = torch.from_numpy(np.array(picture[top:bottom, left:right])).permute(2, 0, 1)[None]
    if (height, width) != (bottom - top, right - left):
        pixels = interpolate(pixels, (height, width), mode=mode, antialias=True)
    if only_shrinks:
        shown = pixels[0].flip(2) if drawn.flip else pixels[0]
        view.copy_(_channels_first(shown))
        return
    grid = np.empty((1, size, size, 2), dtype=np.float32)
    steps = np.arange(size, dtype=np.float32) + np.float32(0.5)
    for axis, (low, high) in enumerate(((left, right), (top, bottom))):
        across, down, start = matrix[axis]
        scale = 2 / (high - low)
        np.add(steps * (scale * across), (steps * (scale * down) + (scale * (start - low) - 1))[:, None],
               out=grid[0, :, :, axis])  # fmt: skip
    smooth = _channels_first(pixels).to(torch.float32)
    sampled = grid_sample(smooth, torch.from_numpy(grid), mode=mode, padding_mode="border", align_corners=False)[0]
    view.copy_(sampled.clamp_(0, 255) if cubic else sampled)


def _channels_first(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes, contiguous. torch would turn them round while it makes floats of them, which is slower."""
    return torch.from_numpy(np.ascontiguousarray(pixels.numpy()))


def windows(matrix: Sequence[Row], shape: Sequence[int], size: int, rotated: bool) -> list[tuple[int, int, int]]:
    """The part of the picture that a view shows, for each axis: its first px, its last px + 1, and the number of px
    that it is shrunk to before the view is sampled from it."""
    (a, b, _), (c, d, _) = matrix
    area = abs(a * d - b * c)
    found = []
    # Px of the view per px along each axis of the picture come from the inverse of the map.
    densities = (math.hypot(c, d) / area, math.hypot(a, b) / area)
    for length, row, density in zip((shape[1], shape[0]), matrix, densities, strict=True):
        across, down, start = row
        least = start + min(0, across * size) + min(0, down * size)
        most = start + max(0, across * size) + max(0, down * size)
        beyond = 2 if rotated else -1e-6  # neighbours to interpolate with; or what floats are off by
        low = min(max(0, math.floor(least - beyond)), length - 1)
        high = max(min(length, math.ceil(most + beyond)), low + 1)
        wanted = math.ceil((high - low) * density) if rotated else size if _shrinks(row) else high - low
        found.append((low, high, min(wanted, high - low)))
    return found


def _shrinks(row: Row) -> bool:
    """Whether a view that is not rotated has fewer px along an axis than the picture."""
    return max(abs(row[0]), abs(row[1])) >= 1


@dataclass(frozen=True)
class Steps:
    """The steps that some of the views need.

    Attributes:
        recolours, solarises, erases: Whether any view changes its colour, is solarised, has a box erased.
        blurs: Views that are blurred, and the px on each side that their blur reads.
    """

    recolours: bool
    blurs: list[tuple[slice, int]]
    solarises: bool
    erases: bool

    @classmethod
    def of(cls, drawn: Sequence[Drawn]) -> Steps:
        return cls(
            any(one.recolours for one in drawn),
            [(slice(i, i + 1), blur_radius(one.blur)) for i, one in enumerate(drawn) if one.blur],
            any(one.solarise for one in drawn),
            any(one.erase is not None for one in drawn),
        )


STEPS = 18  # numbers in what is packed


def packed(drawn: Sequence[Drawn]) -> torch.Tensor:
    """What `change` does with each view, float32 [n, STEPS]: colour (12), blur, solarise, box to erase (4)."""
    rows = [[*one.colour(), one.blur, one.solarise, *(one.erase or (0, 0, 0, 0))] for one in drawn]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, STEPS)


def change(views: torch.Tensor, of_each: torch.Tensor, steps: Steps) -> torch.Tensor:
    """Change the colour of views, blur them, solarise them and erase a box.

    Args:
        views: float32 [n, 3, size, size], from 0 to 255. They are overwritten.
        of_each: What to do with each, from `packed`.
        steps: The steps that any of them needs.

    Returns:
        uint8 [n, 3, size, size].
    """
    if steps.recolours:
        views = _recolour(views, of_each[:, :12].reshape(-1, 3, 4))
    for rows, radius in steps.blurs:
        views[rows] = _blur(views[rows], of_each[rows, 12], radius)
    if steps.solarises:
        views = torch.minimum(views, (510 - 255 * of_each[:, 13])[:, None, None, None] - views)
    if steps.erases:
        views = _erase(views, of_each[:, 14:])
    # By way of int16, because torch converts floats to bytes one by one.
    return views.add_(0.5).to(torch.int16).to(torch.uint8)


def _recolour(views: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    flat = views.flatten(2)
    grey = flat.mean(dim=2) @ flat.new_tensor(LUMA)
    shift = colour[:, :, 3:] * grey[:, None, None]
    return torch.baddbmm(shift, colour[:, :, :3], flat).clamp_(0, 255).view(views.shape)


def blur_radius(sigma: float) -> int:
    """Px on each side that a blur reads: three standard deviations."""
    return math.ceil(3 * sigma)


def _blur(views: torch.Tensor, sigmas: torch.Tensor, radius: int) -> torch.Tensor:
    """Blur with the discrete Gaussian kernel, whose variance is right below a pixel too. Edges are repeated."""
    spectrum, cosines = _cosines(radius, views.device)
    weights = torch.exp(sigmas[:, None].square() * spectrum) @ cosines
    weights = weights / (2 * weights.sum(dim=1, keepdim=True) - weights[:, :1])
    kernel = torch.cat([weights[:, 1:].flip(1), weights], dim=1)
    for axis, sides in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        views = weighted(pad(views, sides, mode="replicate"), kernel, axis)
    return views


def weighted(views: torch.Tensor, kernels: torch.Tensor, axis: int, stride: int = 1) -> torch.Tensor:
    """Weighted sums of neighbours along an axis of views [n, 3, H, W], with a kernel for each view [n, taps]."""
    taps = kernels.shape[1]
    last = views.shape[axis] - taps + 1
    kernels = kernels[:, :, None, None, None]
    ends = slice(None), slice(None)
    parts = [views[(*ends, *(slice(None),) * (axis - 2), slice(tap, tap + last, stride))] for tap in range(taps)]
    total = parts[0] * kernels[:, 0]
    for tap in range(1, taps):
        total.addcmul_(parts[tap], kernels[:, tap])
    return total


@functools.lru_cache
def _cosines(radius: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The transform from the spectrum exp(variance * (cos w - 1)) of the discrete Gaussian to its weights."""
    w = 2 * math.pi * torch.arange(4 * radius + 16, dtype=torch.float64) / (4 * radius + 16)
    cosines = torch.cos(w[:, None] * torch.arange(radius + 1)) / len(w)
    return (torch.cos(w) - 1).to(device, torch.float32), cosines.to(device, torch.float32)


def _erase(views: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    left, top, width, height = boxes[:, :, None].unbind(dim=1)
    x = torch.arange(views.shape[3], device=views.device)
    y = torch.arange(views.shape[2], device=views.device)
    across, down = (x >= left) & (x < left + width), (y >= top) & (y < top + height)
    inside = (down[:, :, None] & across[:, None, :])[:, None]
    return torch.where(inside, views.mean(dim=(2, 3), keepdim=True), views)


class Normalise:
    """A callable that normalises the pictures of a batch, on whatever device they are.

    It takes tensors by name. Those of bytes become float32, (value / 255 - mean) / std. All others stay as they are.

    Args:
        mean, std: Three values each, for pixels from 0 to 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = [255 * value for value in mean]
        self.std = [255 * value for value in std]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {name: self._of(value) if _is_bytes(value) else value for name, value in batch.items()}

    def _of(self, pictures: torch.Tensor) -> torch.Tensor:
        pixels = pictures.to(torch.float32)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)


def _is_bytes(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.uint8
