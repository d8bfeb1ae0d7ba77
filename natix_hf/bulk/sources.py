"""Where pictures come from that are answered in bulk: files, and rows of tables, data sets and archives.

Nothing is decoded here. Every source has a stable order, so that a call that was interrupted can go on.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from natix_hf.bulk.rows import (
    FORMULA,
    Columns,
    Rows,
    rows_of_archive,
    rows_of_arrow,
    rows_of_hub,
    rows_of_parquet,
    rows_of_saved,
    safe,
)
from natix_hf.errors import UsageError, cut
from natix_hf.intake.columns import is_saved
from natix_hf.intake.formats import readable_endings
from natix_hf.intake.kinds import junk_reason, kind_of, looks_like_picture, other_reason, says_nothing
from natix_hf.intake.pointers import HEAD
from natix_hf.provenance.files import walk
from natix_hf.provenance.hub import is_repo_id

STDIN = "-"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LISTS = (".txt", ".lst", ".list")
Kind = Literal["folder", "glob", "file", "list", "rows"]


@dataclass(frozen=True, slots=True)
class File:
    """A picture file.

    Args:
        name: What stands in the table.
        path: What is opened.
        size, mtime_ns: As they were when it was found; -1 if it is not there.
        problem: Why it is not opened, or None.
    """

    name: str
    path: str
    size: int = -1
    mtime_ns: int = -1
    problem: str | None = None


@dataclass
class Source:
    """One argument: what it names, and what is left out of it.

    Args:
        argument: As it was written.
        kind: What it is. "rows" stands for `tables` alone, whatever holds them.
        tables: Sources of rows: parquet files, data sets, archives. Those of a folder are known after `files`.
        left_out: Number of files that are no pictures, by reason.
        said: What it is, in words.
    """

    argument: str
    kind: Kind
    said: str
    tables: list[Rows] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def find_sources(arguments: Iterable[str], columns: Columns, strict: bool = True) -> list[Source]:
    """Look at each argument: a folder, a glob, a picture, a list of names, a table, an archive or a data set.

    A path that exists comes before a glob or a data set of that name.

    Args:
        strict: Refuse what is not there, unless it is called like a picture: then its row has an error. Without it
            every missing file has one.

    Raises:
        UsageError: If an argument is a URL, is not there, or is a file that holds no pictures.
    """
    return [_source(argument, columns, strict) for argument in arguments]


def _source(argument: str, columns: Columns, strict: bool) -> Source:
    if argument == STDIN:
        return Source(argument, "list", "names from standard input")
    if not argument:  # such as an unset variable of a shell, in quotes
        raise UsageError("a source is empty: name a folder; . is the current one")
    if (url := _url(argument)) is not None:
        raise UsageError(url)
    path = Path(argument)
    if not os.path.lexists(argument) and argument.startswith("~"):
        path = Path(os.path.expanduser(argument))
    if path.is_dir():
        both = ", not a data set of the Hub" if is_repo_id(argument) else ""
        if is_saved(path):
            return Source(argument, "rows", f"a data set that save_to_disk wrote{both}", rows_of_saved(path, columns))
        return Source(argument, "folder", f"a folder{both}")
    if os.path.lexists(path):
        return _of_file(argument, path, columns)
    if glob.has_magic(argument):
        return Source(argument, "glob", "a pattern")
    if is_repo_id(argument) and kind_of(argument) == "other" and Path(argument).suffix.lower() not in _LISTS:
        found = rows_of_hub(argument, columns)
        if isinstance(found, Path):
            return Source(str(found), "folder", f"pictures of the data set {argument} on the Hub")
        return Source(argument, "rows", "a data set of the Hub", found)
    if not strict or kind_of(argument) == "picture":
        return Source(argument, "file", "a file that is not there")
    raise UsageError(f"there is no folder, file or data set {argument} (seen from {Path.cwd()}): check the path")


def _of_file(argument: str, path: Path, columns: Columns) -> Source:
    ending, kind = path.suffix.lower(), kind_of(argument)
    if kind == "columns":
        rows = rows_of_parquet if ending == ".parquet" else rows_of_arrow
        return Source(argument, "rows", f"a {ending[1:]} file", [rows(path, path.name, columns)])
    if kind == "archive":
        found = Source(argument, "rows", "an archive")
        found.tables.append(rows_of_archive(path, "", found.left_out))
        return found
    if ending in _LISTS and not looks_like_picture(_head(str(path))):
        return Source(argument, "list", "a list of names")
    if kind == "table":
        raise UsageError(
            f"{argument} is a table: give a parquet file with pictures, or a .txt file with one path a line"
        )
    return Source(argument, "file", "a file")


def _url(text: str) -> str | None:
    if not _URL.match(text):
        return None
    return f"{cut(text)} is a URL: download the pictures first, then name their folder"


def files_of(source: Source, alone: bool, ours: Callable[[str], bool], columns: Columns) -> Iterator[File]:
    """Every picture file of a source, in the order of its walk. Adds to `left_out`, and to `tables` at the end.

    Args:
        alone: It is the only source, so that the files of a folder are named relative to it.
        ours: Says whether an absolute path is one that this call writes.
    """
    if source.kind == "folder":
        yield from _of_folder(source, Path(os.path.expanduser(source.argument)), alone, ours, columns)
    elif source.kind == "glob":
        yield from _of_glob(source, ours)
    elif source.kind == "list":
        yield from (listed(name) for name in names_of(source.argument))
    elif source.kind == "file":
        yield described(source.argument, source.argument)


def _of_folder(
    source: Source, root: Path, alone: bool, ours: Callable[[str], bool], columns: Columns
) -> Iterator[File]:
    tables: list[tuple[str, str]] = []
    archives: list[tuple[str, str]] = []
    pictures = False
    before = "" if alone else f"{source.argument.rstrip('/' + os.sep)}/"

    def refuse(name: str, reason: str) -> None:
        source.left_out[reason.partition(" that is read as ")[0]] += 1

    try:
        for name, entry in walk(root, refuse):
            if ours(entry.path):
                continue
            reason = _why_not(name, entry.path)
            if reason is None:
                pictures = True
                try:
                    facts = entry.stat()
                    yield File(safe(f"{before}{name}"), entry.path, facts.st_size, facts.st_mtime_ns)
                except OSError:  # removed meanwhile: its row says so
                    yield File(safe(f"{before}{name}"), entry.path)
            elif reason in ("columns", "archive"):
                (tables if reason == "columns" else archives).append((f"{before}{name}", entry.path))
            else:
                source.left_out[reason] += 1
    except OSError as error:
        raise UsageError(f"{root} cannot be opened ({error.strerror}): check who may read it") from None
    for kind, found in (("parquet or arrow files", tables), ("archives", archives)):
        if found and (pictures or source.tables):
            source.left_out[f"{kind} beside pictures: name them as sources of their own"] += len(found)
            continue
        for name, path in found:
            if kind == "archives":
                source.tables.append(rows_of_archive(Path(path), f"{name}/", source.left_out))
            else:
                rows = rows_of_parquet if name.lower().endswith(".parquet") else rows_of_arrow
                source.tables.append(rows(Path(path), name, columns))


def _why_not(name: str, path: str) -> str | None:
    """None for a picture, "columns" or "archive" for those, else why a file is none."""
    folder, _, base = name.rpartition("/")
    ending = base[base.rfind(".") :].lower()
    if ending in readable_endings() and not base.startswith(".") and _is_plain(folder):
        return None  # as most are: the rest takes ten times as long
    reason = junk_reason(name)
    if reason is not None:
        return reason
    kind = kind_of(name)
    if kind == "picture" or (kind == "other" and says_nothing(name) and looks_like_picture(_head(path))):
        return None
    return kind if kind in ("columns", "archive") else "a table" if kind == "table" else other_reason(name)


@functools.lru_cache(maxsize=256)
def _is_plain(folder: str) -> bool:
    return junk_reason(f"{folder}/picture.png" if folder else "picture.png") is None


def _head(path: str) -> bytes:
    if not os.path.isfile(path):  # a named pipe would wait for ever
        return b""
    try:
        with open(path, "rb") as handle:
            return handle.read(HEAD)
    except OSError:
        return b""


def _of_glob(source: Source, ours: Callable[[str], bool]) -> Iterator[File]:
    pattern = os.path.expanduser(source.argument)
    root = fixed_part(pattern)
    for path in matched(pattern):
        if os.path.isdir(path) or ours(os.path.abspath(path)):
            continue
        reason = _why_not(path.removeprefix(root).replace(os.sep, "/").lstrip("/"), path)
        if reason is None:
            yield described(path.replace(os.sep, "/"), path)
        else:
            named = reason not in ("columns", "archive")
            source.left_out[reason if named else f"{reason} in a pattern: name it as a source of its own"] += 1


def fixed_part(pattern: str) -> str:
    """The folder of a pattern above its first wildcard."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
    return pattern or "."


