"""Small good picture files of 20 formats, and damage for them: file n is a function of a seed and n."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, features

_EXTREME = (0, 1, 0x7F, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_PNG = b"\x89PNG\r\n\x1a\n"

READS_AVIF = "avif" in features.get_supported()  # from Pillow 11.3 on


@cache
def good_files() -> dict[str, bytes]:
    """Small files as `FORMAT kind` -> content. Many carry EXIF, XMP, a colour profile and a comment."""
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(36), np.arange(48))[..., None] * np.array([2, 1, 3])
    pixels = (smooth + rng.integers(0, 40, (36, 48, 3))).clip(0, 255).astype(np.uint8)
    rgb, other = Image.fromarray(pixels), Image.fromarray(pixels[::-1].copy())
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A], exif[0x0128] = 6, "A maker", 72.0, 2
    exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    about: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": rng.bytes(400)}
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "long " * 500, zip=True)
    text.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
    several: dict[str, Any] = {"save_all": True, "append_images": [other, rgb], "duration": 40}
    grey16 = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    floats = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    qoi = b"qoif" + struct.pack(">LLBB", 48, 36, 3, 0)
    qoi += b"".join(b"\xfe" + bytes(pixel) for pixel in pixels.reshape(-1, 3)) + b"\0" * 7 + b"\1"

    def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return buffer.getvalue()

    tiff: dict[str, Any] = {"dpi": (72, 72), "software": "a program", "description": "a picture"}
    return {
        "JPEG baseline": encoded(rgb, "JPEG", xmp=xmp, comment=b"a comment", **about),
        "JPEG progressive": encoded(rgb, "JPEG", progressive=True, **about),
        "JPEG CMYK": encoded(rgb.convert("CMYK"), "JPEG"),
        "JPEG grey": encoded(rgb.convert("L"), "JPEG", optimize=True),
        "MPO": encoded(rgb, "MPO", save_all=True, append_images=[other]),
        "PNG": encoded(rgb, "PNG", pnginfo=text, **about),
        "PNG 16-bit": encoded(grey16, "PNG"),
        "PNG palette": encoded(rgb.quantize(16), "PNG", transparency=3),
        "PNG alpha": encoded(rgb.convert("RGBA"), "PNG", **about),
        "APNG": encoded(rgb, "PNG", **several),
        "WEBP lossy": encoded(rgb, "WEBP", quality=60, xmp=xmp, **about),
        "WEBP lossless": encoded(rgb, "WEBP", lossless=True, exif=exif.tobytes()),
        "WEBP animated": encoded(rgb, "WEBP", **several),
        "GIF": encoded(rgb.quantize(32), "GIF", comment=b"a comment"),
        "GIF animated": encoded(rgb, "GIF", **several),
        "BMP": encoded(rgb, "BMP"),
        "BMP palette": encoded(rgb.quantize(16), "BMP"),
        "TIFF": encoded(rgb, "TIFF", **tiff),
        "TIFF LZW": encoded(rgb, "TIFF", compression="tiff_lzw", **tiff),
        "TIFF deflate": encoded(grey16, "TIFF", compression="tiff_adobe_deflate", exif=exif),
        "TIFF JPEG": encoded(rgb, "TIFF", compression="jpeg", **tiff),
        "TIFF float": encoded(floats, "TIFF"),
        **({"AVIF": encoded(rgb, "AVIF", speed=10, exif=exif.tobytes())} if READS_AVIF else {}),
        "JPEG2000": encoded(rgb, "JPEG2000"),
        "JPEG2000 stream": encoded(rgb, "JPEG2000", no_jp2=True, irreversible=True),
        "ICO": encoded(rgb, "ICO", sizes=[(16, 16), (32, 32)]),
        "ICO BMP": encoded(rgb, "ICO", sizes=[(16, 16)], bitmap_format="bmp"),
        "PPM": encoded(rgb, "PPM"),
        "PPM text": b"P3 # comment\n4 4 255\n" + b" ".join(b"%d" % value for value in pixels[:4, :4].ravel()),
        "PGM 16-bit": encoded(Image.fromarray(pixels[..., 0].astype(np.int32) * 257), "PPM"),
        "PFM": encoded(floats, "PPM"),
        "TGA": encoded(rgb, "TGA", compression="tga_rle"),
        "QOI": qoi,
        "DDS": encoded(rgb, "DDS"),
        "PCX": encoded(rgb, "PCX"),
        "SGI": encoded(rgb, "SGI"),
        "PSD": _psd(pixels),
    }


def _psd(pixels: np.ndarray) -> bytes:
    height, width = pixels.shape[:2]
    head = b"8BPS" + struct.pack(">H6xHLLHH", 1, 3, height, width, 8, 3) + b"\0" * 12
    return head + b"\0\0" + pixels.transpose(2, 0, 1).tobytes()


def damaged(number: int, seed: int = 0) -> tuple[str, bytes]:
    """Make damaged file `number`: its kind and its content. Every kind comes in turn."""
    rng = np.random.default_rng([seed, number])
    kinds = list(good_files())
    kind = kinds[number % len(kinds)]
    content = good_files()[kind]
    for _ in range(rng.integers(1, 4)):
        content = _DAMAGES[rng.integers(len(_DAMAGES))](content, rng)
    if content.startswith(_PNG) and rng.random() < 0.5:
        content = _with_good_checksums(content)
    return kind, content


def _cut_off(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content) + 1)]


def _flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for at in rng.integers(len(content), size=rng.integers(1, 9)) if content else ():
        changed[at] ^= 1 << rng.integers(8)
    return bytes(changed)


def _overwrite(content: bytes, rng: np.random.Generator) -> bytes:
    length, at = int(rng.integers(1, 33)), int(rng.integers(len(content) + 1))
    run = (b"\0" * length, b"\xff" * length, rng.bytes(length))[rng.integers(3)]
    return content[:at] + run + content[at + length :]


def _extreme_integer(content: bytes, rng: np.random.Generator) -> bytes:
    code = "BHHLLLQ"[rng.integers(7)]
    value = _EXTREME[rng.integers(len(_EXTREME))] % 2 ** (8 * struct.calcsize(code))
    at = int(rng.integers(min(len(content), 200) + 1))
    integer = struct.pack("<>"[rng.integers(2)] + code, value)
    return content[:at] + integer + content[at + len(integer) :]


def _move_pieces(content: bytes, rng: np.random.Generator) -> bytes:
    parts = _pieces(content, rng)
    at, other = rng.integers(len(parts), size=2)
    action = rng.integers(3)
    if action == 0:
        del parts[at]
    elif action == 1:
        parts.insert(other, parts[at])
    else:
        parts[at], parts[other] = parts[other], parts[at]
    return b"".join(parts)


def _append(content: bytes, rng: np.random.Generator) -> bytes:
    files = list(good_files().values())
    return content + files[rng.integers(len(files))]


_DAMAGES = (_cut_off, _flip_bits, _overwrite, _extreme_integer, _move_pieces, _append)


def _pieces(content: bytes, rng: np.random.Generator) -> list[bytes]:
    """A file in its chunks (PNG) or segments (JPEG), or in blocks of any length."""
    if content.startswith(_PNG):
        cuts = [start for start, _ in _png_chunks(content)]
    elif content.startswith(b"\xff\xd8"):
        cuts = [found.start() for found in re.finditer(rb"\xff[\xc0-\xfe]", content)][1:]
    else:
        cuts = sorted(rng.integers(len(content) + 1, size=6).tolist())
    return [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]


def _png_chunks(content: bytes) -> Iterator[tuple[int, int]]:
    at = 8
    while at + 12 <= len(content):
        stop = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if stop > len(content):
            return
        yield at, stop
        at = stop


def _with_good_checksums(content: bytes) -> bytes:
    mended = bytearray(content)
    for start, stop in _png_chunks(content):
        struct.pack_into(">L", mended, stop - 4, zlib.crc32(content[start + 4 : stop - 4]))
    return bytes(mended)
