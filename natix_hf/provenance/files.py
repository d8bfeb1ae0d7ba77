"""Atomic writes, durable folders, and checksums.

A reader sees either the old file or the complete new one. Each write goes to a temporary name in the same folder, is
flushed with fsync, and then replaces the target with `os.replace`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from natix_hf.errors import VerificationError
from natix_hf.provenance.durable import (
    discard,
    make_folder,
    replace,
    settle,
    settle_file,
    temporary_sibling,
)

# Called with every path before it is replaced. A process that no longer owns the folder raises here.
GUARDS: list[Callable[[Path], None]] = []
_TEMPORARY = re.compile(r"\.tmp(-.*|[0-9A-Za-z]{6})", re.DOTALL)  # ours, and those that safetensors makes


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. The file written there becomes `path` if the block succeeds.

    The temporary file is there from the beginning, empty: a folder that cannot be written to is found before the work.
    """
    temporary = temporary_sibling(path)
    try:
        make_folder(path.parent)
        with temporary.open("xb") as handle:
            mode = stat.S_IMODE(os.fstat(handle.fileno()).st_mode)
        yield temporary
        settle_file(temporary, mode)
        check_guards(path)
        replace(temporary, path)
    except OSError as error:
        _name(error, path)
        raise
    finally:
        discard(temporary)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`. It replaces `path` if the block succeeds."""
    temporary = temporary_sibling(path)
    try:
        make_folder(path.parent)
        temporary.mkdir()
        yield temporary
        settle(temporary)
        check_guards(path)
        old = temporary_sibling(path)
        if path.exists():  # move the old folder aside in one step, so that `path` is never half deleted
            replace(path, old)
        try:
            replace(temporary, path)
        except OSError:
            if old.exists():
                replace(old, path)
            raise
        discard(old)
    except OSError as error:
        _name(error, path)
        raise
    finally:
        discard(temporary)


def _name(error: OSError, path: Path) -> None:
    """Add the file name to an error of the disk, which names none."""
    if error.errno is not None and error.filename is None:
        error.filename = str(path)


def check_guards(path: Path) -> None:
    """Raise what a guard raises, if this process must not write `path`."""
    for guard in GUARDS:
        guard(path)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with Unix line ends, so that its checksum is the same on every system."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that this package wrote.

    Raises:
        VerificationError: If the file is missing, is a folder or is not JSON. The message names the file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # an editor may have put its mark before the text
        return json.loads(text, parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError):
        raise VerificationError(f"{path} is missing") from None
    except IsADirectoryError:
        raise VerificationError(f"{path} is a folder: it should be a file") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number with thousands of digits
        raise VerificationError(
            f"{path} is not readable JSON ({error}): it was damaged after it was written"
        ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


def file_sha256(path: Path) -> str:
    """Compute the sha256 of a file in a stream."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """Compute the sha256 of the canonical JSON of `value`: sorted keys, no white space."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def ids_sha256(ids: Iterable[str]) -> str:
    """Compute the sha256 of a set of row ids. The order of the ids does not matter."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def list_files(folder: Path) -> list[str]:
    """List every file under `folder` as a sorted relative POSIX path, without unfinished temporary files."""
    found = (path for path in folder.rglob("*") if path.is_file() and not _unfinished(path, folder))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def list_temporaries(folder: Path) -> list[str]:
    """List the topmost temporary files and folders that interrupted writes left under `folder`, sorted."""
    named = (path for path in folder.rglob(".tmp*") if _TEMPORARY.fullmatch(path.name))
    found = [path for path in named if not _unfinished(path.parent, folder)]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files and folders that interrupted writes left under `folder`."""
    for name in list_temporaries(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _unfinished(path: Path, folder: Path) -> bool:
    return any(_TEMPORARY.fullmatch(part) for part in path.relative_to(folder).parts)


def walk(root: Path, refuse: Callable[[str, str], None] | None = None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every regular file under a folder as (relative POSIX name, entry), folder by folder, sorted by name.

    Links to folders are followed, each folder once.

    Args:
        refuse: Called with the name of each entry that is not yielded, and the reason.

    Raises:
        OSError: If `root` cannot be opened. A folder below it that cannot be opened is refused.
    """
    seen: dict[tuple[int, int], str] = {}
    pending = [("", str(root))]
    while pending:
        prefix, folder = pending.pop()
        try:
            facts = os.stat(folder)
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise
            entries, reason = [], f"a folder that cannot be opened ({error.strerror})"
        else:
            first = seen.setdefault((facts.st_dev, facts.st_ino), prefix or ".")
            reason = f"a link to a folder that is read as {first}" if first != (prefix or ".") else ""
        if reason:
            if refuse is not None:
                refuse(prefix, reason)
            continue
        below = []
        for entry in entries:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if _is(entry.is_dir):
                below.append((name, entry.path))
            elif _is(entry.is_file):
                yield name, entry
            elif refuse is not None:
                refuse(name, "a broken link" if entry.is_symlink() else "not a regular file")
        pending += reversed(below)


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link that leads to itself, or a folder without the right to look into it
        return False


_fingerprints: dict[Path, tuple[str, str]] = {}  # by folder: what `stat` said of its files, and the fingerprint


def folder_fingerprint(folder: Path) -> str:
    """Compute the sha256 over the relative name, size and first 64 KiB of every file in a folder.

    The location of the folder does not matter. This is fast on many gigabytes, but misses an edit beyond the first
    64 KiB that keeps the file's size, which `listing_sha256` does not. A process that asks again reads no file unless
    a size or time has changed.
    """
    found = _sorted_files(folder)
    seen = _listing(found)
    known = _fingerprints.get(folder.resolve())
    if known is not None and known[0] == seen:
        return known[1]
    described = []
    for name, entry in found:
        with open(entry.path, "rb") as handle:
            described.append([name, entry.stat().st_size, hashlib.sha256(handle.read(65536)).hexdigest()])
    fingerprint = json_sha256(described)
    _fingerprints[folder.resolve()] = (seen, fingerprint)
    return fingerprint


def listing_sha256(path: Path) -> str:
    """Compute the sha256 over the relative name, size and time of writing of every file in a folder, or over those of
    one file. Any write changes it, and so does a copy, which need not keep the times."""
    if path.is_dir():
        return _listing(_sorted_files(path))
    facts = path.stat()
    return json_sha256([facts.st_size, facts.st_mtime_ns])


def _sorted_files(folder: Path) -> list[tuple[str, os.DirEntry[str]]]:
    return sorted((name, entry) for name, entry in walk(folder) if not _unfinished(Path(name), Path()))


def _listing(found: list[tuple[str, os.DirEntry[str]]]) -> str:
    stats = [(os.fsencode(name).hex(), entry.stat()) for name, entry in found]  # which an entry remembers
    return json_sha256([[name, facts.st_size, facts.st_mtime_ns] for name, facts in stats])


def file_fingerprint(path: Path) -> str:
    """Compute the sha256 over the size and the first and last 64 KiB of a file, as fast for a large archive as for a
    table. It misses an edit in between that keeps the size."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(65536)
        handle.seek(max(0, size - 65536))
        return json_sha256([size, hashlib.sha256(head + handle.read()).hexdigest()])


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Describe the named files under `folder` as `{relative path: {"sha256", "size"}}`; sizes are in bytes."""
    return {
        name: {"sha256": file_sha256(folder / name), "size": (folder / name).stat().st_size} for name in sorted(names)
    }


def check_files(folder: Path, described: dict[str, dict[str, Any]]) -> list[str]:
    """List one line for every described file that is missing or differs. The list is empty if all files are right."""
    problems = []
    for name, facts in described.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != facts["size"]:
            problems.append(f"{path} has {path.stat().st_size} bytes, its manifest says {facts['size']}")
        elif file_sha256(path) != facts["sha256"]:
            problems.append(f"{path} was changed: its sha256 is not the one in its manifest")
    return problems
