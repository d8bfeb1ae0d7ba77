"""Upright by the orientation alone: whatever else a file's metadata say, and however damaged or long they are."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin, features

from natix_hf.data.images import open_image, to_rgb
from natix_hf.data.metadata import without_metadata

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True},
    "TIFF": {}, "TIFF LZW": {"compression": "tiff_lzw"},
}  # fmt: skip
if "avif" in features.get_supported():
    FORMATS["AVIF"] = {"quality": 100, "subsampling": "4:4:4"}
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def encoded(form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    packet = options.pop("xmp", b"") if form == "JPEG" else b""  # which Pillow before 11 does not write
    PICTURE.save(buffer, form.split()[0], **(FORMATS[form] | options))
    content = buffer.getvalue()
    if packet:
        packet = b"http://ns.adobe.com/xap/1.0/\0" + packet
        content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(packet) + 2) + packet + content[2:]
    return content


def as_pillow(content: bytes) -> np.ndarray:
    """Upright as Pillow would have it."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def exif_block(orientation: int, order: str = "<") -> bytes:
    """An EXIF block of the orientation and a resolution of -72/1, which Pillow cannot write again."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    entries = struct.pack(order + "HHHLHHHHLL", 2, 0x0112, 3, 1, orientation, 0, 0x011A, 10, 1, 38)
    return b"Exif\0\0" + head + entries + b"\0" * 4 + struct.pack(order + "ll", -72, 1)


CASES = [(form, code) for form in FORMATS for code in range(10) if 0 < code < 9 or form != "TIFF LZW"]  # not writable


@pytest.mark.parametrize(("form", "orientation"), CASES)
def test_every_orientation_is_undone_once_as_pillow_does(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(form, exif=exif if form.startswith("TIFF") else exif.tobytes())
    image = open_image(content)
    assert (np.asarray(image) == as_pillow(content)).all()
    assert to_rgb(image).tobytes() == image.tobytes(), "predict brings an opened image to RGB a second time"
    with Image.open(io.BytesIO(content)) as opened:
        assert open_image(opened).tobytes() == image.tobytes()


@pytest.mark.parametrize("where", ["JPEG", "WEBP", "PNG", "PNG packed", "PNG raw profile", "PNG after its pixels"])
def test_other_places_of_the_orientation(where: str) -> None:
    form, text = where.split()[0], PngImagePlugin.PngInfo()
    exif = Image.Exif()
    exif[0x0112] = 8
    if where == "PNG raw profile":
        digits = exif.tobytes().hex()
        digits = f"\nexif\n{len(digits) // 2:8}\n{digits[:72]}\n{digits[72:]}\n"
        text.add_text("Raw profile type exif", digits, zip=True)
    elif where != "PNG after its pixels":
        text.add_itxt("XML:com.adobe.xmp", (XMP % 8).decode(), zip=where.endswith("packed"))
    content = encoded(form, **({"pnginfo": text} if form == "PNG" else {"xmp": XMP % 8}))
    if where == "PNG after its pixels":
        content = content[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + content[-12:]
    with Image.open(io.BytesIO(content)) as stored:  # Pillow before 11.2 turns no picture by XMP in JPEG and WebP
        turned = np.asarray(stored.convert("RGB").transpose(Image.Transpose.ROTATE_90))
    found = np.asarray(open_image(content))
    assert found.shape == (9, 6, 3) and (found == turned).all()
    if form != "PNG":
        both = encoded(form, exif=exif_block(3), xmp=XMP % 8)
        assert open_image(both).size == (9, 6), "EXIF goes before XMP"


def test_a_heic_is_turned_once() -> None:
    """Its container says how it stands, and its EXIF block says it a second time."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    large = Image.fromarray(np.kron(PIXELS[:2, :3], np.ones((32, 32, 1), np.uint8)))
    buffer = io.BytesIO()
    large.save(buffer, "HEIF", exif=exif_block(6), quality=95)
    found, expected = open_image(buffer.getvalue()), large.transpose(Image.Transpose.ROTATE_270)
    assert found.size == expected.size
    assert abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 5


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_rest_never_matters(form: str, order: str) -> None:
    """Every byte of the block but the orientation's own is damaged in turn, and the block is cut off everywhere."""
    upright, turned = (open_image(encoded(form, exif=exif_block(o))).tobytes() for o in (1, 6))
    block = exif_block(6, order)
    plain = encoded(form, exif=block)
    assert open_image(plain).tobytes() == turned
    for at in range(6, len(block)):
        changed = bytearray(block)
        changed[at] ^= 0xFF
        found = open_image(plain.replace(block[6:], bytes(changed[6:]))).tobytes()
        assert found == turned or (at < 28 and found == upright), at
    for length in range(6, len(block)):
        cut = block[6:length].ljust(len(block) - 6, b"\xff")
        found = open_image(plain.replace(block[6:], cut)).tobytes()
        assert found == (turned if length >= 26 else upright), length


