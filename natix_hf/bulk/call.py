"""One bulk call: what it asks, what was begun before it, and the files around its table.

While the table `answers.csv` is made, `answers.csv.parts/` beside it holds the list of pictures and the answers so
far. Afterwards `answers.csv.about.json` says what the table answers.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from natix_hf.bulk.copies import decision_folders
from natix_hf.bulk.plan import Plan, Segment, Stock
from natix_hf.bulk.rows import Columns, Rows, safe
from natix_hf.bulk.sources import STDIN, File, Source, files_of, find_sources, left_out
from natix_hf.bulk.table import Summary, TableKind, join, parts_in, require_whole
from natix_hf.bulk.work import FAILED, Done, Task
from natix_hf.disk import FULL, OF_A_DISK, as_size, disk_error, free_bytes
from natix_hf.errors import NatixError, UsageError, VerificationError, cut
from natix_hf.intake.columns import on_hub
from natix_hf.provenance.durable import TEMPORARY_PREFIX, discard, make_folder, remove_folder, replace, settle_file
from natix_hf.provenance.files import check_guards, file_sha256, read_json, remove_temporaries, write_json
from natix_hf.provenance.owner import OWNER, at_work

_HEADER, _SCHEMA = "header.json", 1
# How a line calls what may differ between two calls.
_WORDS = {"bundle": "the manifest of the bundle", "lists": "what a list names, seen from the current folder,"}
_WORDS |= {"only": "--only", "copy_to": "--copy-to", "explain": "--explain", "image_column": "--image-column"}
_WORDS |= {"split": "--split", "config": "--config", "batch_size": "--batch-size"}
_WORDS |= {"version": "the version of natix_hf"}


class Call:
    """A call for one table.

    Args:
        question: All that the answers and their form depend on, as JSON values.
    """

    def __init__(
        self, target: Path, kind: TableKind, columns: Sequence[str], question: dict[str, Any], arguments: list[str],
        where: Columns, tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.target, self.kind, self.names, self.question = target, kind, tuple(columns), question
        self.arguments, self.columns, self.tell = arguments, where, tell
        self.parts, self.about = parts_of(target), about_of(target)
        self.plan = Plan(self.parts)
        self.sources: list[Source] = []
        self.replaces: str | None = None  # the sha256 of the table that is replaced
        self.lists: dict[str, str] = {}
        self.done_before = 0

    def find(self, restart: bool) -> Summary | None:
        """Look at what there is under the name of the table, and at the sources. Returns the summary of a table that
        is complete.

        Raises:
            UsageError: if the table exists and is no complete answer to this call.
        """
        if self.target.is_dir():
            raise UsageError(f"--out {self.target} is a folder: name a file")
        if (process := at_work(self.parts)) is not None:
            raise UsageError(f"{process} is at work on {self.target}: wait for it or end it, or name another --out")
        for name in (self.parts.name, self.about.name):  # what a call that was killed was about to remove or write
            for path in self.target.parent.glob(f"{glob.escape(f'{TEMPORARY_PREFIX}{name}')}-*"):
                discard(path)
        exists = os.path.lexists(self.target)
        header = None if restart else self._header()
        if restart:
            if exists:
                self.replaces = self._require_ours("remove it yourself, or name another --out")
            remove_folder(self.parts)
        elif exists and header is not None and header["replaces"] == file_sha256(self.target):
            self.replaces = header["replaces"]  # a call with --restart was interrupted
        elif exists:
            self._require_ours("name another --out, or move it away")
            return self._complete()
        if header is not None:
            self.columns.commits.update(header["commits"])
        self.sources = find_sources(self.arguments, self.columns)
        try:
            make_folder(self.parts)
        except OSError as error:
            if error.errno in OF_A_DISK and error.errno != errno.EROFS:
                raise
            raise UsageError(f"--out {self.target} cannot be written ({error.strerror}): name another place") from None
        return None

    def _require_ours(self, way_out: str) -> str:
        if not self.target.is_file() or not self.about.is_file():
            raise UsageError(f"{self.target} exists, and no {self.about.name} says what it answers: {way_out}")
        sha256 = file_sha256(self.target)
        told = read_json(self.about)
        if not isinstance(told, dict) or told.get("sha256") != sha256:
            raise UsageError(f"{self.target} exists and was changed after it was written: {way_out}")
        return sha256

    def _complete(self) -> Summary:
        """The summary of a table that exists, if it answers this very call.

        Raises:
            UsageError: if it answers another one, or if the sources have changed since.
        """
        told = read_json(self.about)
        self._require_same(told["question"], f"{self.target} is complete and answers another call")
        self.columns.commits.update(told["commits"])
        self.sources = find_sources(self.arguments, self.columns)
        with tempfile.TemporaryDirectory() as scratch:
            plan = Plan(Path(scratch))
            stock = plan.take_stock(self._files(), self.tables, lambda stock: None)
            digest = plan.digest()
        self._require_same({"lists": told["lists"]}, f"{self.target} is complete", {"lists": self.lists})
        if digest != told["digest"]:
            now = "more than are known" if stock.pictures is None else f"{stock.pictures:,}"
            raise UsageError(
                f"{self.target} is complete for {told['pictures']:,} pictures, and the sources have changed since "
                f"({now} now): name another --out, or --restart answers all of them again"
            )
        if self.parts.is_dir():  # killed after the table was there
            remove_folder(self.parts)
        return Summary(self.target, told["pictures"], told["failed"], told["decisions"], told["rows"], already=True)

    def _header(self) -> dict[str, Any] | None:
        path = self.parts / _HEADER
        if not path.is_file():
            return None
        try:
            header: dict[str, Any] = read_json(path)
        except VerificationError as error:
            raise UsageError(f"{error}: --restart begins anew") from None
        if not isinstance(header, dict) or header.get("schema") != _SCHEMA:
            raise UsageError(f"{self.parts} was begun by another version of natix_hf: --restart begins anew")
        return header

    def _require_same(self, before: dict[str, Any], what: str, now: dict[str, Any] | None = None) -> None:
        for key, value in (self.question if now is None else now).items():
            if before.get(key) != value:
                old, new = cut(before.get(key)), cut(value)
                raise UsageError(
                    f"{what}: {_WORDS.get(key, key)} was {old} and is {new} now: make the same call, name another "
                    "--out, or --restart begins anew"
                )

    def take_stock(self, task: Task) -> None:
        """Find every picture, and drop the answers to those that have changed since a call before.

        Raises:
            UsageError: if there is none, or a call before asked something else.
        """
        header = self._header()
        if header is None:
            for path in self.parts.iterdir():
                if path.is_file():
                    path.unlink()
        else:
            self._require_same(header["question"], f"{self.parts} holds the beginning of another call")
            if not self.plan.whole():  # a new list would give the places of the answers to other pictures
                raise UsageError(f"{self.plan.path} is damaged or missing: --restart begins anew")
        self._tidy(task)

        def forget(stock: Stock) -> None:
            if header is not None:
                what = f"{self.parts} holds the beginning of another call"
                self._require_same({"lists": header["lists"]}, what, {"lists": self.lists})
            self._forget(stock)

        stock = self.plan.take_stock(self._files(), self.tables, forget)
        self._tell(stock, header is not None)
        if stock.pictures == 0 and not any(source.kind == "list" for source in self.sources):
            raise UsageError(f"{', '.join(self.arguments[:3])}: no pictures{left_out(self.sources)}")
        if header is None:
            facts = {"question": self.question, "lists": self.lists, "commits": self.columns.commits}
            write_json(self.parts / _HEADER, {"schema": _SCHEMA, **facts, "replaces": self.replaces})

    def _tidy(self, task: Task) -> None:
        """Remove what interrupted writes have left."""
        folders = [self.parts] + ([task.explain] if task.explain is not None else [])
        if task.copy_to is not None:
            folders += [task.copy_to / name for name in decision_folders(task.bundle.policy.labels).values()]
        for folder in folders:
            if folder.is_dir():
                remove_temporaries(folder)

    def _files(self) -> Iterator[File]:
        alone = len(self.sources) == 1
        for number, source in enumerate(self.sources):
            digest = hashlib.sha256()
            for file in files_of(source, alone, self._ours, self.columns):
                if source.kind == "list":
                    # whole: a name seen from another folder is another picture
                    digest.update(os.fsencode(os.path.abspath(file.path)) + b"\n")
                yield file
            if source.kind == "list":
                self.lists[str(number)] = digest.hexdigest()

    def _ours(self, path: str) -> bool:
        """True for what this call writes, where the table lies in a source."""
        name = os.path.basename(path)
        if not (name.startswith(self.target.name) or self.parts.name in path):
            return False
        place, folder = os.path.abspath(path), os.path.abspath(self.target.parent)
        return place in (f"{folder}{os.sep}{path.name}" for path in (self.target, self.about)) or place.startswith(
            f"{folder}{os.sep}{self.parts.name}{os.sep}"
        )

    def tables(self) -> list[Rows]:
        return [table for source in self.sources for table in source.tables]

    def _forget(self, stock: Stock) -> None:
        """Remove the parts that hold answers to what has changed."""
        whole = {segment for segment, place in stock.stale if place is None}
        places: dict[int, list[int]] = {}
        for segment, place in stock.stale:
            if place is not None:
                places.setdefault(segment, []).append(place)
        for known in places.values():
            known.sort()
        for part in parts_in(self.parts):
            known = places.get(part.segment, [])
            within = bisect_left(known, part.start) < bisect_left(known, part.stop)
            if part.segment in whole or within:
                part.path.unlink()
            else:
                self.done_before += part.stop - part.start

    def _tell(self, stock: Stock, again: bool) -> None:
        for source in self.sources:
            self.tell(f"source   {source.argument}: {source.said}{left_out([source])}")
        pictures = (
            "a number of pictures that is known at their end" if stock.pictures is None else f"{stock.pictures:,}"
        )
        twice = f"; {stock.repeated:,} are named twice and answered once" if stock.repeated else ""
        self.tell(f"pictures {pictures}{twice}")
        if again:
            facts = [f"{self.done_before:,} were answered before"]
            facts += [f"{stock.new:,} are new"] if stock.new else []
            facts += [f"{stock.changed:,} have changed and are answered again"] if stock.changed else []
            facts += [f"{stock.gone:,} are gone, and keep their rows"] if stock.gone else []
            self.tell(f"goes on  {', '.join(facts)}")

    def follow(self, commits: dict[str, str | None]) -> None:
        """Find the tables again in a process that did not take stock."""
        if self.sources:
            return
        self.columns.commits.update(commits)
        if any(segment[1] is not None for segment in self.plan.keys()):
            self.sources = find_sources(self.arguments, self.columns)
            for source in self.sources:
                if source.kind == "folder":
                    for _ in files_of(source, len(self.sources) == 1, self._ours, self.columns):
                        pass

    def segments(self) -> list[Segment]:
        return self.plan.segments(self.tables())

    def finish(self, everybody: Sequence[Done], seconds: float) -> Summary:
        """Join the parts into the table, once they are complete."""
        parts = parts_in(self.parts)
        for segment in self.segments():
            require_whole(parts, segment.number, segment.count, self.parts)
        joined = self.parts / f"joined{self.target.suffix}"
        joined.unlink(missing_ok=True)
        sha256 = join(parts, self.names, self.kind, joined)
        settle_file(joined, joined.stat().st_mode & 0o777)
        counts = sum((part.counts for part in parts), Counter[str]())
        failed, pictures = counts.pop(FAILED, 0), sum(part.stop - part.start for part in parts)
        rows = sum(part.rows for part in parts)
        facts = {"pictures": pictures, "failed": failed, "decisions": dict(counts), "rows": rows, "sha256": sha256}
        asked = {"question": self.question, "lists": self.lists, "commits": self.columns.commits}
        check_guards(joined)
        if os.path.lexists(self.target) and self.replaces != file_sha256(self.target):
            raise UsageError(f"{self.target} has appeared meanwhile: move it away, then the same command ends")
        write_json(self.about, {"schema": _SCHEMA, **facts, **asked, "digest": self.plan.digest()})
        replace(joined, self.target)
        now, copied, explained = (sum(getattr(done, name) for done in everybody) for name in Done.SUMS)
        return Summary(self.target, pictures, failed, dict(counts), rows, now, seconds, copied, explained)

    def clean_up(self, complete: bool) -> None:
        """Remove the parts once the table is there, or while they hold no answer."""
        if self.parts.is_dir() and (complete or not any(self.parts.glob("part-*"))):
            remove_folder(self.parts)
        # On a full disk the mark could not say that this process has left.
        elif (process := at_work(self.parts)) is not None and process.startswith(f"process {os.getpid()} on "):
            shutil.rmtree(self.parts / OWNER, ignore_errors=True)

    @contextmanager
    def naming_the_disk(self) -> Iterator[None]:
        """Say of a full or failing disk that the same command goes on."""
        try:
            yield
        except Exception as error:
            disk = disk_error(error)
            if disk is None or disk.errno not in OF_A_DISK:
                raise
            place = os.fsdecode(disk.filename) if disk.filename is not None else str(self.parts)
            free = as_size(free_bytes(self.target.parent))
            way_out = "free some space" if disk.errno in (*FULL, errno.EFBIG) else "look at the disk"
            raise NatixError(
                f"{place} could not be written ({disk.strerror}; {free} free): {way_out}, then the same command "
                "goes on"
            ) from error


def parts_of(target: Path) -> Path:
    """The folder beside a table in which it is made."""
    return target.with_name(f"{target.name}.parts")


def about_of(target: Path) -> Path:
    """The file beside a table that says what it answers."""
    return target.with_name(f"{target.name}.about.json")


def begun_backend(target: Path) -> str | None:
    """The backend that the beginning of a table, or the whole one, was answered with. None: there is none, or nothing
    tells it. A backend that is measured anew at each start might be another one, whose bits differ."""
    for path in (parts_of(target) / _HEADER, about_of(target)):
        if path.is_file():
            try:
                found = read_json(path)["question"]["backend"]
            except (VerificationError, TypeError, KeyError):  # damaged, which is told when the call begins
                return None
            return found if isinstance(found, str) else None
    return None


def whole_name(argument: str) -> str:
    """An argument as another call from another folder would have to name it."""
    return argument if argument == STDIN or on_hub(argument) else safe(os.path.abspath(os.path.expanduser(argument)))
