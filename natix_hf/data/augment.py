"""Augmentation of one training view with PIL and numpy. Every draw comes from one generator, so it can be repeated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from natix_hf.data.config import Augment, AugmentConfig
from natix_hf.data.images import tame_aspect
from natix_hf.subnet.challenge import LEVELS, apply_challenge, draw_challenge, jpeg

# ITU-R 601 luma, as in PIL's own conversion to grey.
_LUMA = (0.299, 0.587, 0.114)


def augment(image: Image.Image, config: Augment, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one training view.

    The steps are rotation, random resized crop, flip, blur, colour and erasing. With `challenge` the view is drawn
    like a view of the subnet's exam instead.

    Args:
        image: RGB image of any size.
        config: Strengths of the steps, or `challenge`.
        size: Side of the square view in px.
        rng: Source of every draw, seeded by (seed, epoch, row).

    Returns:
        float32 [size, size, 3], from 0 to 255.
    """
    if config == "challenge":
        return _challenge(image, size, rng)
    if config.rotate:
        image = _rotate(tame_aspect(image), float(rng.uniform(-config.rotate, config.rotate)))
    box = _crop_box(image.width, image.height, config, rng)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if config.flip and rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.blur and rng.random() < config.blur:
        view = view.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.1, 2.0)) * size / 224))
    brightness, contrast, saturation = 1.0, 1.0, 1.0
    if config.jitter:
        brightness, contrast, saturation = (1 + rng.uniform(-config.jitter, config.jitter, 3)).tolist()
    if config.grey and rng.random() < config.grey:
        saturation = 0.0
    if (brightness, contrast, saturation) != (1, 1, 1):
        view = _recolour(view, brightness, contrast, saturation)
    pixels = np.asarray(view, dtype=np.float32)
    if config.erase and rng.random() < config.erase:
        pixels = _erase(pixels, rng)
    return pixels


def _challenge(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    drawn = draw_challenge(image.width, image.height, int(rng.choice(LEVELS)), rng)
    view = jpeg(apply_challenge(image, drawn, rng))
    if view.width != size:
        view = view.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(view, dtype=np.float32)


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Rotate about the centre and crop to the largest box of the same shape without black corners.

    In a long strip this box is thinner than a pixel, so the caller crops extreme shapes first.
    """
    width, height = image.size
    rotated = image.rotate(degrees, Image.Resampling.BILINEAR)
    angle = math.radians(abs(degrees) % 180)
    angle = min(angle, math.pi - angle)
    long_side, short_side = max(image.size), min(image.size)
    shrink = 1 / (math.cos(angle) + long_side / short_side * math.sin(angle))
    inner = (max(1.0, width * shrink), max(1.0, height * shrink))
    left, top = (width - inner[0]) / 2, (height - inner[1]) / 2
    return rotated.crop(
        (
            math.ceil(left),
            math.ceil(top),
            max(math.ceil(left) + 1, int(left + inner[0])),
            max(math.ceil(top) + 1, int(top + inner[1])),
        )
    )


def _crop_box(
    width: int, height: int, config: AugmentConfig, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    area = width * height * float(rng.uniform(config.crop_scale[0], config.crop_scale[1]))
    ratio = math.exp(float(rng.uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1]))))
    crop_width = min(float(width), math.sqrt(area * ratio))
    crop_height = min(float(height), math.sqrt(area / ratio))
    left = float(rng.uniform(0, width - crop_width)) if crop_width < width else 0.0
    top = float(rng.uniform(0, height - crop_height)) if crop_height < height else 0.0
    return left, top, left + crop_width, top + crop_height


def _recolour(view: Image.Image, brightness: float, contrast: float, saturation: float) -> Image.Image:
    """Scale the saturation (about each pixel's grey), then the contrast (about the mean grey), then the brightness.

    The three steps are one affine map of (R, G, B), which PIL applies in one pass. In numpy they would take as long as
    the rest of the view.
    """
    red, green, blue = _LUMA
    mean: Any = view.reduce(view.size).getpixel((0, 0))
    shift = brightness * (1 - contrast) * (red * mean[0] + green * mean[1] + blue * mean[2])
    own, grey = brightness * contrast * saturation, brightness * contrast * (1 - saturation)
    red, green, blue = grey * red, grey * green, grey * blue
    return view.convert(
        "RGB", (own + red, green, blue, shift, red, own + green, blue, shift, red, green, own + blue, shift)
    )


def _erase(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = pixels.shape[0]
    area = size * size * float(rng.uniform(0.02, 0.2))
    ratio = math.exp(float(rng.uniform(math.log(0.3), math.log(3.3))))
    width, height = min(size, round(math.sqrt(area * ratio))), min(size, round(math.sqrt(area / ratio)))
    left, top = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
    erased = pixels.copy()
    erased[top : top + height, left : left + width] = pixels.mean(axis=(0, 1))
    return erased
