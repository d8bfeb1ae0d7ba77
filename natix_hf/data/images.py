"""Read image files of any kind as upright 8-bit RGB images."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from natix_hf.errors import DataError

# An image with a larger ratio of its sides is cropped to its centre square before it is resized or rotated. A strip of
# 10,000 x 1 px would otherwise need gigabytes.
EXTREME_ASPECT = 4


def open_image(value: Any, name: str = "image") -> Image.Image:
    """Open an image as upright RGB.

    Args:
        value: A path, encoded bytes, a `datasets` image cell (`{"bytes", "path"}`), a PIL image, or a uint8 array
            [H, W] or [H, W, 3].
        name: Name of the image for error messages.

    Raises:
        DataError: If it cannot be read as an image. The message holds `name`.
    """
    try:
        if isinstance(value, Image.Image):
            return to_rgb(value)
        if isinstance(value, np.ndarray):
            return to_rgb(Image.fromarray(value))
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise DataError(f"{name} is missing: its cell is empty")
        if isinstance(value, bytes):
            value = io.BytesIO(value)
        with Image.open(value) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such file") from None
    except UnidentifiedImageError:  # PIL's own message shows only the address of a buffer
        raise DataError(f"{name} cannot be read as an image (it is of no known format)") from None
    except (OSError, ValueError, TypeError, AttributeError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be read as an image ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB, upright by EXIF. 16-bit grey is scaled to 8 bits; PIL alone would clip it to white."""
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} px")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        scale = 257.0 if image.mode.startswith("I;16") or values.max() > 255 else 1.0
        image = Image.fromarray(np.clip(values / scale, 0, 255).round().astype(np.uint8))
    return image.convert("RGB")


def centre_square(image: Image.Image) -> Image.Image:
    """Crop the largest centred square of an image."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def tame_aspect(image: Image.Image) -> Image.Image:
    """Crop an image of extreme shape to its centre square. Other images stay as they are."""
    return centre_square(image) if max(image.size) > EXTREME_ASPECT * min(image.size) else image


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """Resize so that the short side is at most `short_side` px. Smaller images stay as they are."""
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def pixel_sha256(image: Image.Image) -> str:
    """Compute the sha256 of the decoded pixels. It is the same for a picture in two lossless formats."""
    return hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()


def describe_cell(cell: dict[str, Any] | None, row_id: str) -> str:
    """Name the image of a row for an error message."""
    path = cell.get("path") if cell else None
    return f"the image of row {row_id}" + (f" ({Path(path).name})" if path else "")
