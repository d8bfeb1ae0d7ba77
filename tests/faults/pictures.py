"""Hostile pictures against the decoder: each is one bad picture or a right one, in little memory and time.

    python tests/faults/pictures.py [--count 200] [--seed 0]

Bombs (small files that stand for gigabytes of pixels, text, frames, tags or scans), damaged files of every format,
files of two formats, drawings that Pillow gives to another program, what is no regular file, and archives. Each is
read in a process of its own. A picture must take less than 1 GB and 5 s of processor time, and start no program.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import os
import random
import resource
import select
import socket
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from damaged_pictures import READS_AVIF, damaged, good_files
from PIL import Image

from natix_hf.data.images import open_image
from natix_hf.errors import DataError
from natix_hf.intake.entries import entries

MOST_BYTES, MOST_SECONDS = 10**9, 5
Maker = Callable[[Path], Any]  # folder -> what is opened
PNG = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


@functools.cache
def _zeros(size: int) -> bytes:
    """A zlib stream of some more than `size` zero bytes: one block of deflate, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packer.compress(bytes(2**20))
    packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\x9c" + block * (size // 2**20 + 1) + b"\x03\0" + bytes(4)


def png(
    width: int, height: int, colour: int = 2, bits: int = 8, extra: bytes = b"", pixels: bytes | None = None
) -> bytes:
    """A black PNG of any size. `pixels` stands in for its compressed rows."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = _zeros(height * (1 + -(-width * channels * bits // 8))) if pixels is None else pixels
    head = struct.pack(">LLBBBBB", width, height, bits, colour, 0, 0, 0)
    return PNG + _chunk(b"IHDR", head) + extra + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _lie(kind: str, at: int, layout: str, *numbers: int) -> bytes:
    """A good file whose header says another size."""
    content = bytearray(good_files()[kind])
    struct.pack_into(layout, content, at, *numbers)
    return bytes(content)


def _jpeg_lie(kind: str, side: int) -> bytes:
    content = good_files()[kind]
    at = min(at for at in (content.find(b"\xff\xc0\x00"), content.find(b"\xff\xc2\x00")) if at > 0)
    return content[: at + 5] + struct.pack(">HH", side, side) + content[at + 9 :]


def _scans(repeats: int, side: int) -> bytes:
    """A progressive JPEG that goes over its pixels again and again."""
    content = _jpeg_lie("JPEG progressive", side)
    start = content.find(b"\xff\xda")
    end = content.find(b"\xff\xda", start + 2)
    return content[:end] + content[start:end] * repeats + b"\xff\xd9"


def _gif_frames(count: int) -> bytes:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + frame * count + b";"


def _tiff(entries_: list[tuple[int, int, int, int]]) -> bytes:
    directory = struct.pack("<H", len(entries_) % 65536) + b"".join(struct.pack("<HHLL", *e) for e in entries_[:65535])
    return b"II*\0" + struct.pack("<L", 8) + directory + b"\0\0\0\0" + bytes(64)


def _icon(content: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHLL", 16, 16, 0, 0, 1, 32, len(content), 22) + content


def _dib(side: int) -> bytes:
    return struct.pack("<LllHHLLllLL", 40, side, 2 * side, 1, 32, 0, 0, 0, 0, 0, 0)


def _icns(content: bytes) -> bytes:
    return b"icns" + struct.pack(">L", len(content) + 16) + b"ic07" + struct.pack(">L", len(content) + 8) + content


def _jp2_lie(side: int) -> bytes:
    content = bytearray(good_files()["JPEG2000 stream"])
    at = content.find(b"\xff\x51") + 6
    struct.pack_into(">LL", content, at, side, side)
    struct.pack_into(">LL", content, at + 16, side, side)
    return bytes(content)


def _avif_lie(side: int) -> bytes:
    content = good_files()["AVIF"]
    at = content.find(b"ispe") + 8
    return content[:at] + struct.pack(">LL", side, side) + content[at + 8 :]


def _webp_lie(side: int) -> bytes:
    content = good_files()["WEBP animated"]
    return content[:24] + struct.pack("<L", side - 1)[:3] + struct.pack("<L", side - 1)[:3] + content[30:]


def _text(kind: bytes, size: int) -> bytes:
    return _chunk(kind, b"Comment\0\0" + _zeros(size))


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 13000 x 13000": lambda: png(13000, 13000),
    "PNG with alpha": lambda: png(20000, 20000, 6, pixels=_zeros(10**6)),
    "PNG of 16 bits": lambda: png(30000, 30000, 0, 16, pixels=_zeros(10**6)),
    "PNG of 1 bit": lambda: png(100000, 100000, 0, 1, pixels=_zeros(10**6)),
    "PNG of the largest numbers": lambda: png(2**31 - 1, 2**31 - 1, pixels=b""),
    "PNG of no height": lambda: png(10, 0, pixels=b""),
    "PNG with a text of 1 GB": lambda: png(9, 9, extra=_text(b"zTXt", 10**9)),
    "PNG with a profile of 1 GB": lambda: png(9, 9, extra=_text(b"iCCP", 10**9)),
    "PNG with 100,000 texts": lambda: png(9, 9, extra=_chunk(b"tEXt", b"a\0b") * 100_000),
    "PNG with more rows than it says": lambda: png(9, 9, pixels=_zeros(5 * 10**8)),
    "PNG of 100,000 frames": lambda: png(9, 9, extra=_chunk(b"acTL", struct.pack(">LL", 2**31 - 1, 0))
                                         + _chunk(b"fcTL", bytes(26)) * 100_000),
    "GIF of 40000 x 40000": lambda: _lie("GIF", 6, "<HH", 40000, 40000),
    "GIF of 100,000 frames": lambda: _gif_frames(100_000),
    "BMP": lambda: _lie("BMP", 18, "<ll", 60000, 60000),
    "BMP upside down": lambda: _lie("BMP", 18, "<ll", 60000, -60000),
    "TIFF": lambda: _tiff([(256, 4, 1, 60000), (257, 4, 1, 60000), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1),
                           (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 60000), (279, 4, 1, 60)]),
    "TIFF of one huge tile": lambda: _tiff([(256, 4, 1, 9), (257, 4, 1, 9), (258, 3, 1, 8), (259, 3, 1, 8),
                                            (262, 3, 1, 1), (277, 3, 1, 1), (322, 4, 1, 12000), (323, 4, 1, 12000),
                                            (324, 4, 1, 8), (325, 4, 1, 60)]),
    "TIFF of 65,535 tags": lambda: _tiff([(256, 4, 1, 9)] * 65535),
    "TIFF of 4 billion strips": lambda: _tiff([(256, 4, 1, 9), (257, 4, 1, 9), (273, 4, 2**32 - 1, 8),
                                               (279, 4, 2**32 - 1, 8)]),
    "JPEG of 65500 x 65500": lambda: _jpeg_lie("JPEG baseline", 65500),
    "JPEG of 20000 x 20000": lambda: _jpeg_lie("JPEG baseline", 20000),
    "JPEG, progressive": lambda: _jpeg_lie("JPEG progressive", 40000),
    "JPEG of 3,000 scans": lambda: _scans(3000, 6000),
    "JPEG of 60,000 segments": lambda: good_files()["JPEG baseline"][:2] + b"\xff\xe1\x00\x08Exif\0\0" * 60_000
                                       + good_files()["JPEG baseline"][2:],
    "WEBP": lambda: _webp_lie(16383),
    "WEBP of the largest numbers": lambda: _webp_lie(2**24),
    **({"AVIF": lambda: _avif_lie(60000)} if READS_AVIF else {}),
    "JPEG2000": lambda: _jp2_lie(60000),
    "ICO with a PNG": lambda: _icon(png(13000, 13000)),
    "ICO with a bitmap": lambda: _icon(_dib(30000) + bytes(100)),
    "ICNS with a PNG": lambda: _icns(png(20000, 20000, 6, pixels=b"")),
    "ICNS with a JPEG2000": lambda: _icns(_jp2_lie(40000)),
    "PPM": lambda: b"P6 100000 100000 255\n" + bytes(1000),
    "PPM as text": lambda: b"P3 9000 9000 255\n" + b"1 " * 10**6,
    "PFM": lambda: b"Pf\n60000 60000\n-1.0\n" + bytes(1000),
    "TGA": lambda: _lie("TGA", 12, "<HH", 60000, 60000),
    "QOI": lambda: good_files()["QOI"][:4] + struct.pack(">LL", 60000, 60000) + b"\3\0" + b"\xfd" * 10**5,
    "DDS": lambda: _lie("DDS", 12, "<LL", 60000, 60000),
    "PCX": lambda: _lie("PCX", 8, "<HH", 60000, 60000),
    "SGI": lambda: _lie("SGI", 6, ">HH", 60000, 60000),
    "PSD": lambda: _lie("PSD", 14, ">LL", 300000, 300000),
    "XBM": lambda: b"#define a_width 99999\n#define a_height 99999\nstatic char a_bits[] = {\n0x00",
    "XPM": lambda: b'/* XPM */\nstatic char *a[] = {\n"99999 99999 1 1",\n"a c #000000",\n',
    "FLI": lambda: struct.pack("<LHHHHHH", 200, 0xAF12, 9, 60000, 60000, 8, 3) + bytes(200),
}  # fmt: skip
DRAWINGS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(a) run\nshowpage\n%%EOF\n",
    "EPS behind a header": b"\xc5\xd0\xd3\xc6" + struct.pack("<LL", 30, 40) + bytes(20) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "PDF": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\n",
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhH", 0, 0, 9, 9, 72) + bytes(60),
    "FPX": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "SVG": b'<?xml version="1.0"?><svg xmlns:xlink="x"><image xlink:href="file:///etc/passwd"/></svg>',
    "IPTC": b"\x1c\x03\x0a\0\x01\0" + bytes(60),
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80) + bytes(3000),
}


def _file(content: Callable[[], bytes], name: str = "picture.jpg") -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return make


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo.png")
    return folder / "fifo.png"


def _socket(folder: Path) -> Path:
    socket.socket(socket.AF_UNIX).bind(str(folder / "socket.png"))
    return folder / "socket.png"


def _linked(target: str) -> Maker:
    def make(folder: Path) -> Path:
        (folder / "link.png").symlink_to(target)
        return folder / "link.png"

    return make


def _sparse(folder: Path) -> Path:
    with (folder / "sparse.png").open("wb") as file:
        file.write(png(9, 9)[:40])
        file.truncate(10 * 2**30)
    return folder / "sparse.png"


def _lazy(folder: Path) -> Any:
    """What Pillow has opened and not decoded: it would start Ghostscript, or make room for the pixels."""
    return Image.open(io.BytesIO(DRAWINGS["EPS"]))


def _lazy_bomb(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(png(13000, 13000)))


NO_FILES: dict[str, Maker] = {
    "a named pipe": _fifo,
    "a socket": _socket,
    "a folder": lambda folder: folder,
    "a sparse file of 10 GB": _sparse,
    "/dev/zero": lambda _: "/dev/zero",
    "a link to /dev/zero": _linked("/dev/zero"),
    "/dev/tty": lambda _: "/dev/tty",
    "/dev/stdin": lambda _: "/dev/stdin",
    "/proc/kmsg": lambda _: "/proc/kmsg",
    "a number": lambda _: 3,
    "/proc/self/mem": lambda _: "/proc/self/mem",
    "nothing": lambda _: None,
    "a link to itself": _linked("link.png"),
    "a pipe in a cell": lambda folder: {"bytes": None, "path": str(_fifo(folder))},
    "a name of 5,000 letters": lambda _: "a" * 5000,
    "a name with a zero": lambda _: "a\0b.png",
    "an opened EPS": _lazy,
    "an opened bomb": _lazy_bomb,
}


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(3):
            archive.writestr(f"{n}.png", bytes(9 * 10**7))
    return folder / "a.zip"


def _zip_lie(folder: Path) -> Path:
    content = bytearray(_zip(folder).read_bytes())
    at = -1
    while (at := content.find(b"PK\1\2", at + 1)) >= 0:
        struct.pack_into("<L", content, at + 24, 100)  # the size in the directory
    (folder / "a.zip").write_bytes(content)
    return folder / "a.zip"


def _tar_gz(folder: Path) -> Path:
    header = bytearray(512)
    header[:5], header[100:107], header[124:135], header[156:157] = b"a.png", b"0000644", b"77777777777", b"0"
    header[148:156] = b"%06o\0 " % (sum(header) + 8 * 32)
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    pieces = [packer.compress(piece) for piece in (bytes(header), *[bytes(2**20)] * 300)]
    (folder / "a.tar.gz").write_bytes(b"".join([*pieces, packer.flush()]))
    return folder / "a.tar.gz"


ARCHIVES: dict[str, Maker] = {"zip bomb": _zip, "zip bomb with false sizes": _zip_lie, "tar.gz bomb": _tar_gz,
                              "an archive that is a pipe": _fifo}  # fmt: skip


def cases(seed: int) -> Iterator[tuple[str, str, Maker]]:
    """Hostile pictures without an end: kind, name and what makes it."""
    dice = random.Random(seed)
    every = {
        "bombs": {name: _file(make) for name, make in BOMBS.items()},
        "drawings": {name: _file(lambda content=content: content) for name, content in DRAWINGS.items()},  # type: ignore[misc]
        "no files": NO_FILES,
        "archives": ARCHIVES,
    }
    for kind, makers in every.items():
        for name, make in makers.items():
            yield kind, name, make
    for number in itertools.count():
        yield "damaged", f"{seed}/{number}", _file(lambda number=number: damaged(number, seed)[1])  # type: ignore[misc]
        one, other = dice.sample(sorted(good_files()), 2)
        both = good_files()[one] + good_files()[other]
        yield "two formats", f"{one} + {other}", _file(lambda both=both: both, "picture.png")  # type: ignore[misc]
        name = dice.choice(sorted(good_files()))
        cut = dice.randrange(len(good_files()[name]))
        yield "cut off", f"{name} at {cut}", _file(lambda name=name, cut=cut: good_files()[name][:cut])  # type: ignore[misc]


def outcome(kind: str, value: Any) -> str:
    """What becomes of one picture: `right`, `bad` or what is wrong."""
    try:
        if kind == "archives":
            read = [entry.read() for entry in entries(value) if entry.reason is None]
            return "right" if not any(isinstance(content, DataError) for content in read) else "bad"
        image = open_image(value, "the picture")
    except DataError as error:
        told = str(error)
        fine = told.isprintable() and len(told) < 400 and "bomb" not in told
        return "bad" if fine else f"a message of {len(told)} characters: {told[:200]}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "right" if image.mode == "RGB" and min(image.size) > 0 else f"{image.mode}, {image.size}"


def in_child(kind: str, make: Maker, folder: Path) -> tuple[str, int, float]:
    """The outcome in a forked process, its peak memory in bytes and its processor time in seconds."""
    value = make(folder)
    near, far = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(near)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff talks
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        os.write(far, outcome(kind, value).encode()[:4000])
        os._exit(0)
    os.close(far)
    told = os.read(near, 4096).decode() if select.select([near], [], [], 120)[0] else "it hangs"
    os.close(near)
    if told == "it hangs":
        os.kill(child, 9)
    _, status, used = os.wait4(child, 0)
    return told or f"it ended with {status}", used.ru_maxrss * 1024, used.ru_utime + used.ru_stime


def attack(count: int, seed: int) -> int:
    """Try so many pictures, print what became of each kind, and return the number of faults."""
    counts: dict[str, Counter[str]] = {}
    most = {"bytes": 0.0, "seconds": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        gs = Path(folder) / "bin" / "gs"
        gs.parent.mkdir()
        gs.write_text(f"#!/bin/sh\ntouch {folder}/started\n")
        gs.chmod(0o755)
        os.environ["PATH"] = f"{gs.parent}:{os.environ['PATH']}"
        good_files()
        for number, (kind, name, make) in enumerate(itertools.islice(cases(seed), count)):
            own = Path(folder) / str(number)
            own.mkdir()
            told, peak, seconds = in_child(kind, make, own)
            of_kind = counts.setdefault(kind, Counter())
            most = {"bytes": max(most["bytes"], peak), "seconds": max(most["seconds"], seconds)}
            faults = [told] if told not in ("right", "bad") else []
            faults += ["not refused"] if told == "right" and kind in ("drawings", "no files") else []
            faults += [f"{peak / 1e6:,.0f} MB"] if peak > MOST_BYTES else []
            faults += [f"{seconds:.1f} s"] if seconds > MOST_SECONDS else []
            of_kind["fault" if faults else told] += 1
            for fault in faults:
                print(f"FAULT: {kind}: {name}: {fault}", flush=True)
            subprocess.run(["rm", "-rf", own], check=True)
        started = (Path(folder) / "started").exists()
    for kind, found in counts.items():
        print(f"{kind}: {found.total()} tried, {found['bad']} bad, {found['right']} right, {found['fault']} faults")
    print(f"at most {most['bytes'] / 1e6:,.0f} MB and {most['seconds']:.1f} s; Ghostscript started: {started}")
    return sum(found["fault"] for found in counts.values()) + started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    raise SystemExit(1 if attack(options.count, options.seed) else 0)


if __name__ == "__main__":
    main()
