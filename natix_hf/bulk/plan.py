"""The list of all pictures of a bulk call, on disk: what was found, in which order, and what has changed since.

The list is a SQLite file that is replaced as a whole. It keeps millions of names out of memory, knows each file once,
and gives every picture a fixed place, so that an interrupted call cuts the same batches when it goes on.

A segment is what is counted through: all files of the first call, each table, and the files that a later call found.
"""

from __future__ import annotations

import functools
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from natix_hf.bulk.rows import Item, Rows
from natix_hf.bulk.sources import File
from natix_hf.errors import UsageError
from natix_hf.provenance.files import atomic_file, json_sha256

PLAN = "pictures.sqlite"
_AT_ONCE = 2000
_TABLES = """
CREATE TABLE IF NOT EXISTS segment (id INTEGER PRIMARY KEY, key TEXT UNIQUE, facts TEXT, count INTEGER);
CREATE TABLE IF NOT EXISTS file (
    segment INTEGER, place INTEGER, name TEXT, path BLOB UNIQUE, size INTEGER, mtime_ns INTEGER, problem TEXT,
    seen INTEGER, PRIMARY KEY (segment, place)
) WITHOUT ROWID;
"""
_ITEMS = "SELECT name, path, problem FROM file WHERE segment = ? AND place >= ? AND place < ? ORDER BY place"
_SEEN = "seen = (SELECT max(id) FROM call)"
_CALLS = "CREATE TABLE IF NOT EXISTS call (id INTEGER PRIMARY KEY)"