def matched(pattern: str) -> Iterator[str]:
    """The paths that a pattern matches, in order. `**` stands for any folders, and a link that leads round in a circle
    is followed once, which `glob` would follow until the system refuses."""
    root = fixed_part(pattern)
    parts = re.split(
        r"[\\/]" if os.name == "nt" else "/", pattern if root == "." else pattern[len(root) :].lstrip("/\\")
    )
    if "**" not in parts:
        yield from sorted(glob.iglob(pattern))
    elif os.path.isdir(root):
        for name, _ in walk(Path(root)):
            if _matches(name.split("/"), [part for part in parts if part]):
                yield name if root == "." else os.path.join(root, name)


def _matches(names: list[str], parts: list[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return _matches(names, parts[1:]) or (bool(names) and _matches(names[1:], parts))
    return bool(names) and fnmatch.fnmatch(names[0], parts[0]) and _matches(names[1:], parts[1:])


def left_out(sources: Iterable[Source]) -> str:
    """What is left out of sources, in words that go on a line, or ""."""
    counts = sum((source.left_out for source in sources), Counter[str]())
    shown = ", ".join(f"{count:,} x {reason}" for reason, count in counts.most_common(6))
    others = ", and others" if len(counts) > 6 else ""
    return f"; {counts.total():,} files left out: {shown}{others}" if counts else ""


def names_of(argument: str) -> Iterator[str]:
    """The names in a list file or on standard input: one a line, as bytes of the file system. Blank lines are passed
    over. Names are yielded as they come."""
    if argument == STDIN:
        stream: Any = getattr(sys.stdin, "buffer", sys.stdin)
        yield from _lines(stream)
        return
    try:
        with open(os.path.expanduser(argument), "rb") as handle:
            start = handle.read(2)
            if start in (b"\xff\xfe", b"\xfe\xff"):  # what PowerShell's > writes
                text = (start + handle.read()).decode("utf-16", "replace")
                yield from _lines(text.split("\n"))
                return
            handle.seek(0)
            yield from _lines(handle)
    except OSError as error:
        raise UsageError(f"{argument} cannot be opened ({error.strerror}): check who may read it") from None


def _lines(stream: Iterable[Any]) -> Iterator[str]:
    first = True
    for line in stream:
        raw = line if isinstance(line, bytes) else os.fsencode(line)
        if first:
            raw, first = raw.removeprefix(b"\xef\xbb\xbf"), False
        raw = raw.rstrip(b"\r\n")
        if raw.strip():
            yield os.fsdecode(raw)


def listed(name: str) -> File:
    """A file that a list names."""
    url = _url(name)
    if url is None:
        return described(name, name)
    return File(safe(name), name, problem=url)


def described(name: str, path: str) -> File:
    try:
        facts = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return File(safe(name), _plain_path(path))
    return File(safe(name), _plain_path(path), facts.st_size, facts.st_mtime_ns)


def _plain_path(path: str) -> str:
    return f"./{path}" if path.startswith(FORMULA) else path