def tiff_with(entry: bytes, compression: str | None) -> bytes:
    """A TIFF whose directory, written anew at its end, has one more entry."""
    content = bytearray(encoded("TIFF", compression=compression))
    (at,) = struct.unpack_from("<L", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    entries = sorted([bytes(content[at + 2 + 12 * n : at + 14 + 12 * n]) for n in range(count)] + [entry], key=_tag)
    struct.pack_into("<L", content, 4, len(content))
    return bytes(content) + struct.pack("<H", count + 1) + b"".join(entries) + b"\0" * 4


def _tag(entry: bytes) -> int:
    return int.from_bytes(entry[:2], "little")


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_damaged_tag_of_a_tiff_never_matters(compression: str | None) -> None:
    for tag in (270, 281, 282, 305, 330, 341, 700, 33723, 34377, 34665, 34675, 34853, 42113):
        for kind in (2, 4, 7, 10, 13):
            for count, value in ((1, b"\xff" * 4), (2**31, b"\0" * 4), (4, b"\x08\0\0\0")):
                content = tiff_with(struct.pack("<HHL", tag, kind, count) + value, compression)
                assert open_image(content).tobytes() == PICTURE.tobytes(), (tag, kind, count)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


LONG = zlib.compress(b"a" * 3_000_000)
PNG_CHUNKS = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + LONG), "iTXt": chunk(b"iTXt", b"Comment\0\1\0en\0\0" + LONG),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LONG), "many": chunk(b"tEXt", b"Comment\0" + b"a" * 1000) * 70_000,
    "eXIf": chunk(b"eXIf", b"no EXIF"), "a bad checksum": b"\0\0\0\2tEXtab" + b"\0" * 4, "pHYs": chunk(b"pHYs", b""),
    "not packed": chunk(b"zTXt", b"Raw profile type exif\0\0nothing"), "no text": chunk(b"iTXt", b""),
}  # fmt: skip


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("case", PNG_CHUNKS)
def test_a_png_is_read_whatever_its_other_chunks_hold(case: str, after: bool) -> None:
    content = encoded("PNG")
    at = content.index(b"IEND") - 4 if after else 33
    assert open_image(content[:at] + PNG_CHUNKS[case] + content[at:]).tobytes() == PICTURE.tobytes()
    if after:
        assert open_image(content[:at] + PNG_CHUNKS[case][:-5]).tobytes() == PICTURE.tobytes(), "its pixels are whole"


def test_a_long_text_is_never_unpacked_as_a_whole() -> None:
    bomb = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"0" * 60_000_000))
    content = encoded("PNG")
    content = content[:33] + bomb + content[33:]
    tracemalloc.start()
    open_image(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "TIFF"])
def test_long_metadata_are_no_reason_to_refuse(form: str) -> None:
    long = RNG.bytes(3_000_000)
    options: dict[str, Any] = {"icc_profile": long} | ({"comment": b"a" * 60_000} if form == "JPEG" else {})
    options |= {"xmp": long} if form == "WEBP" else {"tiffinfo": {700: long, 37724: long}} if form == "TIFF" else {}
    assert open_image(encoded(form, **options)).tobytes() == open_image(encoded(form)).tobytes()


SEGMENTS = [b"\xff\xe0\0\6JFIF", b"\xff\xee\0\7Adobe", b"\xff\xe2\0\x0eICC_PROFILE\0", b"\xff\xe2\0\6MPF\0",
            b"\xff\xed\0\x14Photoshop 3.0\x008BIM", b"\xff\xe1\0\x08Exif\0\0", b"\xff\xff\xfe\0\2"]  # fmt: skip


@pytest.mark.parametrize("segment", SEGMENTS)
def test_a_damaged_segment_of_a_jpeg_never_matters(segment: bytes) -> None:
    content = encoded("JPEG")
    assert open_image(content[:20] + segment + content[20:]).tobytes() == open_image(content).tobytes()


def test_a_file_without_metadata_stays_as_it_is() -> None:
    for form in ("JPEG", "PNG", "WEBP"):
        content = encoded(form)
        assert without_metadata(content).content == content
