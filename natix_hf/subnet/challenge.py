"""Challenges: how the validator changes a picture before it sends it to a miner.

This is the behaviour of the subnet's public code (v2.0.4, January 2026), in PIL and numpy. A real picture is first
saved as JPEG at full size, because the validator keeps it in a cache of such files. A generated picture is kept
without loss, at most 1024 x 1024 px. A quarter of the pictures falls on each level. Level 0 crops the centre square.
Level 1 rotates and crops at random. Levels 2 and 3 also distort the picture. All are then sent as JPEG. Half of a
miner's challenges are generated pictures; this module changes them, but does not make them.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

SIZE = 224
GENERATED_SIDE = 1024  # a larger generated picture is squeezed to a square of this side
LONGEST_SIDE = 65_500  # of a JPEG file, by libjpeg
LEVELS = (0, 1, 2, 3)
MOST_DEGREES, LEAST_AREA = 20.0, 0.2
# Distortions of each level in the order of application, with the largest strength that is drawn. 0 means none.
DISTORTIONS = {
    0: {},
    1: {},
    2: {"saturation": 1, "contrast": 1, "resampling": 1},
    3: {"saturation": 2, "contrast": 2, "resampling": 2, "noise": 2, "blur": 2},
}
SATURATION, CONTRAST, RESAMPLING = (1.0, 0.4, 0.3), (1.0, 0.85, 0.725), (1, 2, 3)
NOISE_VARIANCE, BLUR_KERNEL = (0.0, 0.001, 0.002), (0, 7, 9)
_JPEG_QUALITY = 75
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in PIL's own conversion to grey
# Change of (R, G, B) per unit of noise on (Y, Cb, Cr) in video range, with OpenCV's YCrCb conversion for 0 to 255.
NOISE_TO_RGB = np.array([[1.0, 0.0, 1.403], [1.0, -0.344, -0.714], [1.0, 1.773, 0.0]]) * (
    255 * 255 / np.array([235 - 16, 240 - 16, 240 - 16])
)


@dataclass(frozen=True)
class Challenge:
    """The changes of one picture, in order of application.

    Args:
        degrees (`float`): Rotation, counter-clockwise.
        crop (`tuple[int, int, int]`): Left, top and side of the square crop in px.
        strengths (`dict[str, int]`): Strength of each distortion, by name; 0 leaves it out.
    """

    degrees: float
    crop: tuple[int, int, int]
    strengths: dict[str, int] = field(default_factory=dict)


def challenge_image(image: Image.Image, level: int, seed: int, *, generated: bool = False) -> Image.Image:
    """Change a picture as the validator does before it sends it.

    Source: the subnet's public code, v2.0.4, January 2026.

    Args:
        image (`PIL.Image.Image`): A picture of any size and mode. It is not turned by its EXIF orientation.
        level (`int`): 0 to 3. Level 0 crops the centre; 1 rotates and crops; 2 and 3 also distort.
        seed (`int`): At least 0. The seed and the level decide every draw.
        generated (`bool`, defaults to `False`): The picture was made by a model: it has no first JPEG, and if a side
            is longer than 1024 px it is squeezed to 1024 x 1024 px.

    Returns:
        `PIL.Image.Image`: An RGB picture of 224 x 224 px, decoded from the JPEG of [`challenge_jpeg`].

    Raises:
        `ValueError`: If there is no such level, the seed is negative, or a real picture is too large for a JPEG.

    Example:
        >>> from PIL import Image
        >>> challenge_image(Image.new("RGB", (640, 480)), level=3, seed=0).size
        (224, 224)
    """
    return decode_jpeg(challenge_jpeg(image, level, seed, generated=generated))


def challenge_jpeg(image: Image.Image, level: int, seed: int, *, generated: bool = False) -> bytes:
    """The very JPEG file that the validator sends to a miner.

    Args:
        image, level, seed, generated: As for [`challenge_image`].

    Returns:
        `bytes`: A JPEG file of 224 x 224 px, quality 75.

    Raises:
        `ValueError`: As for [`challenge_image`].
    """
    return sent_jpeg(cached_picture(image, generated=generated), level, seed)


def cached_picture(image: Image.Image, *, generated: bool = False) -> Image.Image:
    """The picture as the validator's cache holds it: what is the same for all challenges about it.

    Raises:
        `ValueError`: If a real picture is too large for a JPEG.
    """
    image = image.convert("RGB")
    if generated:
        square = (GENERATED_SIDE, GENERATED_SIDE)
        return image.resize(square, Image.Resampling.LANCZOS) if max(image.size) > GENERATED_SIDE else image
    if max(image.size) > LONGEST_SIDE:
        raise ValueError(
            f"a picture of {image.width} x {image.height} px cannot be saved as JPEG, which the exam does first: its "
            f"longest side may have {LONGEST_SIDE:,} px"
        )
    return jpeg(image)


def sent_jpeg(cached: Image.Image, level: int, seed: int) -> bytes:
    """The JPEG of one challenge about a picture of the validator's cache, as [`challenge_jpeg`] makes it.

    Raises:
        `ValueError`: If there is no such level or the seed is negative.
    """
    generator = np.random.default_rng([seed, level])
    challenge = draw_challenge(cached.width, cached.height, level, generator)
    return encode_jpeg(apply_challenge(cached, challenge, generator))


def draw_challenge(width: int, height: int, level: int, generator: np.random.Generator) -> Challenge:
    """Draw the changes of one level for a picture of this size.

    Args:
        width, height (`int`): Size of the picture in px.
        level (`int`): 0 to 3.
        generator (`np.random.Generator`): Source of every draw.

    Raises:
        `ValueError`: If there is no such level.
    """
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
    """Draw a square of 0.2 to 1 of the area, as torchvision's RandomResizedCrop does with an aspect ratio of 1.

    After ten squares that do not fit it is the centre square.
    """
    for _ in range(10):
        side = round(math.sqrt(width * height * float(generator.uniform(LEAST_AREA, 1.0))))
        if 0 < side <= min(width, height):
            top = int(generator.integers(0, height - side + 1))
            return int(generator.integers(0, width - side + 1)), top, side
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def apply_challenge(image: Image.Image, challenge: Challenge, generator: np.random.Generator) -> Image.Image:
    """Apply a challenge to an RGB picture. Returns the view of 224 x 224 px before JPEG.

    The generator draws the noise.
    """
    view = _rotated_crop(image, challenge).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    for name, strength in challenge.strengths.items():
        if strength:
            view = _DISTORT[name](view, strength, generator)
    return view


def encode_jpeg(image: Image.Image, quality: int = _JPEG_QUALITY) -> bytes:
    """Encode a picture as JPEG, with the chroma at half size, as PIL does by itself."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def decode_jpeg(content: bytes) -> Image.Image:
    """Decode a JPEG file to RGB."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def jpeg(image: Image.Image, quality: int = _JPEG_QUALITY) -> Image.Image:
    """Encode a picture as JPEG and decode it again."""
    return decode_jpeg(encode_jpeg(image, quality))


def _rotated_crop(image: Image.Image, challenge: Challenge) -> Image.Image:
    """Rotate about the centre and crop, with nearest-neighbour sampling and black beyond the edge.

    Only the pixels of the crop are computed.
    """
    left, top, side = challenge.crop
    if challenge.degrees == 0:
        return image.crop((left, top, left + side, top + side))
    angle = -math.radians(challenge.degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = image.width / 2, image.height / 2
    # Position of a crop pixel in the picture: rotate (left + px - x, top + py - y) back, then add the centre.
    across = (cos, sin, cos * (left - x) + sin * (top - y) + x)
    down = (-sin, cos, -sin * (left - x) + cos * (top - y) + y)
    # PIL computes AFFINE in fixed point, which is off by thousandths of a pixel. PERSPECTIVE uses floats.
    matrix = (*across, *down, 0.0, 0.0)
    return image.transform((side, side), Image.Transform.PERSPECTIVE, matrix, Image.Resampling.NEAREST)


def _saturation(view: Image.Image, strength: int, _: Any) -> Image.Image:
    """Scale the chroma around grey. The validator truncates and PIL rounds, so half a grey level is subtracted."""
    share = SATURATION[strength]
    rows = [[(share if i == j else 0.0) + (1 - share) * LUMA[j] for j in range(3)] + [-0.5] for i in range(3)]
    return view.convert("RGB", [value for row in rows for value in row])


def _contrast(view: Image.Image, strength: int, _: Any) -> Image.Image:
    factor = np.float32(CONTRAST[strength])
    return view.point([int(np.float32(value) * factor) for value in range(256)] * 3)


def _resampling(view: Image.Image, strength: int, _: Any) -> Image.Image:
    """Downsample by 2 or 3 and upsample again, both bilinear. The validator calls this distortion JPEG."""
    low, share = resampling_places(strength)
    pixels = np.asarray(view, dtype=np.float32)
    rows = pixels[low] + (pixels[low + 1] - pixels[low]) * share[:, None, None]
    reduced = rows[:, low] + (rows[:, low + 1] - rows[:, low]) * share[:, None]
    return Image.fromarray(np.rint(reduced).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def resampling_places(strength: int) -> tuple[np.ndarray, np.ndarray]:
    """The first of the two px that each px of the smaller picture lies between, and the share of the second."""
    small = SIZE // RESAMPLING[strength]
    centres = (np.arange(small) + 0.5) * SIZE / small - 0.5
    low = centres.astype(np.int64)
    return low, (centres - low).astype(np.float32)


def _noise(view: Image.Image, strength: int, generator: np.random.Generator) -> Image.Image:
    """Add Gaussian noise to Y, Cb and Cr. They are linear in R, G and B, so the noise is added to these directly."""
    pixels = np.asarray(view, dtype=np.float32)
    noise = generator.standard_normal(pixels.shape, dtype=np.float32)
    noise *= math.sqrt(NOISE_VARIANCE[strength])
    return Image.fromarray(np.clip(pixels + noise @ NOISE_TO_RGB.T.astype(np.float32), 0, 255).astype(np.uint8))


def blur_kernel(strength: int) -> np.ndarray:
    """The weights of the blur along an axis."""
    size = BLUR_KERNEL[strength]
    offsets = np.arange(size) - size // 2
    kernel: np.ndarray = np.exp(-(offsets**2) / (2 * (size / 6) ** 2))
    kernel /= kernel.sum()
    return kernel


def _blur(view: Image.Image, strength: int, _: Any) -> Image.Image:
    from scipy.ndimage import correlate1d

    kernel = blur_kernel(strength)
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
