"""Walk the entries of a zip or tar archive in stored order.

Sizes and names in an archive may be false or hostile. Every read is bounded, a tar is read forward only, no link is
followed, and whatever a library raises ends in a `DataError` or in a reason.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from natix_hf.errors import DataError, NatixError, cut, first_line
from natix_hf.intake.pointers import HEAD, stand_in

_PACKED: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_ENCRYPTED, _UTF8 = 0x1, 0x800  # flag bits of a zip entry
_UNIX = (3, 19)  # systems whose zip entries hold a Unix file mode: Unix, macOS

_MB = 2**20
_MEMBER_LIMIT = 512 * _MB  # more than any picture that Pillow opens
# Pictures hardly shrink. What shrinks more than this, beyond a size that does no harm, is a compression bomb.
_RATIO, _HARMLESS = 200, 256 * _MB
_PIECE = _MB  # bytes of one read; no header of a tar is longer
_PADDING = 16 * _MB  # bytes of zeros that may follow the end of a tar; tar itself writes some 10 KiB


@dataclass(frozen=True)
class Entry:
    """An entry that is no folder.

    `reason` says why it is not used, or is None. `read` gives its bytes. It returns an error if this entry alone is
    damaged, and raises it if the archive cannot be read past the damage.
    """

    name: str
    size: int
    reason: str | None
    read: Callable[[], bytes | DataError]


def entries(path: Path) -> Iterator[Entry]:
    """Every entry but folders, in stored order. An entry must be read before the next one is asked for."""
    if path.exists() and not path.is_file():  # to open a named pipe would wait for ever
        raise DataError(f"{path} is no regular file: give a zip or tar archive")
    with naming(path), path.open("rb") as handle:
        head = handle.read(HEAD)
    if not head:
        raise DataError(f"{path} is empty: fetch or make it again")
    if (instead := stand_in(head)) is not None:
        raise DataError(f"{path} is no archive: {instead}")
    seen: set[str] = set()
    with naming(path):
        for entry in _zip_entries(path) if path.name.lower().endswith(".zip") else _tar_entries(path, head):
            reason = entry.reason or _bad_name(entry.name)
            if reason is not None:
                yield replace(entry, reason=reason)
                continue
            name = _normal(entry.name)
            again = "its name came before in the archive: the first is used" if name in seen else None
            seen.add(name)
            yield replace(entry, name=name, reason=again)


def _zip_entries(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        named = [(_zip_name(info), info) for info in archive.infolist()]
        files = [(name, info) for name, info in named if info.file_size or not name.endswith("/")]
        if files and all(info.flag_bits & _ENCRYPTED for _, info in files):
            raise DataError(f"{path} is encrypted: unpack it with its password and give the folder")
        listed = [(name, info, _zip_reason(info)) for name, info in files]
        total = sum(info.file_size for _, info, reason in listed if reason is None)
        if total > _room(path):
            raise DataError(f"{path} would expand to {total // _MB} MB, more than {_RATIO} times its size: unpack it")
        for name, info, reason in sorted(listed, key=lambda entry: entry[1].header_offset):
            yield Entry(name, info.file_size, reason, partial(_read_zip, archive, info, path))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name with "/". macOS writes UTF-8 without the flag that says so, and `zipfile` takes it for cp437."""
    name = info.filename
    if not info.flag_bits & _UTF8:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return name.replace("\\", "/")


def _zip_reason(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system in _UNIX else 0
    if info.flag_bits & _ENCRYPTED:
        return "it is encrypted: unpack the archive with its password"
    if kind not in (0, stat.S_IFREG):
        return "it is a link" if kind == stat.S_IFLNK else "it is no regular file"
    # zipfile gives no bound to what bzip2 and LZMA expand to: one read of 4 KiB may take gigabytes.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"it is compressed by method {info.compress_type}, not by deflate: unpack the archive"
    if info.file_size > max(_HARMLESS, _RATIO * info.compress_size):
        return f"it would expand to {info.file_size // _MB} MB, more than {_RATIO} times its size"
    return too_large(info.file_size)


def _read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes | DataError:
    try:
        with archive.open(info) as handle:
            return _exactly(handle, info.file_size)
    except Exception as error:  # zipfile, zlib and struct raise some ten kinds for damage
        return DataError(f"{cut(info.filename)} in {path} is damaged ({first_line(error)}): make the archive again")


def _tar_entries(path: Path, head: bytes) -> Iterator[Entry]:
    packed = next((opens for magic, opens in _PACKED.items() if head.startswith(magic)), None)
    room = None if packed is None else _room(path)
    with path.open("rb") if packed is None else packed(path) as raw:
        stream = _Forward(raw, room)
        tar: Any = tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]
        end = 0
        while (info := tar.next()) is not None:
            tar.members.clear()  # it would keep every header
            name = _text(info.name).replace("\\", "/")
            if info.size < 0 or tar.offset <= end:  # older releases of tarfile go round in circles
                raise tarfile.ReadError(f"the header of {cut(name)} is damaged")
            end = tar.offset
            if room is not None and end > room:
                raise DataError(
                    f"{path} would expand to {end // _MB} MB with {cut(name)}, more than {_RATIO} times its size: "
                    "leave that member out, or unpack the archive"
                )
            if not info.isdir():
                read = partial(_read_tar, stream, info.offset_data, info.size, name, path)
                yield Entry(name, info.size, _tar_reason(info), read)
        stream.finish()