@dataclass
class Stock:
    """What a call found, beside what a call before it had found.

    Args:
        pictures: Number of pictures; None if a data set that is streamed does not say it.
        repeated: Files that several arguments name. Each is answered once.
        new, changed, gone: Files and tables, since the call before. None of the first call is new.
        stale: Places whose answers no longer hold, as (segment, place); the place None stands for a whole segment.
    """

    pictures: int | None = 0
    repeated: int = 0
    new: int = 0
    changed: int = 0
    gone: int = 0
    stale: list[tuple[int, int | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Segment:
    """Places 0 to `count` (None: not known yet). `rows` reads those of a table, None: they are files."""

    number: int
    count: int | None
    rows: Rows | None


class Plan:
    """The list in a folder. `take_stock` makes it, other processes only read it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PLAN

    def take_stock(
        self, files: Iterable[File], tables: Callable[[], list[Rows]], forget: Callable[[Stock], None]
    ) -> Stock:
        """Find what there is now, and bring the list up to it.

        Args:
            files: Every file, in order.
            tables: Every table; called after the last file.
            forget: Removes stale answers. It is called before the list is replaced, so that a call that is killed in
                between finds them stale again.

        Raises:
            UsageError: If a table that the list has is gone.
        """
        stock = Stock()
        with atomic_file(self.path) as temporary:
            first = not self.path.is_file()
            if not first:
                shutil.copyfile(self.path, temporary)
            with closing(_open(temporary, "rw")) as base:
                base.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {_TABLES} {_CALLS};")
                base.execute("BEGIN")
                call = base.execute("INSERT INTO call DEFAULT VALUES").lastrowid
                assert call is not None
                _add_files(base, files, call, first, stock)
                _add_tables(base, tables(), call, first, stock)
                counts = [count for (count,) in base.execute("SELECT count FROM segment")]
                stock.pictures = None if None in counts else sum(counts)
                base.execute("COMMIT")
            forget(stock)
        return stock

    def whole(self) -> bool:
        """Whether the list of a call before is there and can be read."""
        try:
            with closing(_open(self.path, "ro")) as base:
                sound = base.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
                return sound and base.execute("SELECT id FROM call").fetchone() is not None
        except sqlite3.DatabaseError:
            return False

    def segments(self, tables: Iterable[Rows]) -> list[Segment]:
        """All segments, in order."""
        by_key = {table.key: table for table in tables}
        return [Segment(number, count, None if key is None else by_key[key]) for number, key, count in self.keys()]

    def keys(self) -> list[tuple[int, str | None, int | None]]:
        """The number of each segment, the key of its table (None: files) and its count, in order."""
        with closing(_open(self.path, "ro")) as base:
            return base.execute("SELECT id, key, count FROM segment ORDER BY id").fetchall()

    def items(self, segment: Segment, start: int, stop: int | None) -> Iterator[Item]:
        """The pictures from `start` to before `stop`, in order. None: to the end."""
        if segment.rows is not None:
            for at, item in enumerate(segment.rows.read(start), start):
                if stop is not None and at >= stop:
                    return
                yield item
            return
        with closing(_open(self.path, "ro")) as base:
            while stop is None or start < stop:
                end = start + _AT_ONCE if stop is None else min(stop, start + _AT_ONCE)
                found = base.execute(_ITEMS, (segment.number, start, end)).fetchall()
                for name, path, problem in found:
                    yield Item(name, None if problem is not None else os.fsdecode(path), problem)
                if len(found) < end - start:
                    return
                start = end

    def digest(self) -> str:
        """The sha256 over everything that the last call found: names, sizes, times, facts of tables."""
        with closing(_open(self.path, "ro")) as base:
            tables = base.execute("SELECT key, facts FROM segment WHERE key IS NOT NULL ORDER BY key").fetchall()
            digest = json_sha256(tables)
            cursor = base.execute(f"SELECT path, size, mtime_ns FROM file WHERE {_SEEN} ORDER BY path")
            while some := cursor.fetchmany(_AT_ONCE):
                digest = json_sha256([digest, [[path.hex(), size, time] for path, size, time in some]])
        return digest


def _open(path: Path, mode: str) -> sqlite3.Connection:
    # Without locks: one process writes at a time, into a file of its own, and some network file systems have none.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}&nolock=1", uri=True, isolation_level=None)


def _one_path(path: str, real_folder: Callable[[str], str]) -> str:
    """One path of a file, however it is named: through its folder's real place."""
    folder, name = os.path.split(path)
    return os.path.join(real_folder(folder or "."), name)


def _add_files(base: sqlite3.Connection, files: Iterable[File], call: int, first: bool, stock: Stock) -> None:
    number, place = None, 0
    # For this call alone: the next one may come from another folder, or meet a link that leads elsewhere.
    real_folder = functools.lru_cache(maxsize=1024)(os.path.realpath)
    known = "SELECT segment, place, size, mtime_ns, seen FROM file WHERE path = ?"
    for file in files:
        path = os.fsencode(file.path if file.problem is not None else _one_path(file.path, real_folder))
        # Of the first call nothing is known: a file is there only if it was named before.
        row = None if first else base.execute(known, (path,)).fetchone()
        if row is None:
            if number is None:
                number = base.execute("INSERT INTO segment (count) VALUES (0)").lastrowid
            values = (number, place, file.name, path, file.size, file.mtime_ns, file.problem, call)
            if base.execute("INSERT OR IGNORE INTO file VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values).rowcount:
                place += 1
                continue
            row = base.execute(known, (path,)).fetchone()
        segment, at, size, mtime_ns, seen = row
        if seen == call:
            stock.repeated += 1
            continue
        if (size, mtime_ns) != (file.size, file.mtime_ns):
            stock.changed += 1
            stock.stale.append((segment, at))
        facts = (file.size, file.mtime_ns, call, segment, at)
        base.execute("UPDATE file SET size = ?, mtime_ns = ?, seen = ? WHERE segment = ? AND place = ?", facts)
    if number is not None:
        base.execute("UPDATE segment SET count = ? WHERE id = ?", (place, number))
        stock.new = 0 if first else place
    [(stock.gone,)] = base.execute("SELECT count(*) FROM file WHERE seen <> ?", (call,)).fetchall()


def _add_tables(base: sqlite3.Connection, tables: list[Rows], call: int, first: bool, stock: Stock) -> None:
    known = {
        key: (number, facts)
        for number, key, facts in base.execute("SELECT id, key, facts FROM segment WHERE key IS NOT NULL")
    }
    for table in {table.key: table for table in tables}.values():
        facts = json_sha256(table.facts)
        if table.key not in known:
            base.execute("INSERT INTO segment (key, facts, count) VALUES (?, ?, ?)", (table.key, facts, table.count))
            stock.new += not first
            continue
        number, before = known.pop(table.key)
        if before != facts:
            stock.changed += 1
            stock.stale.append((number, None))
            base.execute("UPDATE segment SET facts = ?, count = ? WHERE id = ?", (facts, table.count, number))
    if known:
        raise UsageError(
            f"{min(known)}, which was begun with, is gone: bring it back, or --restart begins anew without it"
        )
    stock.repeated += len(tables) - len({table.key for table in tables})
