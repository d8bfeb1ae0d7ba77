"""Take a picture's metadata off before it is decoded: it can be damaged or endless where the pixels are good.

Pillow parses comments, colour profiles, EXIF and XMP while it opens a file, and refuses the picture if one of them is
damaged, or is a compressed text of more than 1 MB. The decoder here needs the pixels and the orientation, so it sees
files without the rest. A file that does not have the form of its format is left to Pillow as it is.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple

from natix_hf.data.orientation import (
    UPRIGHT,
    directory_orientation,
    first_directory,
    metadata_orientation,
    raw_profile,
)

_MOST_TEXT = 2**20  # bytes of metadata that are looked at: the orientation stands near their beginning


class Bare(NamedTuple):
    """A file without its metadata. `orientation` is that of EXIF, None where the opened picture has to be asked."""

    content: bytes
    orientation: int | None = None


def without_metadata(content: bytes) -> Bare:
    """Take the metadata off a JPEG, PNG, TIFF or AVIF. Others stay as they are: their metadata is not parsed."""
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(content)
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(content)
    if content[4:8] == b"ftyp":
        return Bare(_NAMED_EXIF.sub(rb"\1free", content))
    return Bare(content)


_MARKER = re.compile(rb"\xff+([^\xff])", re.DOTALL)
_SOS, _EOI = 0xDA, 0xD9
_NO_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}


def _jpeg(content: bytes) -> Bare:
    view = memoryview(content)  # its slices are no copies
    kept, exif, xmp, at = [view[:2]], b"", b"", 2
    while (found := _MARKER.search(content, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker in _NO_LENGTH:
            kept.append(view[found.start() : at])
            continue
        stop = at + max(2, int.from_bytes(content[at : at + 2], "big"))
        if marker in (_SOS, _EOI) or stop > len(content):
            kept.append(view[found.start() :])
            return Bare(b"".join(kept), metadata_orientation(exif, xmp))
        segment, at = content[at + 2 : stop], stop
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            exif += segment[6:] if len(exif) < _MOST_TEXT else b""
        elif marker == 0xE1 and segment.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = segment
        if _jpeg_needs(marker, segment):
            kept.append(view[found.start() : stop])
    return Bare(content)


def _jpeg_needs(marker: int, segment: bytes) -> bool:
    """Whether libjpeg looks at a segment. JFIF and Adobe say in which colours the picture is."""
    if marker == 0xE0:
        return segment.startswith(b"JFIF\0") and len(segment) >= 14
    if marker == 0xEE:
        return segment.startswith(b"Adobe") and len(segment) >= 12
    return not (0xE0 <= marker <= 0xEF or marker == 0xFE)


_IEND = b"\0\0\0\0IEND\xaeB`\x82"


def _png(content: bytes) -> Bare:
    """Keep what Pillow needs for the first picture, up to the end of its pixels (`IDAT`, or `fdAT` alone)."""
    view = memoryview(content)
    kept, exif, raw, xmp, at = [view[:8]], b"", b"", b"", 8
    pixels = ended = False
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">L4s", content, at)
        start, stop = at + 8, at + 12 + size
        ended = pixels and (ended or kind != b"IDAT")
        pixels = pixels or (kind == b"IDAT" and len(kept) > 1)  # Pillow skips pixels that come before any header
        if not kind.isalpha():
            kept.append(view[:0] if ended else view[at:])
            break
        if kind == b"eXIf":
            exif = content[start : stop - 4]
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, text = _png_text(kind, content[start : min(stop - 4, start + _MOST_TEXT)])
            raw = text if keyword == b"Raw profile type exif" else raw
            xmp = text if keyword == b"XML:com.adobe.xmp" else xmp
        elif not ended and (pixels or kind != b"IDAT") and (kind[:1].isupper() or kind in _ANIMATION):
            kept.append(view[at:stop])
        at = stop
    return Bare(b"".join([*kept, _IEND if ended else b""]), metadata_orientation(exif or raw_profile(raw), xmp))


_ANIMATION = (b"acTL", b"fcTL", b"fdAT")


def _png_text(kind: bytes, chunk: bytes) -> tuple[bytes, bytes]:
    """The keyword and the beginning of the text of a PNG text chunk."""
    keyword, _, text = chunk.partition(b"\0")
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = text[:1] == b"\1"
        text = text[2:].split(b"\0", 2)[-1]
    elif packed:
        text = text[1:]
    if not packed:
        return keyword, text
    try:
        return keyword, zlib.decompressobj().decompress(text, _MOST_TEXT)
    except zlib.error:
        return keyword, b""


_MAX_SAMPLE_VALUE, _SHORT = 281, 3
# The tags that say how pixels are stored; the rest describes the picture.
_TIFF_PIXELS = {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 284, 292, 293, 317}
_TIFF_PIXELS |= {320, 321, 322, 323, 324, 325, 326, 327, 328, 332, 333, 334, 338, 339, 347, *range(512, 522)}
_TIFF_PIXELS |= {529, 530, 531, 532, 37439, 50674}


def _tiff(content: bytes) -> Bare:
    """Write the directory anew in its place, without tags that describe the picture and without further pictures."""
    directory = first_directory(content)
    if directory is None:
        return Bare(content)
    order, at, entries, big = directory.order, directory.at, directory.entries, directory.big
    kept = [
        entry.content
        for entry in entries
        if entry.tag in _TIFF_PIXELS or (entry.tag, entry.kind, entry.count) == (_MAX_SAMPLE_VALUE, _SHORT, 1)
    ]
    count, end = struct.pack(order + ("Q" if big else "H"), len(kept)), b"\0" * (8 if big else 4)
    block = count + b"".join(kept) + end
    found = directory_orientation(directory)
    view = memoryview(content)
    return Bare(b"".join((view[:at], block, view[at + len(block) :])), UPRIGHT if found is None else found)


# The name of an EXIF item in the table of an AVIF file (`infe` of version 2 or 3). Under another name it is not read.
_NAMED_EXIF = re.compile(rb"(infe(?:\x02...(?:..)|\x03...(?:....))..)Exif", re.DOTALL)
