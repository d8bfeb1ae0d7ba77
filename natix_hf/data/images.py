"""Read image files of any kind as upright 8-bit RGB images."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from natix_hf.data.metadata import without_metadata
from natix_hf.data.orientation import TURNS, orientation_of
from natix_hf.errors import DataError, first_line
from natix_hf.intake.formats import readable_formats, why_unknown

# An image with a larger ratio of its sides is cropped to its centre square before it is resized or rotated. A strip of
# 10,000 x 1 px would otherwise need gigabytes.
EXTREME_ASPECT = 4
_LONGEST_NAME, _LONGEST_REASON = 300, 200  # characters in a message


def open_image(value: Any, name: str = "image", at_least: int | None = None) -> Image.Image:
    """Open an image as upright RGB, without its metadata.

    Args:
        value: A path, encoded bytes, an open binary file, a `datasets` image cell (`{"bytes", "path"}`), a PIL image,
            or a uint8 array [H, W] or [H, W, 3].
        name: Name of the image for error messages.
        at_least: A short side in px that is enough, for a caller that shrinks the image. A JPEG is then decoded at
            1/2, 1/4 or 1/8 of its size if it stays this large, which is faster; its pixels differ a little from those
            of a full picture that is shrunk. None decodes every image in full.

    Raises:
        DataError: If it cannot be read as an image, whatever the reason. The message is one line and holds `name`.
    """
    name = _plain(name)
    if len(name) > _LONGEST_NAME:
        name = f"…{name[-_LONGEST_NAME:]}"
    try:
        if isinstance(value, Image.Image):
            return to_rgb(value)
        if isinstance(value, np.ndarray):
            return to_rgb(Image.fromarray(value))
        return _decode(_content(value, name), at_least)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such file") from None
    except Exception as error:  # the libraries behind Pillow raise anything
        reason = _plain(first_line(error))
        cut = f"{reason[:_LONGEST_REASON]}…" if len(reason) > _LONGEST_REASON else reason
        raise DataError(f"{name} cannot be read as an image ({cut})") from None


def _plain(text: str) -> str:
    """A text without characters that break a line or cannot be printed."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "?", str(text))


def _content(value: Any, name: str) -> bytes:
    """The bytes of an image. Only regular files are opened: a named pipe would wait for ever."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise DataError(f"{name} is missing: its cell is empty")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if hasattr(value, "read"):
        content: bytes = value.read()
        return content
    path = Path(value)
    mode = path.stat().st_mode
    if not S_ISREG(mode):
        raise DataError(f"{name} is {'a folder' if S_ISDIR(mode) else 'no regular file'}: name an image file")
    return path.read_bytes()


def _decode(content: bytes, at_least: int | None) -> Image.Image:
    bare = without_metadata(content)
    try:
        opened = Image.open(io.BytesIO(bare.content), formats=readable_formats())
    except UnidentifiedImageError:  # PIL's own message shows only the address of a buffer
        raise ValueError(why_unknown(content)) from None
    with opened as image:
        if at_least is not None and image.format in ("JPEG", "MPO"):
            image.draft(None, (at_least, at_least))
        return to_rgb(image, bare.orientation)


def to_rgb(image: Image.Image, orientation: int | None = None) -> Image.Image:
    """Convert to 8-bit RGB, upright by EXIF, without metadata.

    Deeper grey is scaled to 8 bits; PIL alone would clip it to white. White is

    - 16-bit integers: 65,535, or what a TIFF of fewer bits says (`BitsPerSample`, or a `MaxSampleValue` of 2^n - 1);
    - 32-bit integers: 255 if no pixel is above it, else 65,535;
    - floats: 1 if no pixel is above it, else 255 if no pixel is above it, else 65,535.

    Pixels below 0 and pixels that are no number are black, pixels above white are white.

    Args:
        orientation: The EXIF orientation, 1 to 8. None reads it from the image.
    """
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} px")
    image.load()
    turn = TURNS.get(orientation_of(image) if orientation is None else orientation)
    deep = image.mode == "F" or image.mode.startswith("I")
    rgb = (_eight_bits(image) if deep else image).convert("RGB")
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info = {}
    return rgb


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    if image.mode.startswith("I;16"):
        white = _white_of_tiff(image)
    elif image.mode == "I" and image.format == "PPM":
        white = 65_535  # whatever the file's own white was
    else:
        most = values.max(where=np.isfinite(values), initial=0.0)
        white = 1 if image.mode == "F" and most <= 1 else 255 if most <= 255 else 65_535
    return Image.fromarray(np.clip(values * (255 / white), 0, 255).round().astype(np.uint8))


def _white_of_tiff(image: Image.Image) -> int:
    """The white of a 16-bit picture. A `MaxSampleValue` of another form is a picture's brightest value, not white."""
    tags = getattr(image, "tag_v2", {})
    bits, most = int(tags.get(258, (16,))[0]), int(tags.get(281, (0,))[0])
    if 255 < most < 65_535 and most & (most + 1) == 0:
        return most
    return int(2**bits) - 1 if 8 < bits < 16 else 65_535


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
    name = Path(cell["path"]).name if cell and cell.get("path") else ""
    return f"the image of row {row_id}" + (f" ({name})" if name and not row_id.endswith(name) else "")
