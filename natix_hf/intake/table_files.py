"""Tables beside pictures: csv, tsv and jsonl as people write them."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natix_hf.errors import DataError, cut, first_line

_TEXT_TABLES, _JSON_TABLES = (".csv", ".tsv"), (".jsonl", ".ndjson")
_SEPARATORS = {",": "','", ";": "';'", "\t": "a tab", "|": "'|'"}
# UTF-32 comes first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_LONGEST_CELL = 16 * 2**20
PICTURE = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif|avif|hei[cf]|jxl|mpo)$", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """A table as it was written.

    Args:
        name: Its file, relative to the root.
        columns: Names of the columns.
        rows: The values. Text is stripped, an empty cell is None; a jsonl file keeps its numbers and booleans.
        lines: The line of the file where each row begins, from 1.
        notes: What was unusual: the encoding, the separator, what was left out.
    """

    name: str
    columns: list[str]
    rows: list[dict[str, Any]]
    lines: list[int]
    notes: list[str]


def is_table(name: str) -> bool:
    """Whether a file is a table, by its ending."""
    return name.lower().endswith(_TEXT_TABLES + _JSON_TABLES)


def read_table(name: str, content: bytes) -> Table:
    """Read a table.

    Raises:
        DataError: If the file is no text, has no header or one name twice, or a line cannot be read. It names the
            line.
    """
    notes: list[str] = []
    text = _decode(name, content, notes)
    if name.lower().endswith(_JSON_TABLES):
        return _read_jsonl(name, text, notes)
    return _read_separated(name, text, notes)


def read_parquet(name: str, path: Path) -> Table:
    """Read a parquet file that names pictures, as `metadata.parquet` does. Its lines are numbers of rows, from 1.

    Raises:
        DataError: If it is damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} cannot be read as parquet ({first_line(error)})") from None
    rows = [{key: (v.strip() or None) if isinstance(v, str) else v for key, v in row.items()} for row in rows]
    return Table(name, list(rows[0]) if rows else [], rows, list(range(1, len(rows) + 1)), [])


def _decode(name: str, content: bytes, notes: list[str]) -> str:
    encoding = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        if encoding != "utf-8":
            raise DataError(f"{name}, line {line}: not {encoding.upper()}, which its first bytes promise") from error
        try:
            text = content.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(f"{name}, line {line}: neither UTF-8 nor Windows-1252: save it as UTF-8") from error
        notes.append(f"{name}: read as Windows-1252, not UTF-8 (line {line})")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{name}, line {line}: zero bytes, so it is no plain text: save it as UTF-8")
    return text


def _read_jsonl(name: str, text: str, notes: list[str]) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.isspace():
            continue
        try:
            row = _DECODER.decode(line.strip())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number}: broken JSON: {_cut(first_line(error))}") from error
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number}: each line must be one JSON object: {_cut(line.strip())}")
        row = {key.strip(): (value.strip() or None) if isinstance(value, str) else value for key, value in row.items()}
        columns.update(dict.fromkeys(row))
        rows.append(row)
        lines.append(number)
    if not rows:
        raise DataError(f"{name} is empty: each line must be one JSON object")
    if any(len(row) < len(columns) for row in rows):
        rows = [{column: row.get(column) for column in columns} for row in rows]
    return Table(name, list(columns), rows, lines, notes)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {cut(next(key for key in keys if keys.count(key) > 1))} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=lambda word: None if word == "NaN" else float(word)
)


def _records(name: str, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The line where each record begins, and its cells."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    begins = 1
    try:
        for cells in reader:
            if cells:
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}, line {begins}: {_cut(first_line(error))}: is a quote missing?") from error


def _read_separated(name: str, text: str, notes: list[str]) -> Table:
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        return _read_cells(name, text, notes)
    finally:
        csv.field_size_limit(limit)


def _read_cells(name: str, text: str, notes: list[str]) -> Table:
    skipped = 0
    if named := re.match(r"sep=(.)\r?\n?", text):  # Excel's own first line
        text, skipped = text[named.end() :], 1
    usual = "\t" if name.lower().endswith(".tsv") else ","
    separator = named[1] if named else _separator(text, usual)
    if separator != usual:
        notes.append(f"{name}: separated by {_SEPARATORS.get(separator, repr(separator))}")
    records = ((line + skipped, cells) for line, cells in _records(name, text, separator))
    columns, kept = _header(name, records, notes)
    return _rows(name, columns, kept, records, notes)


def _separator(text: str, usual: str) -> str:
    """The separator that divides most of the first lines into as many cells as the header, and into the most."""
    best, choice = (0.0, 0), usual
    for separator in sorted(_SEPARATORS, key=lambda candidate: candidate != usual):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        try:
            widths = [len(cells) for cells in itertools.islice(reader, 100) if cells]
        except csv.Error:
            continue
        if widths and widths[0] > 1:
            best, choice = max((best, choice), ((widths.count(widths[0]) / len(widths), widths[0]), separator),
                               key=lambda pair: pair[0])  # fmt: skip
    return choice


def _header(name: str, records: Iterator[tuple[int, list[str]]], notes: list[str]) -> tuple[list[str], list[int]]:
    """The names of the columns, and the places of those that have one."""
    line, cells = next(((line, cells) for line, cells in records if any(map(str.strip, cells))), (0, []))
    if not cells:
        raise DataError(f"{name} is empty: its first line must name the columns, such as file_name,label")
    columns = [cell.strip() for cell in cells]
    if any(PICTURE.search(column) for column in columns) or all(map(_is_number, columns)):
        raise DataError(f"{name} has no header: line {line} is {cut(','.join(columns))}: write the names of the "
                        "columns above it, such as file_name,label")  # fmt: skip
    kept = [place for place, column in enumerate(columns) if column]
    names = [columns[place] for place in kept]
    if double := next((column for column in names if names.count(column) > 1), None):
        raise DataError(f"{name}, line {line}: two columns are called {cut(double)}: rename one")
    if len(kept) < len(columns):
        notes.append(f"{name}: {_count(len(columns) - len(kept), 'column')} without a name left out")
    return columns, kept


def _rows(
    name: str, columns: list[str], kept: list[int], records: Iterator[tuple[int, list[str]]], notes: list[str]
) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    width, names, empty = len(columns), [columns[place] for place in kept], 0
    whole, short = len(kept) == width, list[int]()
    for line, cells in records:
        values = [cell.strip() or None for cell in cells]
        if len(values) != width:
            if any(values[width:]):
                raise DataError(f"{name}, line {line}: {len(values)} cells, but the header has {width} "
                                f"({_cut(', '.join(names))}): quote a cell that holds the separator")  # fmt: skip
            short += [line] * (len(values) < width)
            values = values[:width] + [None] * (width - len(values))
        if not any(values):
            empty += 1
            continue
        rows.append(dict(zip(names, values if whole else [values[place] for place in kept], strict=True)))
        lines.append(line)
    if empty:
        notes.append(f"{name}: {_count(empty, 'empty row')} left out")
    if short:
        notes.append(f"{name}: {_count(len(short), 'row')} with fewer cells than the header, such as line {short[0]}")
    return Table(name, names, rows, lines, notes)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number > 1 else "")


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
