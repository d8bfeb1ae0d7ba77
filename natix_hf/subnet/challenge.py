"""What the validator makes of a real picture before it sends it: four levels, then JPEG.

Behaviour of the subnet's public code (v2.0.4, January 2026), in PIL and numpy. A quarter of the pictures each: level 0
is cut to its centre square; 1 is rotated and cropped at random; 2 and 3 are then distorted. Half of what a miner is
asked about is synthetic; nothing here makes those.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

SIZE = 224
LEVELS = (0, 1, 2, 3)
MOST_DEGREES, LEAST_AREA = 20.0, 0.2
# By level, in the order in which they are applied, and the strongest that is drawn; 0 is none of it.
DISTORTIONS = {
    0: {},
    1: {},
    2: {"saturation": 1, "contrast": 1, "resampling": 1},
    3: {"saturation": 2, "contrast": 2, "resampling": 2, "noise": 2, "blur": 2},
}
_SATURATION, _CONTRAST, _RESAMPLING = (1.0, 0.4, 0.3), (1.0, 0.85, 0.725), (1, 2, 3)
_NOISE_VARIANCE, _BLUR_KERNEL = (0.0, 0.001, 0.002), (0, 7, 9)
_JPEG_QUALITY = 75
_LUMA = (0.299, 0.587, 0.114)
# What a unit of noise on (Y, Cb, Cr) in video range moves (R, G, B) by: OpenCV's YCrCb of 0 to 255.
_NOISE_TO_RGB = np.array([[1.0, 0.0, 1.403], [1.0, -0.344, -0.714], [1.0, 1.773, 0.0]]) * (
    255 * 255 / np.array([235 - 16, 240 - 16, 240 - 16])
)


@dataclass(frozen=True)
class Challenge:
    """How one picture is changed: `degrees` counter-clockwise, then `crop` (left, top, side) in px, then distortions
    by strength."""

    degrees: float
    crop: tuple[int, int, int]
    strengths: dict[str, int] = field(default_factory=dict)


def challenge_image(image: Image.Image, level: int, seed: int) -> Image.Image:
    """What the validator would send of a picture.

    Args:
        image: any size and mode.
        level: 0 to 3.
        seed: not negative; with the level it decides everything.

    Returns:
        RGB, 224 x 224 px, after its JPEG.

    Raises:
        ValueError: there is no such level, or the seed is negative.
    """
    generator = np.random.default_rng([seed, level])
    challenge = draw_challenge(image.width, image.height, level, generator)
    return jpeg(apply_challenge(image.convert("RGB"), challenge, generator))


def draw_challenge(width: int, height: int, level: int, generator: np.random.Generator) -> Challenge:
    """Draws what level 0 to 3 does to a picture of that many px."""
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, found {level}")
    if level == 0:
        side = min(width, height)
        return Challenge(0.0, (round((width - side) / 2), round((height - side) / 2), side))
    degrees = float(generator.uniform(-MOST_DEGREES, MOST_DEGREES))
    crop = _draw_crop(width, height, generator)
    strengths = {name: int(generator.integers(0, most + 1)) for name, most in DISTORTIONS[level].items()}
    return Challenge(degrees, crop, strengths)


def _draw_crop(width: int, height: int, generator: np.random.Generator) -> tuple[int, int, int]:
    """A square of .2 to 1 of the area, ten attempts for one that fits, else the centre square: as torchvision's
    RandomResizedCrop with an aspect of 1."""
    for _ in range(10):
        side = round(math.sqrt(width * height * float(generator.uniform(LEAST_AREA, 1.0))))
        if 0 < side <= min(width, height):
            top = int(generator.integers(0, height - side + 1))
            return int(generator.integers(0, width - side + 1)), top, side
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def apply_challenge(image: Image.Image, challenge: Challenge, generator: np.random.Generator) -> Image.Image:
    """The view of 224 px, before its JPEG; of an RGB picture. The generator draws the noise."""
    view = _rotated_crop(image, challenge).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    for name, strength in challenge.strengths.items():
        if strength:
            view = _DISTORT[name](view, strength, generator)
    return view


def jpeg(image: Image.Image, quality: int = _JPEG_QUALITY) -> Image.Image:
    """As it comes out of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _rotated_crop(image: Image.Image, challenge: Challenge) -> Image.Image:
    """The crop of the picture rotated about its centre: nearest neighbour, black beyond its edge, its size kept. Only
    the pixels of the crop are computed."""
    left, top, side = challenge.crop
    if challenge.degrees == 0:
        return image.crop((left, top, left + side, top + side))
    angle = -math.radians(challenge.degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = image.width / 2, image.height / 2
    # Where a pixel of the crop lies in the picture: turn (left + px - x, top + py - y) back, then move to the centre.
    across = (cos, sin, cos * (left - x) + sin * (top - y) + x)
    down = (-sin, cos, -sin * (left - x) + cos * (top - y) + y)
    # PIL turns AFFINE into fixed point, which is off by thousandths of a pixel; PERSPECTIVE stays in float.
    matrix = (*across, *down, 0.0, 0.0)
    return image.transform((side, side), Image.Transform.PERSPECTIVE, matrix, Image.Resampling.NEAREST)


def _saturation(view: Image.Image, strength: int, _: Any) -> Image.Image:
    """Chroma scaled around grey. The validator cuts off decimals, PIL rounds: hence half a grey level less."""
    share = _SATURATION[strength]
    rows = [[(share if i == j else 0.0) + (1 - share) * _LUMA[j] for j in range(3)] + [-0.5] for i in range(3)]
    return view.convert("RGB", [value for row in rows for value in row])


def _contrast(view: Image.Image, strength: int, _: Any) -> Image.Image:
    factor = np.float32(_CONTRAST[strength])
    return view.point([int(np.float32(value) * factor) for value in range(256)] * 3)


def _resampling(view: Image.Image, strength: int, _: Any) -> Image.Image:
    """Down by 2 or 3 and up again, bilinear between the nearest four pixels; the validator calls it JPEG."""
    small = SIZE // _RESAMPLING[strength]
    centres = (np.arange(small) + 0.5) * SIZE / small - 0.5
    low = centres.astype(np.int64)
    share = (centres - low).astype(np.float32)
    pixels = np.asarray(view, dtype=np.float32)
    rows = pixels[low] + (pixels[low + 1] - pixels[low]) * share[:, None, None]
    reduced = rows[:, low] + (rows[:, low + 1] - rows[:, low]) * share[:, None]
    return Image.fromarray(np.rint(reduced).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def _noise(view: Image.Image, strength: int, generator: np.random.Generator) -> Image.Image:
    """Gaussian noise on each of Y, Cb and Cr, which are linear in R, G and B: so is what it adds."""
    pixels = np.asarray(view, dtype=np.float32)
    noise = generator.standard_normal(pixels.shape, dtype=np.float32)
    noise *= math.sqrt(_NOISE_VARIANCE[strength])
    return Image.fromarray(np.clip(pixels + noise @ _NOISE_TO_RGB.T.astype(np.float32), 0, 255).astype(np.uint8))


def _blur(view: Image.Image, strength: int, _: Any) -> Image.Image:
    from scipy.ndimage import correlate1d

    size = _BLUR_KERNEL[strength]
    offsets = np.arange(size) - size // 2
    kernel = np.exp(-(offsets**2) / (2 * (size / 6) ** 2))
    kernel /= kernel.sum()
    pixels = np.asarray(view, dtype=np.float32)
    for axis in (0, 1):
        pixels = correlate1d(pixels, kernel, axis=axis, mode="mirror")
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


_DISTORT = {
    "saturation": _saturation,
    "contrast": _contrast,
    "resampling": _resampling,
    "noise": _noise,
    "blur": _blur,
}
