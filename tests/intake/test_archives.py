"""Archives give back what was put in; damage and hostile entries end in a reason or a DataError."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import random
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import SHARED
from facts import tells
from PIL import Image
from refusals import refused

from natix_hf.data.images import open_image
from natix_hf.errors import DataError
from natix_hf.intake import archives
from natix_hf.intake.archives import (
    Member,
    is_archive,
    list_members,
    read_each,
    read_members,
    store_members,
)

KINDS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")
MODES = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}
WORDS = ("straße", "路工", "with space", "[a]*?", "Ünï", "e\u0301", "test-3", "a.b.c", "-x", "o'n \"q\"", "😀",
         "x" * 90, "line\nbreak", "tab\t", "%2e", "~", "CON")  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "natix_hf"


def contents(rng: random.Random, count: int) -> dict[str, bytes]:
    """Files of strange names, deep paths and sizes from nothing to more than one read."""
    files = {}
    while len(files) < count:
        depth = rng.choice([0, 1, 2, 2, 8])
        name = "/".join(rng.choice(WORDS) for _ in range(depth)) + f"/{rng.choice(WORDS)} {len(files)}.JPG"
        files[name.lstrip("/")] = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 5000])) + bytes(rng.choice([0, 3000]))
    files[f"large {count}.bin"] = rng.randbytes(1_100_000)
    return files


class _NoSeek(io.RawIOBase):
    """A file that cannot seek: `zipfile` then writes sizes and checksums behind the data, in descriptors."""

    def __init__(self, file: io.IOBase) -> None:
        self.file = file

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        return self.file.write(data)


def build(path: Path, files: dict[str, bytes], rng: random.Random) -> Path:
    """An archive of the kind that its name says, of a random flavour."""
    if path.suffix == ".zip":
        streamed = rng.random() < 0.5
        with path.open("wb") as file, zipfile.ZipFile(_NoSeek(file) if streamed else file, "w") as archive:
            archive.writestr("folder/", b"")
            for name, data in files.items():
                info = zipfile.ZipInfo(name.replace("/", "\\") if rng.random() < 0.2 else name)
                info.compress_type = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
                with archive.open(info, "w", force_zip64=rng.random() < 0.3) as handle:
                    handle.write(data)
        return path
    kind = path.name.partition(".")[2]
    style = rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    shared = {"comment": "global"} if style == tarfile.PAX_FORMAT else None
    with tarfile.open(path, MODES[kind], format=style, pax_headers=shared) as tar:
        for name, data in files.items():
            if rng.random() < 0.2:
                folder = tarfile.TarInfo(f"folder {rng.random()}")
                folder.type = tarfile.DIRTYPE
                tar.addfile(folder)
            info = tarfile.TarInfo(rng.choice(["", "./", ".\\"]) + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def cells(dataset: datasets.Dataset) -> dict[str, bytes]:
    return {cell["path"]: cell["bytes"] for cell in dataset["image"]}


def test_an_archive_is_known_by_its_ending() -> None:
    names = "a.zip a.tar a.tar.gz a.tgz a.tar.bz2 a.tbz2 a.tar.xz a.txz A.ZIP b.Tar.Gz".split()
    assert all(map(is_archive, names))
    assert not any(map(is_archive, ["zip", "a.gz", "a.jpg", "a.zip.jpg", "tar.d", "a.rar", ""]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_what_was_put_in_comes_out(tmp_path: Path, cache: Path, kind: str, seed: int) -> None:
    rng = random.Random(f"{kind} {seed}")
    files = contents(rng, 25)
    path = build(tmp_path / f"in [1].{kind}", files, rng)
    members, unused = list_members(path)
    assert members == [Member(name, len(data)) for name, data in files.items()]
    assert unused == []
    assert list(read_members(path)) == list(files.items())
    some = set(rng.sample(list(files), 9))
    assert list(read_members(path, some)) == [item for item in files.items() if item[0] in some]

    names = rng.sample(list(files), 11)
    stored = store_members(path, names)
    assert stored.features == datasets.Features({"image": datasets.Image(decode=False)})
    assert list(stored["image"]) == [{"bytes": files[name], "path": name} for name in names]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "cache", path]
    assert sorted(file.suffix for file in cache.iterdir()) == [".arrow", ".json"]


def test_a_second_call_reads_no_member(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    files = contents(rng, 30)
    path = build(tmp_path / "a.tar.gz", files, rng)
    listed = list_members(path)
    first = store_members(path, list(files))
    before = os.stat(path)

    def never(*_: object) -> None:
        raise AssertionError("the members were read again")

    with monkeypatch.context() as patch:
        patch.setattr(archives, "entries", never)
        moved = path.rename(tmp_path / "moved.tar.gz")
        again = store_members(moved, list(files))
        assert list_members(moved) == listed
        assert cells(again) == cells(first) == files
        assert again._fingerprint == first._fingerprint
        assert store_members(moved, list(files)[::-1])["image"][:] == first["image"][::-1]
        with pytest.raises(AssertionError):
            store_members(moved, list(files)[1:])
        os.utime(moved, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        for call in (lambda: store_members(moved, list(files)), lambda: list_members(moved)):
            with pytest.raises(AssertionError):
                call()
    left = sorted(file.suffix for file in cache.iterdir())
    assert left == [".arrow", ".json"], "an interrupted write left something"
    assert len(store_members(moved, [])) == 0


def hostile_zip(path: Path) -> Path:
    def link(name: str, mode: int) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, mode << 16
        return info

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.jpg", b"good")
        for name in ("/etc/passwd", "C:\\evil.jpg", "a/../../evil.jpg", "..\\evil.jpg"):
            archive.writestr(name, b"evil")
        archive.writestr(link("link.jpg", stat.S_IFLNK | 0o777), b"/etc/passwd")
        archive.writestr(link("device.jpg", stat.S_IFCHR | 0o600), b"")
        archive.writestr("./good.jpg", b"second")
        archive.writestr("packed.jpg", b"x" * 999, zipfile.ZIP_LZMA)
        archive.writestr("secret.jpg", b"secret")
        archive.writestr(link("last.jpg", stat.S_IFREG | 0o600), b"last")
    return encrypt(path, "secret.jpg")


def encrypt(path: Path, name: str) -> Path:
    """Set the flag that says that an entry is encrypted, in its two headers."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    data = bytearray(path.read_bytes())
    data[info.header_offset + 6] |= 1
    data[data.rindex(name.encode()) - 46 + 8] |= 1
    path.write_bytes(data)
    return path


