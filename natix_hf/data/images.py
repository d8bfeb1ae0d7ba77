"""Read image files of any kind as upright 8-bit RGB images."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from natix_hf.data.metadata import without_metadata
from natix_hf.data.orientation import TURNS, orientation_of
from natix_hf.data.pixel_budget import MOST_MEGAPIXELS, TooLargeError, fit, most_bytes, open_within
from natix_hf.errors import DataError, first_line, redacted
from natix_hf.intake.formats import readable_formats, why_unknown
from natix_hf.intake.pointers import HEAD

# An image with a larger ratio of its sides is cropped to its centre square before it is resized or rotated. A strip of
# 10,000 x 1 px would otherwise need gigabytes.
EXTREME_ASPECT = 4
_LONGEST_NAME, _LONGEST_REASON = 300, 200  # characters in a message


def open_image(
    value: Any, name: str = "image", at_least: int | None = None, max_megapixels: float = MOST_MEGAPIXELS
) -> Image.Image:
    """Open an image as upright RGB, without its metadata. Every picture that the package reads comes through here.

    Args:
        value: A path, encoded bytes, an open binary file, a `datasets` image cell (`{"bytes", "path"}`), a PIL image,
            or a uint8 array [H, W] or [H, W, 3].
        name: Name of the image for error messages.
        at_least: A short side in px that is enough, for a caller that shrinks the image. A JPEG is then decoded at
            1/2, 1/4 or 1/8 of its size if it stays this large, which is faster; its pixels differ a little from those
            of a full picture that is shrunk. None decodes every image in full.
        max_megapixels: The budget of an image. A file of more than 3.5 bytes a pixel of it is not read. A JPEG beyond
            it is decoded at 1/2, 1/4 or 1/8 of its size, with a warning, and any other image beyond it is refused.

    Raises:
        DataError: If it cannot be read as an image, whatever the reason. The message is one line and holds `name`.
    """
    name = name_in_message(name)
    try:
        if isinstance(value, Image.Image):
            _check_opened(value, max_megapixels)
            return to_rgb(value)
        if isinstance(value, np.ndarray):
            return to_rgb(Image.fromarray(value))
        return _decode(_content(value, name, most_bytes(max_megapixels)), at_least, max_megapixels)
    except DataError:
        raise
    except TooLargeError as error:
        raise DataError(f"{name} is not read: {error}") from None
    except MemoryError:
        raise DataError(f"{name} cannot be read as an image: there is not enough memory to decode it") from None
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such file") from None
    except Exception as error:  # the libraries behind Pillow raise anything
        reason = _plain(first_line(error))
        cut = f"{reason[:_LONGEST_REASON]}…" if len(reason) > _LONGEST_REASON else reason
        raise DataError(f"{name} cannot be read as an image ({cut})") from None


def name_in_message(name: str) -> str:
    """The name of an image as the messages of `open_image` begin with it."""
    name = _plain(name)
    return f"…{name[-_LONGEST_NAME:]}" if len(name) > _LONGEST_NAME else name


def _plain(text: str) -> str:
    """A text without characters that break a line or cannot be printed, and without secrets."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "?", redacted(str(text)))


