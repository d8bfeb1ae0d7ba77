"""How large a picture may be: found from its header, before anything is decoded.

A file of some hundred kilobytes can stand for gigabytes of pixels. A picture therefore costs megapixels of a budget:
its own, times what its format takes more of memory or time than a PNG.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from typing import IO, Any, Literal

from PIL import Image

from natix_hf.data.config import MOST_MEGAPIXELS
from natix_hf.data.orientation import first_directory
from natix_hf.intake.formats import readable_formats

__all__ = ["MOST_MEGAPIXELS", "TooLargeError", "fit", "most_bytes", "open_within"]

# A megapixel of the budget stands for so many MB of memory: by default a picture takes less than 1 GB.
_BYTES_A_PIXEL = 7
# Bytes a pixel that a decoder holds at its worst moment, the picture included. Decoders written in Python count as
# many times more as they are slower.
_HELD = {"WEBP": 17, "AVIF": 14, "HEIF": 16, "JXL": 16, "JPEG2000": 35, "TIFF": 8, "PSD": 8, "IM": 8, "SGI": 14,
         "MSP": 14, "DDS": 84, "FTEX": 84, "BLP": 84, "QOI": 168, "XPM": 168, "ICNS": 168}  # fmt: skip
_HELD_BY_TEXT = 112  # a PPM of decimal numbers
_HELD_INSIDE = 28  # a picture inside an icon, or a tile of a TIFF
_MOST_SCANS = 12  # a JPEG of the largest size may go over its pixels so often
_MOST_DRAFT = 3  # budgets: beyond them, even an eighth of the size takes too long


class TooLargeError(ValueError):
    """A picture costs more than the budget. The text says why and what to do."""


def most_bytes(megapixels: float) -> int:
    """The largest file that is read for this budget, in bytes. Two copies of it fit into the memory."""
    return int(megapixels * 1e6 * _BYTES_A_PIXEL / 2)


def open_within(file: IO[bytes], content: bytes, megapixels: float, turned: bool = False) -> Image.Image | None:
    """Open a picture without decoding it. None if its content is of no known format.

    It does what `Image.open` does, but for Pillow's own limit: that is a setting of the user's whole process, and it
    warns.

    Args:
        file: The same bytes as `content`, for Pillow.
        turned: The picture will be turned, which takes its memory twice.

    Raises:
        TooLargeError: If the picture costs more than the budget.
    """
    for width, height, held in _hidden_sizes(content):
        _require_within(width, height, width * height * held / _BYTES_A_PIXEL, megapixels)
    for name in readable_formats():
        factory, accept = Image.OPEN[name]
        try:
            fits = not accept or accept(content[:16])
            if not fits or isinstance(fits, str):  # a text says why the format cannot be read here
                continue
            file.seek(0)
            image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # the next format may fit
            continue
        except Image.DecompressionBombError:
            raise TooLargeError("it has more pixels than Pillow decodes in this format: shrink it") from None
        fit(image, content, megapixels, turned)
        return image
    return None


def fit(image: Image.Image, content: bytes, megapixels: float, turned: bool = False) -> None:
    """Refuse an opened picture that costs more than the budget, or set a JPEG to be decoded at 1/2, 1/4 or 1/8 of its
    size where that is within it. A warning says so.

    Raises:
        TooLargeError: If it costs more than the budget.
    """
    width, height = image.size
    whole = width * height
    beside = _kept_between_scans(image, content, megapixels) / _BYTES_A_PIXEL
    weight = max(1.0, _held(image, content) / _BYTES_A_PIXEL, 8 / _BYTES_A_PIXEL if turned else 0)
    is_draft = image.format in ("JPEG", "MPO") and whole <= _MOST_DRAFT * megapixels * 1e6
    costs = {divisor: whole * (weight / divisor**2 + beside) for divisor in ((1, 2, 4, 8) if is_draft else (1,))}
    divisor = next((divisor for divisor, cost in costs.items() if cost <= megapixels * 1e6), None)
    if divisor is None:
        _require_within(width, height, costs[1], megapixels)
    elif divisor > 1:
        image.draft(None, (-(-width // divisor), -(-height // divisor)))
        warnings.warn(
            f"a JPEG of {width} x {height} px is more than {megapixels:g} megapixels: it is decoded at 1/{divisor} of "
            "its size",
            stacklevel=4,
        )


def _require_within(width: int, height: int, cost: float, megapixels: float) -> None:
    if cost > megapixels * 1e6:
        raise TooLargeError(
            f"it has {width} x {height} px, which cost {cost / 1e6:,.0f} megapixels, and {megapixels:g} is the most: "
            "shrink it, or raise data.max_megapixels"
        )


def _held(image: Image.Image, content: bytes) -> float:
    """Bytes a pixel at the worst moment: in the decoder, or as RGB beside what was decoded."""
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    is_text = image.format == "PPM" and re.match(rb"P[123]\s", content) is not None
    return max(_HELD_BY_TEXT if is_text else _HELD.get(image.format or "", 0), stored + 4 * (image.mode != "RGB"))


def _kept_between_scans(image: Image.Image, content: bytes, megapixels: float) -> float:
    """Bytes a pixel that libjpeg holds, at whatever size it decodes, for a JPEG whose pixels come in several scans.

    Raises:
        TooLargeError: If it has so many scans that only time is lost.
    """
    layers: list[tuple[int, int, int, int]] = getattr(image, "layer", [])
    first = content.find(b"\xff\xda")
    if not layers or first < 0:
        return 0
    if "progressive" not in image.info and content[first + 4 : first + 5] == bytes([len(layers)]):
        return 0
    scans, pixels = content.count(b"\xff\xda"), image.width * image.height
    if scans * pixels > _MOST_SCANS * megapixels * 1e6:
        raise TooLargeError(f"it goes over its {image.width} x {image.height} px in {scans} scans: save it anew")
    _, across, down, _ = (max(values) for values in zip(*layers, strict=True))
    return float(2 * sum(h * v for _, h, v, _ in layers) / max(1, across * down))


def _hidden_sizes(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Width, height and bytes a pixel of what Pillow would decode or make room for without a look at its size."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        yield *_webp_size(content), _HELD["WEBP"]
    elif content[:4] == b"\0\0\1\0":
        for at in range(6, 6 + 16 * int.from_bytes(content[4:6], "little"), 16):
            start = int.from_bytes(content[at + 12 : at + 16], "little")
            is_png = content[start : start + 8] == b"\x89PNG\r\n\x1a\n"
            width, height = _pair(">II", content, start + 16) if is_png else _pair("<ii", content, start + 4)
            yield abs(width), abs(height), _HELD_INSIDE
    elif content[:4] in (b"icns", b"BLP1", b"BLP2") or content[4:8] == b"jP  " or content[:2] == b"\xff\x4f":
        for found in re.finditer(_EMBEDDED, content):
            down_first = found[2] is not None
            width, height = _pair(">HH", found[2], 0)[::-1] if down_first else _pair(">II", found[1], 0)
            yield width, height, _HELD_INSIDE
    else:
        directory = first_directory(content)
        tile = {entry.tag: entry for entry in directory.entries if entry.tag in (322, 323)} if directory else {}
        if directory is not None and len(tile) == 2:
            order: Literal["little", "big"] = "little" if directory.order == "<" else "big"
            width, height = (
                int.from_bytes(tile[tag].value[: {3: 2, 16: 8}.get(tile[tag].kind, 4)], order) for tag in (322, 323)
            )
            yield width, height, _HELD["TIFF"]


# The size of an embedded PNG or JPEG 2000 (width, height), or JPEG (height, width).
_EMBEDDED = re.compile(
    rb"(?:\x89PNG\r\n\x1a\n....IHDR|\xff\x4f\xff\x51....)(.{8})|\xff[\xc0-\xc2]\x00[\x0b\x11]\x08(.{4})",
    re.DOTALL,
)


def _pair(layout: str, content: bytes, at: int) -> Any:
    """Two numbers, (0, 0) behind the end of the file."""
    size = struct.calcsize(layout)
    return struct.unpack_from(layout, content, at) if 0 <= at <= len(content) - size else (0, 0)


def _webp_size(content: bytes) -> tuple[int, int]:
    kind, head = content[12:16], content[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[6:10])
    return width & 0x3FFF, height & 0x3FFF
