"""Rows of pictures that are no files of their own: parquet and arrow files, data sets, archives. Read in order."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from natix_hf.errors import DataError, UsageError, cut, first_line
from natix_hf.intake.archives import list_members
from natix_hf.intake.columns import hub_pictures, load_saved, load_splits, undecoded
from natix_hf.intake.entries import Entry, entries
from natix_hf.intake.formats import readable_formats
from natix_hf.intake.kinds import junk_reason, kind_of, other_reason
from natix_hf.provenance.files import listing_sha256
from natix_hf.provenance.hub import hub_origin

_AT_ONCE = 16
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet computes


@dataclass(frozen=True)
class Columns:
    """Which part of a table or data set is read; None is found by itself."""

    image_column: str | None = None
    split: str | None = None
    config: str | None = None
    commits: dict[str, str | None] = field(default_factory=dict)


def safe(name: str) -> str:
    """A file name as it stands in a table: valid Unicode, and never a formula to a spreadsheet. `./` before a relative
    name leaves it the same file."""
    if not name.isascii():
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return f"./{name}" if name.startswith(FORMULA) else name


@dataclass(frozen=True, slots=True)
class Item:
    """A picture to answer.

    Args:
        name: What stands in the table.
        cell: What `bundle.stream` takes.
        problem: Why there is nothing to answer, or None.
    """

    name: str
    cell: Any
    problem: str | None = None

    def content(self) -> bytes:
        """The bytes of the picture, undecoded. Raises OSError if its file cannot be read."""
        cell = self.cell
        if isinstance(cell, dict):
            if cell.get("bytes") is not None:
                return bytes(cell["bytes"])
            cell = cell["path"]
        with open(cell, "rb") as handle:
            return handle.read()

    def suffix(self, content: bytes) -> str:
        """The ending that fits the content, such as `.png`."""
        named = Path(self.name).suffix.lower()
        if isinstance(self.cell, str) and kind_of(self.name) == "picture":
            return named
        try:
            with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
                kind = str(image.format)
        except Exception:  # Pillow raises anything; the picture was read before
            return named
        return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}.get(kind, f".{kind.lower()}")


@dataclass(frozen=True)
class Rows:
    """A source of rows.

    Args:
        key: What tells it from other sources.
        facts: What changes when the source does.
        count: The number of rows; None: known at their end.
        read: Yields the items from a position on.
    """

    key: str
    facts: dict[str, Any]
    count: int | None
    read: Callable[[int], Iterator[Item]]


def _stat(path: Path) -> dict[str, Any]:
    facts = path.stat()
    return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}


def _key(path: Path) -> str:
    return safe(os.path.realpath(path))


def _image_column(schema: Any, columns: Columns, where: str) -> str:
    """The column that holds pictures: the one that is asked for, `image`, or the only one that may.

    Raises:
        UsageError: If there is none, or it is not clear which one it is.
    """
    import pyarrow as pa

    def holds(kind: Any) -> bool:
        binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return bool(binary or (pa.types.is_struct(kind) and "bytes" in {part.name for part in kind}))

    may = [name for name in schema.names if holds(schema.field(name).type)]
    told = f"its columns are {', '.join(schema.names[:20])}"
    asked = columns.image_column
    if asked is not None:
        if asked not in may:
            raise UsageError(f"{where} has no column {cut(asked)} that holds pictures: {told}")
        return asked
    if "image" in may or len(may) == 1:
        return "image" if "image" in may else may[0]
    if may:
        raise UsageError(f"{where}: {' and '.join(may[:5])} may hold the pictures: say --image-column NAME")
    raise UsageError(f"{where} holds no pictures: {told}")


def _item(name: str, value: Any) -> Item:
    if isinstance(value, dict):
        return Item(name, {"bytes": value.get("bytes"), "path": value.get("path")})
    return Item(name, {"bytes": value, "path": None})


def rows_of_parquet(path: Path, name: str, columns: Columns) -> Rows:
    """The rows of a parquet file, named `file/row`."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as opened:
            column, count = _image_column(opened.schema_arrow, columns, str(path)), opened.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({first_line(error)}): fetch or make it again") from None
    facts = _stat(path) | {"column": column}
    return Rows(_key(path), facts, count, partial(_read_parquet, path, safe(name), column))


def _read_parquet(path: Path, name: str, column: str, start: int) -> Iterator[Item]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as opened:
            at = 0
            groups: list[int] = []
            for group in range(opened.metadata.num_row_groups):
                rows = opened.metadata.row_group(group).num_rows
                if groups or at + rows > start:
                    groups.append(group)
                else:
                    at += rows
            for batch in opened.iter_batches(_AT_ONCE, row_groups=groups, columns=[column]) if groups else ():
                for value in batch.column(0).to_pylist() if at + batch.num_rows > start else [None] * batch.num_rows:
                    if at >= start:
                        yield _item(f"{name}/{at}", value)
                    at += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read on ({first_line(error)}): fetch or make it again") from None