def hostile_tar(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(data)
            tar.addfile(info, io.BytesIO(data))

        add("good.jpg", b"good")
        for name in ("/etc/passwd", "C:\\evil.jpg", "a/../../evil.jpg", "..\\evil.jpg"):
            add(name, b"evil")
        add("link.jpg", kind=tarfile.SYMTYPE, target="/etc/passwd")
        add("hard.jpg", kind=tarfile.LNKTYPE, target="good.jpg")
        add("device.jpg", kind=tarfile.CHRTYPE)
        add("fifo.jpg", kind=tarfile.FIFOTYPE)
        add("./good.jpg", b"second")
        add("last.jpg", b"last")
    return path


@pytest.mark.parametrize("build_hostile", [hostile_zip, hostile_tar])
def test_what_is_not_used_is_named(tmp_path: Path, cache: Path, build_hostile: Callable[[Path], Path]) -> None:
    path = build_hostile(tmp_path / f"a.{build_hostile.__name__[8:]}")
    members, unused = list_members(path)
    assert members == [Member("good.jpg", 4), Member("last.jpg", 4)]
    assert len(unused) == 9
    facts = {"/etc/passwd": "absolute", "C:/evil.jpg": "absolute", "a/../../evil.jpg": "..", "../evil.jpg": "..",
             "link.jpg": "link", "device.jpg": "no regular file", "good.jpg": "before", "packed.jpg": "unpack",
             "secret.jpg": "password", "hard.jpg": "hard link to 'good.jpg'", "fifo.jpg": "no regular"}  # fmt: skip
    assert all(tells(reason, facts[name]) for name, reason in unused)
    assert list(read_members(path)) == [("good.jpg", b"good"), ("last.jpg", b"last")]
    assert cells(store_members(path, ["last.jpg", "good.jpg"])) == {"last.jpg": b"last", "good.jpg": b"good"}
    for name in ("link.jpg", "/etc/passwd", "none.jpg"):
        refused(DataError, lambda name=name: store_members(path, [name]), path, name)
    assert sorted(file.suffix for file in cache.iterdir()) == [".arrow", ".json"]


def test_an_archive_encrypted_as_a_whole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr("folder/a.jpg", b"x")
    refused(DataError, lambda: list_members(encrypt(path, "folder/a.jpg")), path, "encrypted", "unpack")


def test_names_without_utf8(tmp_path: Path) -> None:
    """macOS writes UTF-8 without the flag; old systems write Latin-1 in tars."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("XXXX/a.jpg", b"x")
    (tmp_path / "a.zip").write_bytes(data.getvalue().replace(b"XXXX", "öö".encode()))
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("öö/a.jpg"))
    for name in ("a.zip", "a.tar"):
        assert [member.name for member in list_members(tmp_path / name)[0]] == ["öö/a.jpg"]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_never_silent(tmp_path: Path, cache: Path, kind: str) -> None:
    """Bytes are changed, cut out, put in or cut off. What is read is what was put in, or somebody is told."""
    rng = random.Random(kind)
    files = {name: data for name, data in contents(rng, 12).items() if data and "large" not in name}
    good = build(tmp_path / f"good.{kind}", files, rng).read_bytes()
    path = tmp_path / f"bad.{kind}"
    outcomes = {"refused": 0, "named": 0, "whole": 0}
    for _ in range(250):
        data = bytearray(good)
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                for _ in range(rng.choice([1, 1, 5, 40])):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.choice([1, 100, 512])]
            case 2:
                data[at:at] = rng.randbytes(rng.choice([1, 100, 512]))
            case 3:
                del data[at:]
        path.write_bytes(data)
        try:
            members, unused = list_members(path)
            read = dict(read_each(path))
            names = [member.name for member in members]
            assert list(read) == names
            stored = cells(store_members(path, names))
        except DataError as error:
            assert tells(error, path)
            outcomes["refused"] += 1
            continue
        broken = [name for name in names if isinstance(read[name], DataError)]
        assert all(tells(read[name], path, "damaged") for name in broken)
        assert len(names) + len(unused) >= len(files)
        if kind != "tar":  # a tar has no checksum over its data
            assert {name: read[name] for name in names if name not in broken}.items() <= files.items()
        assert all(stored[name] == read[name] for name in names if name not in broken)
        for name in broken:
            with pytest.raises(DataError) as caught:
                open_image({"bytes": stored[name], "path": name}, name="row 7")
            assert tells(caught.value, "row 7", "damaged", path)
        outcomes["named" if broken or unused else "whole"] += 1
    assert outcomes["refused"] > 40, outcomes
    assert kind != "zip" or outcomes["named"] > 40, outcomes
    leftover = {file.parent for file in tmp_path.rglob("*") if file.is_file()}
    assert leftover <= {tmp_path, cache}
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == [f"bad.{kind}", f"good.{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_member_is_named(tmp_path: Path, kind: str) -> None:
    """A zip loses one member; a compressed tar ends there."""
    rng = random.Random(0)
    files = {f"{i}.jpg": rng.randbytes(200_000) for i in range(9)}
    path = build(tmp_path / f"a.{kind}", files, rng)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if kind == "zip":
        data[middle] ^= 1
        path.write_bytes(data)
        read = dict(read_each(path))
        assert [name for name, found in read.items() if isinstance(found, DataError)] == ["4.jpg"]
        refused(DataError, lambda: dict(read_members(path)), path, "4.jpg", "damaged")
    else:
        path.write_bytes(data[: middle + 100_000])
        names = []
        with pytest.raises(DataError) as caught:
            for name, found in read_members(path, list(files)):
                assert found == files[name]
                names.append(name)
        assert tells(caught.value, path)
        assert names == list(files)[: len(names)]
        if kind != "tar.bz2":  # which gives nothing of a block that is cut
            assert tells(caught.value, f"{len(names)}.jpg")


def test_tars_that_tarfile_ends_in_silence(tmp_path: Path) -> None:
    files = {f"{i}.jpg": bytes([i]) * 700 for i in range(5)}
    good = build(tmp_path / "a.tar", files, random.Random(3)).read_bytes()
    path = tmp_path / "b.tar"
    used = len(good.rstrip(b"\0")) // 512 * 512 + 512
    damaged = bytearray(good)
    damaged[good.index(b"3.jpg")] ^= 1  # tarfile lists three members and stops
    for data, fact in {
        bytes(damaged): "header",
        good[:used]: "no end mark",
        good + good: "joined",
        good[: used - 512]: "end",
    }.items():
        path.write_bytes(data)
        refused(DataError, lambda: list_members(path), path, fact, "again")
    path.write_bytes(good[:used] + bytes(512))
    assert len(list_members(path)[0]) == 5


def _header(name: bytes, size: bytes, kind: bytes) -> bytes:
    """The header of a tar entry with the size as given, 12 bytes."""
    head = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"0" * 11 + b"\0")
    head += b" " * 8 + kind
    head += b"\0" * 100 + b"ustar\x0000" + bytes(512 - len(head) - 108)
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def test_hostile_headers_end_soon(tmp_path: Path) -> None:
    """A negative size goes round in circles in older releases of tarfile; a long header fills the memory."""
    path = tmp_path / "a.tar"
    negative = b"\xff" * 8 + struct.pack(">i", -1536)
    for data in (
        _header(b"a", b"00000000000\0", b"0") * 2 + _header(b"b", negative, b"0"),
        _header(b"a", b"00000000000\0", b"0") + _header(b"b", negative, b"x"),
        _header(b"a", b"00000000000\0", b"0") + _header(b"b", b"77777777777\0", b"L"),
        _header(b"a", b"00000000000\0", b"x") * 3000,
    ):
        path.write_bytes(data + bytes(4096))
        start = time.monotonic()
        refused(DataError, lambda: list_members(path), path)
        assert time.monotonic() - start < 1


def bombs(tmp_path: Path) -> list[Path]:
    """A gigabyte of zeros in several ways. Packed streams may be joined, which makes them quick to build."""
    zeros = bytes(10 * 2**20)
    path = tmp_path / "one.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", zeros)
        archive.writestr("good.jpg", b"good")
    data = path.read_bytes()
    at = data.index(b"PK\1\2") + 24
    path.write_bytes(data[:at] + struct.pack("<I", 1000 * 2**20) + data[at + 4 :])
    kernel = io.BytesIO()
    with zipfile.ZipFile(kernel, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(40):
            archive.writestr(f"{i:02}.jpg", zeros)
    (tmp_path / "many.zip").write_bytes(kernel.getvalue())
    info = tarfile.TarInfo("bomb.jpg")
    info.size = 1000 * 2**20
    (tmp_path / "one.tar.gz").write_bytes(gzip.compress(info.tobuf()) + gzip.compress(zeros) * 101)
    (tmp_path / "tail.tar.bz2").write_bytes(bz2.compress(zeros) * 40)
    return [tmp_path / name for name in ("one.tar.gz", "many.zip", "tail.tar.bz2")]


def test_a_compression_bomb_is_refused(tmp_path: Path, cache: Path) -> None:
    whole = bombs(tmp_path)
    tracemalloc.start()
    try:
        start = time.monotonic()
        members, unused = list_members(tmp_path / "one.zip")
        assert members == [Member("good.jpg", 4)]
        assert [name for name, reason in unused if tells(reason, "1000 MB")] == ["bomb.jpg"]
        assert time.monotonic() - start < 1
        for path in whole:
            start = time.monotonic()
            for call in (lambda path=path: list_members(path), lambda path=path: store_members(path, ["bomb.jpg"])):
                refused(DataError, call, path, "end mark" if "tail" in path.name else "200 times")
            assert time.monotonic() - start < 2
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
    assert [file.suffix for file in cache.iterdir()] == [".json"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_false_size_takes_no_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.jpg", b"x" * 300)
        data = bytearray(path.read_bytes())
        at = data.index(b"PK\1\2")
        data[at + 20 : at + 28] = struct.pack("<II", 200 * 2**20, 200 * 2**20)
        path.write_bytes(data)
    else:
        path.write_bytes(_header(b"a.jpg", b"%011o\0" % (200 * 2**20), b"0") + bytes(2048))
    tracemalloc.start()
    try:
        refused(DataError, lambda: dict(read_members(path)), path, "a.jpg")
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_memory_stays_flat(tmp_path: Path, kind: str) -> None:
    """2,000 members of 60 kB, 120 MB in all."""
    rng = random.Random(0)
    data = rng.randbytes(600) * 100  # quick to compress
    path = build(tmp_path / f"a.{kind}", {f"{i:04}.jpg": data for i in range(2000)}, rng)
    store_members(path, ["0000.jpg"])  # the imports
    tracemalloc.start()
    try:
        names = [member.name for member in list_members(path)[0]]
        assert sum(len(found) for _, found in read_members(path)) == 2000 * 60_000
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
        import pyarrow as pa

        before = pa.total_allocated_bytes()
        stored = store_members(path, names)
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
        assert pa.total_allocated_bytes() - before < 2**20, "the rows are in memory, not mapped"
    finally:
        tracemalloc.stop()
    assert stored[1999]["image"] == {"bytes": data, "path": "1999.jpg"}


def test_the_first_members_need_no_walk_over_the_rest(tmp_path: Path) -> None:
    """The rest is damaged, which a walk over it would find."""
    files = {f"{i}.jpg": bytes([i]) * 9 for i in range(20)}
    path = build(tmp_path / "a.tar.gz", files, random.Random(0))
    with gzip.open(path) as handle:
        plain = handle.read()
    (tmp_path / "b.tar").write_bytes(plain[:6000] + b"x" * 5000)
    assert list(read_members(tmp_path / "b.tar", ["1.jpg", "3.jpg"])) == [(n, files[n]) for n in ("1.jpg", "3.jpg")]
    assert next(read_members(tmp_path / "b.tar")) == ("0.jpg", files["0.jpg"])
    assert list(read_members(tmp_path / "b.tar", [])) == []
    refused(DataError, lambda: list(read_members(tmp_path / "b.tar")), "b.tar")
    refused(DataError, lambda: store_members(tmp_path / "b.tar", ["1.jpg"]), "b.tar")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_what_is_no_archive_says_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    refused(DataError, lambda: list_members(path), path, "cannot be opened")
    refused(DataError, lambda: store_members(path, ["a"]), path, "cannot be opened")
    for data, fact in {
        b"": "empty",
        b"<html>404</html>": "no archive",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n": "git lfs pull",
    }.items():
        path.write_bytes(data)
        refused(DataError, lambda: list_members(path), path, fact)
        refused(DataError, lambda: list(read_members(path)), path, fact)


def test_a_damaged_picture_is_one_bad_picture(tmp_path: Path) -> None:
    from natix_hf.data.decode import decode_once

    rng = np.random.default_rng(0)
    pictures = {}
    for i in range(4):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(file, "PNG")
        pictures[f"no/{i}.png"] = file.getvalue()
    path = build(tmp_path / "a.zip", pictures, random.Random(5))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT", data.index(b"IDAT") + 300) + 20] ^= 1
    path.write_bytes(data)
    rows = store_members(path, list(pictures))
    problems = decode_once(rows, list(pictures), "image", 20, on_bad_image="skip")["problem"]
    assert [problem is None for problem in problems].count(False) == 1
    assert tells(next(problem for problem in problems if problem), path, "CRC")


@pytest.mark.shared
def test_the_zip_that_people_bring(tmp_path: Path) -> None:
    with tarfile.open(SHARED / "data/field_cases/zip.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    path = next(tmp_path.rglob("photos.zip"))
    members, unused = list_members(path)
    assert not unused
    assert {member.name.split("/")[-2] for member in members} == {"none", "roadwork"}
    assert all(open_image(cell).size == (40, 40) for cell in store_members(path, [m.name for m in members])["image"])
