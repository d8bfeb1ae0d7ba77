"""What is drawn for a training view. Drawing is apart from applying, so a view is the same wherever it is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from natix_hf.data.augment_config import AugmentConfig
from natix_hf.data.crops_config import CropConfig
from natix_hf.data.images import EXTREME_ASPECT
from natix_hf.subnet.challenge import LUMA

# RGB to luma and two chroma axes (YIQ). A change of hue is a rotation of the two chroma axes.
_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
_AS_IT_IS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
_SIGMAS = (0.1, 2.0)  # of a blur, in px of a picture of 224 px

Row = tuple[float, float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Drawn:
    """The parameters of one view.

    Attributes:
        centre: Centre of the rotation in px of the picture.
        degrees: Rotation of the picture, counter-clockwise.
        box: Left, top, right and bottom of the crop, in px of the rotated picture.
        flip: Mirror the crop.
        brightness, contrast, saturation: Factors; 1 changes nothing.
        hue: Turn of the hue as a share of a full circle.
        blur: Standard deviation of a Gaussian blur in px of the view; 0 is none.
        solarise: Invert the bright pixels.
        erase: Left, top, width and height in px of the view of a rectangle that gets the view's mean. None is none.
    """

    centre: tuple[float, float]
    degrees: float
    box: Box
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    blur: float = 0.0
    solarise: bool = False
    erase: tuple[int, int, int, int] | None = None

    def colour(self) -> list[float]:
        """The change of colour as a 3 x 4 matrix, row by row: what is made of R, G, B, and of the view's mean grey.

        The hue turns first, then saturation (about each pixel's grey), contrast (about the mean grey) and brightness
        scale. Hue and saturation keep a pixel's grey, so all four are one affine map.
        """
        turn: list[list[float]] = _AS_IT_IS
        if self.hue:
            cos, sin = math.cos(2 * math.pi * self.hue), math.sin(2 * math.pi * self.hue)
            turn = (_FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _TO_YIQ).tolist()
        own, grey = self.brightness * self.contrast * self.saturation, self.brightness * self.contrast
        grey *= 1 - self.saturation
        shift = self.brightness * (1 - self.contrast)
        rows = ([*(own * of + grey * luma for of, luma in zip(row, LUMA, strict=True)), shift] for row in turn)
        return [value for row in rows for value in row]

    @property
    def recolours(self) -> bool:
        """True if any colour changes."""
        return (self.brightness, self.contrast, self.saturation, self.hue) != (1, 1, 1, 0)

    def at(self, ratio: float) -> Drawn:
        """The same view with `ratio` times as many px on each side."""
        if ratio == 1:
            return self
        if self.erase is None:
            return replace(self, blur=self.blur * ratio)
        left, top, width, height = (round(px * ratio) for px in self.erase)
        return replace(self, blur=self.blur * ratio, erase=(left, top, width, height))

    def to_picture(self, size: int) -> tuple[Row, Row]:
        """The affine map from a position in the view of `size` px to one in the picture, two rows of three.

        A side of the crop that is shrunk begins and ends at whole px of the picture, unless the picture is rotated.
        """
        left, top, right, bottom = self.box
        if not self.degrees:
            left, right = _whole(left, right, size)
            top, bottom = _whole(top, bottom, size)
        across, down = (right - left) / size, (bottom - top) / size
        if self.flip:
            left, across = right, -across
        angle = -math.radians(self.degrees)
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = left - self.centre[0], top - self.centre[1]
        return (
            (cos * across, sin * down, cos * x + sin * y + self.centre[0]),
            (-sin * across, cos * down, cos * y - sin * x + self.centre[1]),
        )


def _whole(low: float, high: float, size: int) -> tuple[float, float]:
    shrinks = high - low >= size
    return (math.floor(low + 0.5), math.floor(high + 0.5)) if shrinks else (low, high)


def strongest_blur(size: int) -> float:
    """The largest standard deviation that is drawn for a view of `size` px, in px."""
    return _SIGMAS[1] * size / 224


def draw_view(width: int, height: int, config: AugmentConfig, size: int, rng: np.random.Generator) -> Drawn:
    """Draw a view for supervised training.

    Args:
        width, height: Size of the picture in px.
        config: Strengths of the steps.
        size: Side of the square view in px.
        rng: Source of every draw, seeded by (seed, epoch, row).
    """
    degrees, left, top = 0.0, 0, 0
    centre = (width / 2, height / 2)
    if config.rotate:
        if max(width, height) > EXTREME_ASPECT * min(width, height):  # the inner box would be thinner than a pixel
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            width = height = side
        degrees = float(rng.uniform(-config.rotate, config.rotate))
        centre = (left + width / 2, top + height / 2)
        inner = _without_corners(width, height, degrees)
        left, top = left + inner[0], top + inner[1]
        width, height = inner[2] - inner[0], inner[3] - inner[1]
    box = _crop_box(width, height, config.crop_scale, config.crop_ratio, rng)
    flip = bool(config.flip and rng.random() < 0.5)
    blur = 0.0
    if config.blur and rng.random() < config.blur:
        blur = float(rng.uniform(*_SIGMAS)) * size / 224
    brightness, contrast, saturation = 1.0, 1.0, 1.0
    if config.jitter:
        brightness, contrast, saturation = (1 + rng.uniform(-config.jitter, config.jitter, 3)).tolist()
    if config.grey and rng.random() < config.grey:
        saturation = 0.0
    erase = _erase_box(size, rng) if config.erase and rng.random() < config.erase else None
    moved = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
    return Drawn(centre, degrees, moved, flip, brightness, contrast, saturation, blur=blur, erase=erase)


def draw_crop(
    width: int,
    height: int,
    config: CropConfig,
    scale: Sequence[float],
    blur: float,
    blur_unit: float,
    solarise: float,
    rng: np.random.Generator,
) -> Drawn:
    """Draw a crop for self-supervised training.

    Args:
        width, height: Size of the picture in px.
        config: Strengths of the steps.
        scale: Smallest and largest share of the picture's area.
        blur, solarise: Shares of crops with these steps.
        blur_unit: The blur's standard deviation is 0.1 to 2 of these, in px.
        rng: Source of every draw.
    """
    box = _crop_box(width, height, scale, config.ratio, rng)
    flip = bool(config.flip and rng.random() < 0.5)
    brightness, contrast, saturation, hue = 1.0, 1.0, 1.0, 0.0
    if rng.random() < config.jitter_share:
        strengths = np.asarray(config.jitter)
        brightness, contrast, saturation, hue = (np.array([1, 1, 1, 0]) + rng.uniform(-strengths, strengths)).tolist()
    if rng.random() < config.grey:
        saturation = 0.0
    sigma = float(rng.uniform(*_SIGMAS)) * blur_unit if rng.random() < blur else 0.0
    inverts = bool(rng.random() < solarise)
    return Drawn(
        (width / 2, height / 2), 0.0, box, flip, brightness, contrast, saturation, hue, blur=sigma, solarise=inverts
    )


def _without_corners(width: int, height: int, degrees: float) -> tuple[int, int, int, int]:
    """The largest box of the picture's shape that has no black corner once the picture is rotated, in whole px."""
    angle = math.radians(abs(degrees) % 180)
    angle = min(angle, math.pi - angle)
    shrink = 1 / (math.cos(angle) + max(width, height) / min(width, height) * math.sin(angle))
    inner = (max(1.0, width * shrink), max(1.0, height * shrink))
    left, top = (width - inner[0]) / 2, (height - inner[1]) / 2
    right, bottom = int(left + inner[0]), int(top + inner[1])
    left, top = math.ceil(left), math.ceil(top)
    return left, top, max(left + 1, right), max(top + 1, bottom)


def _crop_box(
    width: int, height: int, scale: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> Box:
    area = width * height * float(rng.uniform(scale[0], scale[1]))
    shape = math.exp(float(rng.uniform(math.log(ratio[0]), math.log(ratio[1]))))
    crop_width = min(float(width), math.sqrt(area * shape))
    crop_height = min(float(height), math.sqrt(area / shape))
    left = float(rng.uniform(0, width - crop_width)) if crop_width < width else 0.0
    top = float(rng.uniform(0, height - crop_height)) if crop_height < height else 0.0
    return left, top, left + crop_width, top + crop_height


def _erase_box(size: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    area = size * size * float(rng.uniform(0.02, 0.2))
    ratio = math.exp(float(rng.uniform(math.log(0.3), math.log(3.3))))
    width, height = min(size, round(math.sqrt(area * ratio))), min(size, round(math.sqrt(area / ratio)))
    left, top = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
    return left, top, width, height
