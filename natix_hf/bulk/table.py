"""Tables of answers in csv, jsonl and parquet: rows, parts that a kill cannot halve, and the whole, joined."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from natix_hf.bulk.rows import FORMULA
from natix_hf.errors import UsageError, VerificationError, cut
from natix_hf.provenance.files import atomic_file

TableKind = Literal["csv", "jsonl", "parquet"]
# float32_decision stands only in a table that compares bfloat16 with float32.
COLUMNS = ("image", "decision", "label", "probability", "threshold", "accepted", "error", "float32_decision")
Row = dict[str, Any]
_ROWS_OF_A_GROUP = 65_536
_PIECE = 1 << 20
_LONGEST = 220  # bytes of a name, so that `.tmp-<name>.about.json-<8 digits>` fits into the 255 of most file systems
_QUOTING: tuple[Literal[0], Literal[1]] = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
_PART = re.compile(r"part-(\d{4,})-(\d{12,})-(\d{12,})")


@dataclass(frozen=True)
class Summary:
    """What a bulk call leaves.

    Args:
        out (`Path`): The table.
        pictures (`int`): Pictures that were answered or failed, in this call and those before it.
        failed (`int`): Pictures that could not be answered. Their rows say why.
        decisions (`dict[str, int]`): The number of answers by decision, `"abstain"` among them.
        rows (`int`): Rows of the table; less than `pictures` where `only` leaves some out.
        now (`int`): Pictures that this call answered.
        seconds (`float`): How long this call took.
        copied (`int`): Pictures that this call copied; those that were there already do not count.
        explained (`int`): Heatmaps that this call wrote.
        already (`bool`): The table was complete before this call.
    """

    out: Path
    pictures: int
    failed: int
    decisions: dict[str, int]
    rows: int
    now: int = 0
    seconds: float = 0.0
    copied: int = 0
    explained: int = 0
    already: bool = False


def table_kind(path: Path) -> TableKind:
    """The kind of a table, by the ending of its name.

    Raises:
        UsageError: if it is none of csv, jsonl and parquet, or too long for the names of the files beside it.
    """
    if len(os.fsencode(path.name)) > _LONGEST:
        raise UsageError(f"--out {cut(path.name)}: its name is too long: give it at most {_LONGEST} bytes")
    kind = path.suffix.lower().removeprefix(".")
    if kind not in get_args(TableKind):
        raise UsageError(f"--out {path}: its name must end in .csv, .jsonl or .parquet")
    return kind  # type: ignore[return-value]


def encoded(rows: Sequence[Row], columns: Sequence[str], kind: TableKind) -> bytes:
    """Rows as they stand in a part: those of csv and jsonl as in the table, without a header, those of parquet as
    jsonl."""
    if kind == "csv":
        text = io.StringIO(newline="")
        sparing, all_quoted = (csv.writer(text, quoting=kind, lineterminator="\n") for kind in _QUOTING)
        for row in rows:
            cells = [_cell(row[name]) for name in columns]
            bare = any(isinstance(cell, str) and "\r" in cell for cell in cells)  # older csv modules leave it unquoted
            (all_quoted if bare else sparing).writerow(cells)
        return text.getvalue().encode("utf-8")
    lines = (json.dumps({name: row[name] for name in columns}, ensure_ascii=False, allow_nan=False) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        # A label of a stranger's bundle may be written to be computed. The name of a picture begins with ./ then.
        return f"'{value}" if value.startswith(FORMULA) else value
    return {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value


@dataclass(frozen=True)
class Part:
    """Answers to the places `start` to before `stop` of a segment.

    Args:
        counts: Number of answers by decision; "" counts those that failed.
        rows: Number of rows, which is less where only some decisions are wanted.
        end: The segment ends with it.
    """

    path: Path
    segment: int
    start: int
    stop: int
    counts: Counter[str]
    rows: int
    end: bool

    def body(self) -> Iterator[bytes]:
        """The rows, in pieces."""
        with self.path.open("rb") as handle:
            handle.readline()
            while piece := handle.read(_PIECE):
                yield piece


def write_part(
    folder: Path, segment: int, start: int, stop: int, body: bytes, rows: int, counts: Counter[str], end: bool
) -> None:
    """Write a part under its name in one step that outlives a power loss."""
    head = {"rows": rows, "counts": dict(counts), "end": end, "bytes": len(body)}
    head["sha256"] = hashlib.sha256(body).hexdigest()
    path = folder / f"part-{segment:04}-{start:012}-{stop:012}"
    with atomic_file(path) as temporary:
        temporary.write_bytes(json.dumps(head).encode() + b"\n" + body)


def parts_in(folder: Path) -> list[Part]:
    """The whole parts in a folder, in order. Damaged ones are removed: their pictures are answered again."""
    found = []
    for path in sorted(folder.iterdir()):
        match = _PART.fullmatch(path.name)
        if match is not None:
            part = _read_head(path, *map(int, match.groups()))
            if part is None:
                path.unlink()
            else:
                found.append(part)
    return sorted(found, key=lambda part: (part.segment, part.start))


def _read_head(path: Path, segment: int, start: int, stop: int) -> Part | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as handle:
            head = json.loads(handle.readline())
            while piece := handle.read(_PIECE):
                digest.update(piece)
        if digest.hexdigest() == head["sha256"]:
            return Part(path, segment, start, stop, Counter(head["counts"]), head["rows"], head["end"])
    except (ValueError, KeyError, TypeError):
        pass
    return None


def join(parts: Iterable[Part], columns: Sequence[str], kind: TableKind, target: Path) -> str:
    """Write the whole table, with one part in memory at a time (of parquet: one row group). Returns its sha256.

    Args:
        target: A new file.
    """
    if kind == "parquet":
        _join_parquet(parts, columns, target)
    else:
        with target.open("xb") as out:
            if kind == "csv":
                out.write((",".join(columns) + "\n").encode())
            for part in parts:
                out.writelines(part.body())
    with target.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _join_parquet(parts: Iterable[Part], columns: Sequence[str], target: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {"probability": pa.float64(), "threshold": pa.float64(), "accepted": pa.bool_()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
    rows: list[Row] = []
    with parquet.ParquetWriter(target, schema) as writer:
        for part in parts:
            for line in b"".join(part.body()).splitlines():
                rows.append(json.loads(line))
            if len(rows) >= _ROWS_OF_A_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def require_whole(parts: Sequence[Part], segment: int, count: int | None, folder: Path) -> None:
    """Check that the parts of a segment follow each other without a gap, up to its end.

    Raises:
        VerificationError: if they do not.
    """
    at, ended = 0, count == 0
    for part in (part for part in parts if part.segment == segment):
        if part.start != at:
            break
        at, ended = part.stop, part.end if count is None else part.stop == count
    else:
        if ended:
            return
    raise VerificationError(
        f"{folder}: answers from place {at} of segment {segment} on are missing: the same command answers them "
        "(do all machines write into this folder?)"
    )
