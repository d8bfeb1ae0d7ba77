"""Training views of `augment: challenge`, made on the device a batch at once, for `data.views_on: device`.

They are like the exam's views, not equal to them: the validator rotates with its nearest pixels and rounds after every
step, and its noise is other noise. Nothing is ever measured on them; `subnet/challenge.py` makes what is measured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, interpolate

from natix_hf.data.drawn import Drawn
from natix_hf.data.on_device import at_once, cut_all, place
from natix_hf.subnet.challenge import (
    BLUR_KERNEL,
    CONTRAST,
    DISTORTIONS,
    LEVELS,
    LUMA,
    NOISE_TO_RGB,
    NOISE_VARIANCE,
    RESAMPLING,
    SATURATION,
    SIZE,
    blur_kernel,
    draw_challenge,
    resampling_places,
)

_NAMES = tuple(DISTORTIONS[3])
_SEEDS = 2**24  # a float32 holds them exactly
_MOST = 64  # views at once: their noise takes most of the memory
# Quantisation of libjpeg at quality 75: half of the tables of the standard (ITU-T T.81, annex K), rounded up.
_LUMINANCE = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
]  # fmt: skip
_CHROMINANCE = [17, 18, 24, 47, 18, 21, 26, 66, 24, 26, 56, 99, 47, 66, 99, 99]  # the corner of 4 x 4; 99 beyond
_TO_YCC = np.array([LUMA, (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)])
_FROM_YCC = np.linalg.inv(_TO_YCC)


def described_challenge(copy: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Draw a challenge for a copy, uint8 [H, W, 3]: where it lies, its strengths, a seed for its noise [1, 14]."""
    height, width, _ = copy.shape
    drawn = draw_challenge(width, height, int(rng.choice(LEVELS)), rng)
    left, top, side = drawn.crop
    shown = Drawn((width / 2, height / 2), drawn.degrees, (left, top, left + side, top + side))
    strengths = [drawn.strengths.get(name, 0) for name in _NAMES]
    return torch.tensor([[*place(copy, shown, SIZE), *strengths, int(rng.integers(_SEEDS))]], dtype=torch.float32)


def made_challenges(copies: torch.Tensor, drawn: torch.Tensor, size: int, finer: int) -> torch.Tensor:
    """Make the views of a batch of pictures.

    Args:
        copies: From `same_size`, on any device.
        drawn: `described_challenge` of each picture, float32 [n, 1, 14].
        size: Side of a view in px.
        finer: Samples for each of the 224 px of a challenge (`samples_a_px`).

    Returns:
        uint8 [n, 3, size, size].
    """
    together = min(_MOST, at_once(1, SIZE, finer))
    parts = []
    for at in range(0, len(copies), together):
        part = drawn[at : at + together]
        shown = cut_all(copies[at : at + together], part[:, :, :8], SIZE, finer, cubic=False, black=True)
        parts.append(_distorted(shown, part[:, 0, 8:]))
    views = _jpeg(torch.cat(parts).round_())
    if size != SIZE:
        views = interpolate(views, (size, size), mode="bicubic", antialias=True).clamp_(0, 255)
    return views.add_(0.5).to(torch.int16).to(torch.uint8)


