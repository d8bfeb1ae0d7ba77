"""Read the members of zip and tar archives in place: nothing is unpacked into a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natix_hf.errors import DataError, cut
from natix_hf.intake.entries import entries, naming
from natix_hf.intake.pointers import unreadable_note
from natix_hf.provenance.files import atomic_file, json_sha256, read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_BATCH = 16 * 2**20  # bytes held while members are stored
_READER = 1  # part of the cache key: raise it when an archive is read otherwise, here or in entries.py


@dataclass(frozen=True)
class Member:
    """A file in an archive: its normalised POSIX path and its uncompressed size in bytes."""

    name: str
    size: int


def is_archive(name: str) -> bool:
    """Whether a file name ends like a zip or tar archive, in upper or lower case."""
    return name.lower().endswith(_ENDINGS)


def without_ending(name: str) -> str:
    """A file name without the ending of an archive: `v1.2` of `v1.2.tar.gz`."""
    ending = next((ending for ending in sorted(_ENDINGS, key=len, reverse=True) if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def list_members(path: Path) -> tuple[list[Member], list[tuple[str, str]]]:
    """List the files of an archive in stored order.

    A compressed tar is decompressed for this, and its checksum tested. The list is kept in the cache of `datasets`.

    Returns:
        The members, and `(name, reason)` of every entry that is not used: a link, device or sparse file, an absolute
        name or one with "..", a name that came before, an encrypted entry, one that is too large.

    Raises:
        DataError: If the archive is missing, damaged, cut off, encrypted as a whole, or expands without measure.
    """
    file = _cached(path, "listing", "json")
    if not file.is_file():
        walked = [(entry.name, entry.size, entry.reason) for entry in entries(path)]
        write_json(file, walked)
    else:
        walked = read_json(file)
    members = [Member(name, size) for name, size, reason in walked if reason is None]
    return members, [(name, reason) for name, _, reason in walked if reason is not None]


def read_each(path: Path, names: Collection[str] | None = None) -> Iterator[tuple[str, bytes | DataError]]:
    """Read members one at a time, in stored order, without listing the archive first.

    Args:
        path: The archive.
        names: The members to read. None reads every member that `list_members` lists.

    Yields:
        The name and the bytes of a member. A damaged member of a zip gives a `DataError` instead, and reading goes on.

    Raises:
        DataError: As `list_members` does, or if a name is not in the archive. A tar cannot be read past its damage,
            and the checksum of a compressed tar is tested only at its end.
    """
    missing = None if names is None else set(names)
    for entry in entries(path):
        if entry.reason is not None or (missing is not None and entry.name not in missing):
            continue
        yield entry.name, entry.read()
        if missing is not None:
            missing.discard(entry.name)
    if missing:
        raise DataError(f"{path} holds no file {cut(min(missing))} that can be read: the archive was changed")


def read_members(path: Path, names: Collection[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """Read members as `read_each` does, and stop after the last of `names`.

    Raises:
        DataError: As `read_each` does, and for the first damaged member.
    """
    left = -1 if names is None else len(set(names))
    if left == 0:
        return
    for name, data in read_each(path, names):
        if isinstance(data, DataError):
            raise data
        yield name, data
        left -= 1
        if left == 0:
            return


def store_members(path: Path, names: Sequence[str]) -> Dataset:
    """Copy members into an Arrow file in the cache of `datasets`, once, and open it memory-mapped.

    Names in stored order need no index.

    Returns:
        A dataset with the column `image`, undecoded cells `{"bytes", "path"}` in the order of `names`. A damaged
        member of a zip holds a note instead of its bytes, and [`open_image`] reports the reason.

    Raises:
        DataError: As `read_each` does.
    """
    import pyarrow.compute as pc
    from datasets import Dataset
    from datasets.table import MemoryMappedTable

    file = _cached(path, "members", "arrow", sorted(names))
    if not file.is_file():
        with atomic_file(file) as temporary:
            _write(temporary, read_each(path, names))
    dataset = Dataset(MemoryMappedTable.from_file(str(file)), fingerprint=file.stem.rpartition("-")[2])
    position = {name: i for i, name in enumerate(pc.struct_field(dataset.data.column("image"), "path").to_pylist())}
    order = [position[name] for name in names]
    return dataset if order == list(range(len(dataset))) else dataset.select(order)


def _cached(path: Path, what: str, ending: str, *facts: Any) -> Path:
    """The file in the cache for what was read from an archive.

    Its name stands for the archive's size, time of change, first and last 64 KiB, wherever the archive lies. A full
    checksum would read a large archive anew at every run. The time tells an edit in the middle.
    """
    from datasets import config

    key = json_sha256([_READER, _fingerprint(path), *facts])[:32]
    return Path(config.HF_DATASETS_CACHE) / "natix_hf" / f"{what}-{key}.{ending}"


def _fingerprint(path: Path) -> list[Any]:
    with naming(path), path.open("rb") as handle:
        facts = path.stat()
        head = handle.read(65536)
        handle.seek(max(0, facts.st_size - 65536))
        return [facts.st_size, facts.st_mtime_ns, hashlib.sha256(head + handle.read(65536)).hexdigest()]


def _write(file: Path, members: Iterator[tuple[str, bytes | DataError]]) -> None:
    """Write cells in batches of bounded bytes. `datasets` counts rows, and a thousand photographs fill a gigabyte."""
    import pyarrow as pa
    from datasets import Features, Image

    schema = Features({"image": Image(decode=False)}).arrow_schema
    cells: list[dict[str, Any]] = []
    held = 0
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:

        def flush() -> None:
            writer.write_batch(pa.record_batch([pa.array(cells, type=schema.field("image").type)], schema=schema))
            cells.clear()

        for name, data in members:
            stored = unreadable_note(str(data)) if isinstance(data, DataError) else data
            cells.append({"bytes": stored, "path": name})
            held += len(stored)
            if held > _BATCH or len(cells) == 1000:
                flush()
                held = 0
        flush()