def rows_of_arrow(path: Path, name: str, columns: Columns) -> Rows:
    """The rows of an arrow file, named `file/row`."""
    from datasets import Dataset

    loaded = load_splits(lambda: Dataset.from_file(str(path)), str(path), str(path))["train"]
    return _of_dataset(loaded, _key(path), safe(name), _stat(path), columns)


def rows_of_saved(folder: Path, columns: Columns) -> list[Rows]:
    """The rows of what `save_to_disk` wrote, named `split/row`."""
    loaded = load_saved(folder, str(folder))
    facts = {"listing": listing_sha256(folder)}
    key = _key(folder)
    return [
        _of_dataset(loaded[split], f"{key}#{split}", split, facts, columns)
        for split in _splits(list(loaded), columns, str(folder))
    ]


def _splits(known: list[str], columns: Columns, where: str) -> list[str]:
    if columns.split is None:
        return known
    if columns.split not in known:
        raise UsageError(f"{where} has no split {cut(columns.split)}: it has {', '.join(known)}")
    return [columns.split]


def _of_dataset(loaded: Any, key: str, name: str, facts: dict[str, Any], columns: Columns) -> Rows:
    column = _image_column(loaded.features.arrow_schema, columns, key)
    images = loaded.select_columns([column])
    images = undecoded(images, column, key) if not _is_binary(images, column) else images

    def read(start: int) -> Iterator[Item]:
        for first in range(start, len(images), _AT_ONCE):
            for at, value in enumerate(images[first : first + _AT_ONCE][column], first):
                yield _item(f"{name}/{at}", value)

    return Rows(key, facts | {"column": column}, len(images), read)


def _is_binary(images: Any, column: str) -> bool:
    return str(getattr(images.features[column], "dtype", "")).endswith("binary")


def rows_of_hub(repo_id: str, columns: Columns) -> list[Rows] | Path:
    """The rows of a data set on the Hub, streamed and named `split/row`; or the folder of one that is plain pictures,
    downloaded."""
    from datasets import load_dataset

    commit = columns.commits.get(repo_id) or hub_origin(repo_id, "dataset")["commit"]
    columns.commits[repo_id] = commit
    if columns.split is None and columns.config is None:
        pictures = hub_pictures(repo_id, commit)
        if pictures is not None:
            return pictures
    try:
        loaded = load_splits(
            lambda: load_dataset(repo_id, columns.config, revision=commit, streaming=True), repo_id, repo_id
        )
    except DataError as error:
        raise DataError(str(error).replace("data.config", "--config")) from None
    found = []
    for split in _splits(list(loaded), columns, repo_id):
        rows = loaded[split] if loaded[split].features is not None else loaded[split]._resolve_features()
        column = _image_column(rows.features.arrow_schema, columns, f"{repo_id} split {split}")
        images = rows.select_columns([column])
        images = undecoded(images, column, repo_id) if not _is_binary(images, column) else images
        found.append(
            Rows(
                f"{repo_id}#{columns.config}#{split}",
                {"commit": commit, "column": column},
                None,
                partial(_read_hub, images, repo_id, split, column),
            )
        )
    return found


def _read_hub(images: Any, repo_id: str, split: str, column: str, start: int) -> Iterator[Item]:
    try:
        for at, row in enumerate(images.skip(start) if start else images, start):
            yield _item(f"{split}/{at}", row[column])
    except Exception as error:  # of the network, or of any library that reads tables
        raise DataError(
            f"{repo_id} cannot be read on in split {split} ({first_line(error)}): the same command goes on"
        ) from None


def rows_of_archive(path: Path, before: str, left_out: Counter[str]) -> Rows:
    """The pictures in a zip or tar archive, in stored order, named by their path in it."""
    members, refused = list_members(path)
    for _, reason in [*refused, *((m.name, _why_no_picture(m.name)) for m in members)]:
        if reason is not None:
            left_out[reason if len(reason) < 60 else f"{reason[:60]}…"] += 1
    count = sum(_why_no_picture(member.name) is None for member in members)
    return Rows(_key(path), _stat(path), count, partial(_read_archive, path, before))


def _why_no_picture(name: str) -> str | None:
    if (reason := junk_reason(name)) is not None:
        return reason
    kind = kind_of(name)
    return None if kind == "picture" else other_reason(name) if kind == "other" else f"no picture but a {kind}"


def _read_archive(path: Path, before: str, start: int) -> Iterator[Item]:
    used: Iterable[Entry] = (e for e in entries(path) if e.reason is None and _why_no_picture(e.name) is None)
    for at, entry in enumerate(used):
        if at < start:
            continue
        content, name = entry.read(), safe(f"{before}{entry.name}")
        if isinstance(content, DataError):
            yield Item(name, None, str(content))
        else:
            yield Item(name, {"bytes": content, "path": entry.name})
