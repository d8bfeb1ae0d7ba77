"""Which way up a picture is: the orientation alone, read from EXIF or XMP. Damage elsewhere in them never matters."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

ORIENTATION = 0x0112
UPRIGHT = 1
# How the pixels of an EXIF orientation become upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORDERS = {b"II": "<", b"MM": ">"}
_INTEGERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 16: "Q"}  # TIFF type -> struct code


@dataclass(frozen=True)
class Entry:
    """One entry of a TIFF directory. `content` is the entry as it stands in the file."""

    tag: int
    kind: int
    count: int
    value: bytes
    content: bytes


@dataclass(frozen=True)
class Directory:
    """The first directory of a TIFF file: its byte order, its offset, its entries and whether it is a BigTIFF."""

    order: str
    at: int
    entries: list[Entry]
    big: bool


def first_directory(tiff: bytes) -> Directory | None:
    """Read the first directory of a TIFF file or of an EXIF block, as far as it goes. None if it is no TIFF."""
    order = _ORDERS.get(tiff[:2])
    version = int.from_bytes(tiff[2:4], "little" if order == "<" else "big")
    if order is None or version not in (42, 43):
        return None
    big = version == 43
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "L"), tiff, 8 if big else 4)
        return Directory(order, at, list(_entries(tiff, order, at, big)), big)
    except (struct.error, OverflowError):
        return None


def _entries(tiff: bytes, order: str, at: int, big: bool) -> Iterator[Entry]:
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), tiff, at)
    layout = struct.Struct(order + ("HHQ8s" if big else "HHL4s"))
    at += 8 if big else 2
    for _ in range(min(count, (len(tiff) - at) // layout.size)):
        tag, kind, number, value = layout.unpack_from(tiff, at)
        yield Entry(tag, kind, number, value, tiff[at : at + layout.size])
        at += layout.size


def directory_orientation(directory: Directory | None) -> int | None:
    """The orientation of a TIFF directory, None if it has none. A damaged one is upright."""
    for entry in directory.entries if directory else ():
        if entry.tag == ORIENTATION:
            code = _INTEGERS.get(entry.kind)
            if code is None or entry.count != 1:
                return UPRIGHT
            value: int
            (value,) = struct.unpack_from(f"{directory.order}{code}", entry.value.ljust(8, b"\0"))  # type: ignore[union-attr]
            return value if value in TURNS else UPRIGHT
    return None


def metadata_orientation(exif: bytes = b"", xmp: bytes | str = b"") -> int:
    """The orientation of an EXIF block, else of an XMP packet, else upright. EXIF goes before, as in Pillow."""
    found = directory_orientation(first_directory(re.sub(rb"^(?:Exif\0\0){1,2}", b"", exif)))
    if found is None:
        text = xmp if isinstance(xmp, str) else xmp.decode("latin-1")
        match = re.search(r'tiff:Orientation(?:="|>)([0-9])', text)
        found = int(match[1]) if match else UPRIGHT
    return found


def raw_profile(text: bytes) -> bytes:
    """The EXIF block in ImageMagick's text form: a name, a length and hexadecimal digits. It may be cut off."""
    digits = b"".join(text.split()[2:])
    match = re.match(rb"(?:[0-9a-fA-F]{2})*", digits)
    return bytes.fromhex(match[0].decode("ascii")) if match else b""


def orientation_of(image: Image.Image) -> int:
    """The orientation of a loaded picture that Pillow opened. Its pixels stay as they are.

    Pillow turns a TIFF itself; the decoders of HEIC and JPEG XL turn the picture and leave the EXIF block. AVIF is
    turned by its container alone: Pillow writes what that says into the EXIF block.
    """
    if image.format in ("TIFF", "HEIF") or (image.format == "JXL" and not getattr(image, "jpeg", False)):
        return UPRIGHT
    exif, raw = image.info.get("exif"), image.info.get("Raw profile type exif")
    if exif is None and isinstance(raw, str):
        exif = raw_profile(raw.encode("latin-1", "replace"))
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
    readable_xmp = xmp if isinstance(xmp, bytes | str) and image.format != "AVIF" else b""
    return metadata_orientation(exif if isinstance(exif, bytes) else b"", readable_xmp)
