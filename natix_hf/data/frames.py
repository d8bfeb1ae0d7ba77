"""The undecoded frames of sources that are streamed: folders of pictures, tar shards, tables, datasets on the Hub.

A shard is what one reader reads in turn. `datasets` shuffles the shards and divides them among ranks and workers.
"""

from __future__ import annotations

import glob
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import numpy as np

from natix_hf.data.config import DataConfig, GroupPattern
from natix_hf.data.groups import group_key, group_rules, matched
from natix_hf.data.rows import Rows
from natix_hf.errors import DataError, cut, first_line
from natix_hf.intake.columns import is_saved, load_saved, load_splits, undecoded
from natix_hf.intake.entries import too_large
from natix_hf.intake.kinds import junk_reason, kind_of
from natix_hf.provenance.files import walk
from natix_hf.provenance.hub import is_repo_id
from natix_hf.synthetic import build_synthetic

LABELLED = "data.source"  # the name of the labelled train rows among the sources of a stream
_TARS = (".tar", ".tar.gz", ".tgz")
# A folder is cut into small shards, so that every reader has some and the shuffling of shards alone mixes well.
_FILES_A_SHARD, _LEAST_SHARDS = 100, 64
_KEY = "phase4.unlabelled"
_ROWS_AT_ONCE = 16
_DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


class Frame(TypedDict):
    """One undecoded frame. `groups` are the keys of its groups; `problem` says why there is none behind this id."""

    id: str
    source: str
    cell: Any
    groups: list[str]
    problem: str | None


@dataclass(frozen=True)
class FileShard:
    """Picture files below a folder. The names are joined, because a million strings would fill the memory."""

    source: str
    root: str
    names: bytes
    patterns: tuple[GroupPattern, ...] = ()

    def frames(self) -> Iterator[Frame]:
        for raw in self.names.split(b"\0"):
            name = os.fsdecode(raw)
            cell = {"bytes": None, "path": os.path.join(self.root, name)}
            yield _frame(self.source, name, cell, _groups(self.patterns, name))


@dataclass(frozen=True)
class TarShard:
    """A tar of pictures, read from its beginning to its end. Other members, such as captions, are passed over."""

    source: str
    name: str
    path: str
    patterns: tuple[GroupPattern, ...] = ()

    def frames(self) -> Iterator[Frame]:
        last = "its beginning"
        try:
            with tarfile.open(self.path, "r|*") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep a record of every member
                    name = PurePosixPath(member.name)
                    if member.isreg() and junk_reason(str(name)) is None and kind_of(str(name)) == "picture":
                        frame_id, large = f"{self.name}/{member.name}", too_large(member.size)
                        if large is not None:
                            yield _frame(self.source, frame_id, None, problem=f"{frame_id} is not read: {large}")
                            continue
                        file = tar.extractfile(member)
                        assert file is not None
                        cell, groups = {"bytes": file.read(), "path": None}, _groups(self.patterns, member.name)
                        yield _frame(self.source, frame_id, cell, groups)
                    last = member.name
        except _DAMAGED as error:
            problem = f"{self.path} cannot be read beyond {last} ({first_line(error)})"
            yield _frame(self.source, self.name, None, problem=problem)


@dataclass(frozen=True)
class TableShard:
    """Some rows of a `datasets.Dataset`, or one shard of an `IterableDataset`.

    `ids` are the names of the rows. None: a row is named by its number in the shard.
    """

    source: str
    name: str
    rows: Any
    image_column: str
    group_columns: tuple[str, ...] = ()
    ids: tuple[str, ...] | None = None

    def frames(self) -> Iterator[Frame]:
        number = 0
        for batch in self._batches():
            cells = batch[self.image_column]
            for at, cell in enumerate(cells):
                name = self.ids[number] if self.ids is not None else f"{self.name}/{number}"
                values = {column: batch[column][at] for column in self.group_columns}
                groups = [group_key(column, str(v)) for column, v in values.items() if v is not None and v == v]
                yield _frame(self.source, name, cell, groups)
                number += 1

    def _batches(self) -> Iterator[dict[str, list[Any]]]:
        try:
            # Unlike `iter(rows)`, `rows.iter` does not divide this one shard among the loader's workers once more.
            yield from self.rows.iter(_ROWS_AT_ONCE)
        except Exception as error:  # of the network, the file system or any library that reads tables
            raise DataError(
                f"{_KEY}: {self.source} cannot be read on in {self.name} ({first_line(error)}): repair it or wait for "
                "the Hub, then continue with the same --run-dir"
            ) from None


Shard = FileShard | TarShard | TableShard