def _read_tar(stream: _Forward, at: int, size: int, name: str, path: Path) -> bytes:
    try:
        stream.seek(at)
        return _exactly(stream, size)
    except Exception as error:  # gzip, bz2, lzma and tarfile raise some ten kinds for damage
        raise DataError(
            f"{cut(name)} in {path} is damaged ({first_line(error)}) and ends the archive: fetch or make it again"
        ) from None


def _tar_reason(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return f"it is a {'link' if info.issym() else 'hard link'} to {cut(_text(info.linkname))}"
    if not info.isreg() or info.issparse():
        return "it is a sparse file" if info.issparse() else "it is no regular file"
    return too_large(info.size)


class _Forward:
    """The bytes of a tar for `tarfile`: read forward only, in bounded pieces, up to `room` bytes.

    `tarfile` reads a header of any length at once, and takes a damaged header or a missing end for the end.
    """

    def __init__(self, raw: IO[bytes], room: int | None) -> None:
        self._raw, self._room, self._last = raw, room, b""
        self.tell = raw.tell

    def seek(self, position: int) -> None:
        if position < self.tell():
            raise tarfile.ReadError("a header points back")
        self._raw.seek(position)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _PIECE:
            raise tarfile.ReadError("a header is too long")
        if self._room is not None and self.tell() > self._room:
            raise tarfile.ReadError(f"it expands to more than {_RATIO} times its size")
        self._last = self._raw.read(size)
        return self._last

    def finish(self) -> None:
        """Check the end: a block of zeros, and a few more behind it. This tests the checksum of a packed tar too."""
        if len(self._last) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it has no end mark")
        if self._last.strip(b"\0"):
            raise tarfile.ReadError(f"the header at byte {self.tell() - tarfile.BLOCKSIZE} is damaged")
        start = self.tell()
        while piece := self.read(_PIECE):
            if piece.strip(b"\0") or self.tell() - start > _PADDING:
                raise tarfile.ReadError("it goes on behind its end mark, as joined archives do")


def _exactly(handle: Any, size: int) -> bytes:
    """Read `size` bytes in pieces, because the size may be false."""
    pieces = [handle.read(min(size, _PIECE))]
    left = size - len(pieces[0])
    while left and pieces[-1]:
        pieces.append(handle.read(min(left, _PIECE)))
        left -= len(pieces[-1])
    if left:
        raise EOFError(f"it ends after {size - left} of {size} bytes")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever a library raises into a `DataError` that names the archive."""
    try:
        yield
    except NatixError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}): give a zip or tar archive") from None
    except Exception as error:  # tarfile, gzip, bz2, lzma, zipfile and struct raise some twenty kinds for damage
        raise DataError(
            f"{path} is damaged, cut off or no archive ({first_line(error)}): fetch or make it again"
        ) from None


def _room(path: Path) -> int:
    return max(_HARMLESS, _RATIO * path.stat().st_size)


def too_large(size: int) -> str | None:
    """Why a member of this size in bytes is not read, or None."""
    return f"it has {size // _MB} MB, and {_MEMBER_LIMIT // _MB} is the most" if size > _MEMBER_LIMIT else None


def _text(name: str) -> str:
    """A name from a tar as plain text. Bytes that are not UTF-8 are read as Latin-1, which keeps names apart."""
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("latin-1")


def _normal(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _bad_name(name: str) -> str | None:
    if name.startswith("/") or re.match("[A-Za-z]:/", name):
        return "its name is absolute"
    if ".." in name.split("/"):
        return 'its name holds ".."'
    return None if _normal(name) else "it has no name"