def _distorted(views: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    saturation, contrast, resampling, noise, blur = drawn[:, :5].long().unbind(dim=1)
    table = functools.partial(torch.tensor, device=views.device)
    share, factor = table(SATURATION)[saturation, None, None], table(CONTRAST)[contrast, None, None]
    colour = factor * (share * torch.eye(3, device=views.device) + (1 - share) * table(LUMA))
    # The validator cuts fractions off, which takes half a level on average.
    lost = 0.5 * (factor * (saturation > 0)[:, None, None] + (contrast > 0)[:, None, None])
    views = torch.baddbmm(-lost, colour, views.flatten(2)).clamp_(0, 255).view(views.shape)
    views = _along_both(views, _resampling_matrices(views.device)[resampling])
    amplitude = table(NOISE_VARIANCE).sqrt()[noise, None, None]
    grain = _mixed(NOISE_TO_RGB, _normal(drawn[:, 5], views.shape))
    views = (views + amplitude[..., None] * grain - 0.5 * (noise > 0)[:, None, None, None]).clamp_(0, 255)
    return _along_both(views, _blur_matrices(views.device)[blur])


def _mixed(matrix: np.ndarray, views: torch.Tensor) -> torch.Tensor:
    """Apply a matrix [3, 3] to the channels of every px."""
    return torch.einsum("cd,ndhw->nchw", torch.from_numpy(matrix).to(views), views)


def _along_both(views: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Apply a matrix [n, SIZE, SIZE] to the rows and to the columns of each view."""
    return matrices[:, None] @ views @ matrices[:, None].transpose(2, 3)


def _matrices(one: Callable[[int], np.ndarray], strengths: int, device: torch.device) -> torch.Tensor:
    found = np.stack([np.eye(SIZE), *(one(strength) for strength in range(1, strengths))])
    return torch.from_numpy(found).to(device, torch.float32)


@functools.lru_cache
def _resampling_matrices(device: torch.device) -> torch.Tensor:
    def one(strength: int) -> np.ndarray:
        low, share = resampling_places(strength)
        rows = np.arange(len(low))
        smaller = np.zeros((len(low), SIZE))
        smaller[rows, low], smaller[rows, low + 1] = 1 - share, share
        back = interpolate(torch.eye(len(low))[None], SIZE, mode="linear", align_corners=False)[0].numpy().T
        return back @ smaller

    return _matrices(one, len(RESAMPLING), device)


@functools.lru_cache
def _blur_matrices(device: torch.device) -> torch.Tensor:
    def one(strength: int) -> np.ndarray:
        kernel = blur_kernel(strength)
        at = np.abs(np.arange(SIZE)[:, None] + np.arange(len(kernel)) - len(kernel) // 2)
        at = np.where(at >= SIZE, 2 * (SIZE - 1) - at, at)  # mirrored about the last px
        matrix = np.zeros((SIZE, SIZE))
        np.add.at(matrix, (np.arange(SIZE)[:, None], at), kernel)
        return matrix

    return _matrices(one, len(BLUR_KERNEL), device)


def _normal(seeds: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Standard normal numbers that depend on the seed of each view only, whatever the batch and the device."""
    count = math.prod(shape[1:])
    at = torch.arange(2 * count, device=seeds.device)
    bits = at * 0x9E3779B1 + seeds.long()[:, None] * 0x85EBCA77 + 1
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):  # a hash of 32 bits
        bits = (bits ^ (bits >> shift)) * factor & 0xFFFFFFFF
    uniform = ((bits >> 8).float() + 0.5) / 2**24
    radius, angle = (-2 * uniform[:, :count].log()).sqrt(), 2 * math.pi * uniform[:, count:]
    return (radius * torch.cos(angle)).view(shape)


def _jpeg(views: torch.Tensor) -> torch.Tensor:
    """What a JPEG of quality 75 leaves of views [n, 3, SIZE, SIZE], with the chroma at half size."""
    ycc = _mixed(_TO_YCC, views)
    luminance = (views.new_tensor(_LUMINANCE).view(8, 8) + 1).div(2).floor()
    chrominance = views.new_full((8, 8), 99.0)
    chrominance[:4, :4] = views.new_tensor(_CHROMINANCE).view(4, 4)
    light = _quantised(ycc[:, :1] - 128, luminance) + 128
    colour = _quantised(avg_pool2d(ycc[:, 1:], 2), (chrominance + 1).div(2).floor())
    colour = interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
    ycc = torch.cat([light, colour], dim=1)
    return _mixed(_FROM_YCC, ycc).clamp_(0, 255)


def _quantised(planes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Round the cosine transform of each block of 8 x 8 px to multiples of a table."""
    n, channels, height, width = planes.shape
    k = torch.arange(8, device=planes.device, dtype=torch.float32)
    cosine = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    cosine[0] /= math.sqrt(2)
    blocks = planes.view(n, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    kept = (cosine @ blocks @ cosine.T / table).round_() * table
    return (cosine.T @ kept @ cosine).transpose(3, 4).reshape(planes.shape)