def _content(value: Any, name: str, most: int) -> bytes:
    """The bytes of an image, `most` at the most."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise DataError(f"{name} is missing: its cell is empty")
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
    elif hasattr(value, "read"):
        content = value.read(most + 1)
    else:
        content = _of_file(Path(value), name, most)
    if len(content) > most:
        raise TooLargeError(f"it is a file of more than {most / 1e6:,.0f} MB: shrink it, or raise data.max_megapixels")
    return content


def _of_file(path: Path, name: str, most: int) -> bytes:
    """The bytes of a regular file, and one more than `most` if there are more.

    Only regular files are opened: a named pipe would wait for ever, and a device never ends. A file that says that it
    is empty is not read either, because those of the kernel say so and some never end.
    """
    _require_regular(path.stat(), name)
    # Without waiting, and asked again once it is open, because it may be another file by then.
    with os.fdopen(os.open(path, os.O_RDONLY | _NO_WAIT), "rb") as file:
        facts = os.fstat(file.fileno())
        _require_regular(facts, name)
        if facts.st_size > most:
            raise TooLargeError(
                f"it is a file of {facts.st_size / 1e6:,.0f} MB, and {most / 1e6:,.0f} is the most: shrink it, or "
                "raise data.max_megapixels"
            )
        return file.read(most + 1) if facts.st_size else b""


_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # Windows lacks the first, others the second


def _require_regular(facts: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
        raise DataError(f"{name} is {kind}: name an image file")


def _decode(content: bytes, at_least: int | None, max_megapixels: float) -> Image.Image:
    head = content[:HEAD]
    bare = without_metadata(content)
    del content  # a file of hundreds of megabytes is held once
    opened = open_within(io.BytesIO(bare.content), bare.content, max_megapixels, bare.orientation in TURNS)
    if opened is None:
        raise ValueError(why_unknown(head))
    with opened as image:
        is_whole = getattr(image, "decoderconfig", ()) == ()  # a second draft of the same picture fails
        if at_least is not None and image.format in ("JPEG", "MPO") and is_whole:
            image.draft(None, (at_least, at_least))
        return to_rgb(image, bare.orientation, is_ours=True)


def _check_opened(image: Image.Image, max_megapixels: float) -> None:
    """Check a picture that the caller opened with Pillow, and that is still to be decoded.

    Raises:
        TooLargeError: If it costs more than the budget.
        ValueError: If its format is none that is read here: Pillow would start another program to decode it.
    """
    if not (isinstance(image, ImageFile.ImageFile) and image.tile):
        return
    if image.format not in readable_formats():
        raise ValueError(f"{image.format} is not read: export it as PNG or JPEG")
    fit(image, b"", max_megapixels)


def to_rgb(image: Image.Image, orientation: int | None = None, is_ours: bool = False) -> Image.Image:
    """Convert to 8-bit RGB, upright by EXIF, without metadata.

    Deeper grey is scaled to 8 bits; PIL alone would clip it to white. White is

    - 16-bit integers: 65,535, or what a TIFF of fewer bits says (`BitsPerSample`, or a `MaxSampleValue` of 2^n - 1);
    - 32-bit integers: 255 if no pixel is above it, else 65,535;
    - floats: 1 if no pixel is above it, else 255 if no pixel is above it, else 65,535.

    Pixels below 0 and pixels that are no number are black, pixels above white are white.

    Args:
        orientation: The EXIF orientation, 1 to 8. None reads it from the image.
        is_ours: Nobody else holds the image: it is closed as soon as its pixels are converted.
    """
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} px")
    image.load()
    turn = TURNS.get(orientation_of(image) if orientation is None else orientation)
    deep = image.mode == "F" or image.mode.startswith("I")
    if deep:
        grey = _eight_bits(image)
        if is_ours:
            image.close()
        rgb = grey.convert("RGB")
    else:  # `_new` shares the pixels, `convert` copies them even if nothing is to be converted
        rgb = image._new(image.im) if is_ours and image.mode == "RGB" else image.convert("RGB")
        if is_ours:
            image.close()
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info = {}
    return rgb


def _eight_bits(image: Image.Image) -> Image.Image:
    bands = [(0, top, image.width, min(top + _BAND, image.height)) for top in range(0, image.height, _BAND)]
    if image.mode.startswith("I;16"):
        white = _white_of_tiff(image)
    elif image.mode == "I" and image.format == "PPM":
        white = 65_535  # whatever the file's own white was
    else:
        most = max(_most(_floats(image.crop(band))) for band in bands)
        white = 1 if image.mode == "F" and most <= 1 else 255 if most <= 255 else 65_535
    grey = Image.new("L", image.size)
    for band in bands:
        values = np.clip(_floats(image.crop(band)) * (255 / white), 0, 255).round().astype(np.uint8)
        grey.paste(Image.fromarray(values), band)
    return grey


_BAND = 256  # rows that are scaled at once: as floats a large picture would fill gigabytes


def _floats(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)


def _most(values: np.ndarray) -> float:
    return float(values.max(where=np.isfinite(values), initial=0.0))


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