def open_sources(
    sources: Sequence[str], config: DataConfig, commits: Mapping[str, str | None], train: Rows | None = None
) -> tuple[list[Shard], dict[str, int]]:
    """List the shards of every source. No frame is read.

    Args:
        sources: Folders of pictures, tar shards or parquet files, what `save_to_disk` wrote, or Hub dataset ids.
        config: Names the image column, and the group column where a table has it.
        commits: Revisions of the Hub sources. A source without one is read from its main branch.
        train: Labelled train rows that join the stream.

    Returns:
        The shards, and by source the number of files that are neither pictures nor tars.

    Raises:
        DataError: If a source does not exist or holds no images.
    """
    shards: list[Shard] = []
    others: dict[str, int] = {}
    for number, source in enumerate(sources):
        name = Path(source).name
        same_name = [other for other in sources[:number] if Path(other).name == name]
        name = f"{len(same_name)}:{name}" if same_name else name
        path = Path(source).expanduser()
        found: list[Shard] = []
        patterns = tuple(rule for rule in group_rules(config) if isinstance(rule, GroupPattern))
        if path.is_dir() and not is_saved(path):
            found, others[source] = _of_folder(path, name, patterns)
        if not found:
            found, others[source] = _of_tables(source, name, replace(config, revision=commits.get(source))), 0
        shards += found
    if train is not None and len(train):
        ends = np.linspace(0, len(train), _shards_of(len(train)) + 1).astype(int).tolist()
        rows = train.source.select_columns([train.image_column])
        for begin, end in pairwise(ends):
            ids, part = tuple(train.ids[begin:end]), rows.select(range(begin, end))
            shards.append(TableShard(LABELLED, train.role, part, train.image_column, ids=ids))
    return shards, others


def _of_folder(root: Path, name: str, patterns: tuple[GroupPattern, ...]) -> tuple[list[Shard], int]:
    wanted = sorted(file for file, _ in walk(root) if junk_reason(file) is None)
    pictures = [file for file in wanted if kind_of(file) == "picture"]
    tars = [file for file in wanted if file.lower().endswith(_TARS)]
    shards: list[Shard] = [TarShard(name, file, str(root / file), patterns) for file in tars]
    if pictures:
        # Neighbours in a folder are often neighbours in time. A fixed random order spreads them over the shards.
        order = np.random.default_rng(len(pictures)).permutation(len(pictures))
        for part in np.array_split(order, _shards_of(len(pictures))):
            names = b"\0".join(os.fsencode(pictures[i]) for i in part)
            shards.append(FileShard(name, str(root), names, patterns))
    return shards, len(wanted) - len(pictures) - len(tars)


def _of_tables(source: str, name: str, config: DataConfig) -> list[Shard]:
    """Shards of what `datasets` loads: parquet files, a saved dataset, the built-in scenes, or a Hub dataset."""
    from datasets import IterableDataset

    shards: list[Shard] = []
    for split, rows in _load_tables(source, config).items():
        columns = rows.column_names
        if columns is None or config.image_column not in columns:
            has = ", ".join(columns or ["no columns that are known"])
            raise DataError(
                f"{_KEY}: {source} split {cut(split)} has no column {cut(config.image_column)}: it has {has}"
            )
        group_columns = tuple(rule for rule in group_rules(config) if isinstance(rule, str) and rule in columns)
        kept = rows.select_columns([config.image_column, *group_columns])
        kept = undecoded(kept, config.image_column, f"{_KEY} {source}")
        count = kept.num_shards if isinstance(kept, IterableDataset) else _shards_of(len(kept))
        for i in range(count):
            part = kept.shard(num_shards=count, index=i, contiguous=True)
            shards.append(TableShard(name, f"{split}/{i}", part, config.image_column, group_columns))
    return shards


def _load_tables(source: str, config: DataConfig) -> dict[str, Any]:
    from datasets import load_dataset

    folder = Path(source).expanduser()
    if source == "synthetic":
        return {"train": build_synthetic(config.synthetic)}
    if is_saved(folder):
        return load_saved(folder, _KEY)
    if folder.is_dir():
        tables = [glob.escape(entry.path) for name, entry in walk(folder) if name.lower().endswith(".parquet")]
        if not tables:
            raise DataError(
                f"{_KEY}: {source} holds no pictures, tar shards or parquet files that could be streamed: name "
                "another source"
            )
        return load_splits(
            lambda: load_dataset("parquet", data_files={"train": tables}, streaming=True), _KEY, str(folder)
        )
    if not is_repo_id(source):
        raise DataError(f"{_KEY}: there is no folder {source} (seen from {Path.cwd()}): set {_KEY}=[FOLDER]")
    return load_splits(lambda: load_dataset(source, revision=config.revision, streaming=True), _KEY, source)


def _shards_of(count: int) -> int:
    return max(1, min(count, max(_LEAST_SHARDS, -(-count // _FILES_A_SHARD))))


def _frame(source: str, name: str, cell: Any, groups: Sequence[str] = (), problem: str | None = None) -> Frame:
    return {"id": f"{source}:{name}", "source": source, "cell": cell, "groups": list(groups), "problem": problem}


def _groups(patterns: Sequence[GroupPattern], name: str) -> list[str]:
    found = ((rule, matched(rule.pattern, name)) for rule in patterns)
    return [group_key(rule, group) for rule, group in found if group is not None]
