"""From stored bytes to one kind of picture: an upright 8-bit RGB image, whatever the file was."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from natix_hf.errors import DataError

# Beyond this ratio of its sides an image is cut to its centre square before it is resized or rotated: the work on a
# 10,000 x 1 strip would need gigabytes.
EXTREME_ASPECT = 4


def open_image(value: Any, name: str = "image") -> Image.Image:
    """Opens a path, encoded bytes, a `datasets` image cell (`{"bytes", "path"}`), a uint8 array [H, W] or [H, W, 3]
    or a PIL image as an upright RGB image.

    Raises:
        DataError: it cannot be read as an image; the line holds `name`.
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
    except UnidentifiedImageError:  # its own text holds the address of a buffer
        raise DataError(f"{name} cannot be read as an image (it is of no known format)") from None
    except (OSError, ValueError, TypeError, AttributeError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be read as an image ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright (EXIF) 8-bit RGB. 16-bit grey is scaled to 8 bits, where PIL alone would clip it to white."""
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} px")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        scale = 257.0 if image.mode.startswith("I;16") or values.max() > 255 else 1.0
        image = Image.fromarray(np.clip(values / scale, 0, 255).round().astype(np.uint8))
    return image.convert("RGB")


def centre_square(image: Image.Image) -> Image.Image:
    """The largest centred square of an image."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def tame_aspect(image: Image.Image) -> Image.Image:
    """The centre square of an image with an extreme shape; any other image as it is."""
    return centre_square(image) if max(image.size) > EXTREME_ASPECT * min(image.size) else image


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """Resizes so that the short side is at most `short_side` px; smaller images are returned as they are."""
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def pixel_sha256(image: Image.Image) -> str:
    """sha256 of the decoded pixels: equal for one picture stored in two lossless formats."""
    return hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()


def describe_cell(cell: dict[str, Any] | None, row_id: str) -> str:
    """A name for a row's image in an error line."""
    path = cell.get("path") if cell else None
    return f"the image of row {row_id}" + (f" ({Path(path).name})" if path else "")
