"""Files of answers as columns: csv, tsv, jsonl, parquet and npz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natix_hf.errors import DataError, UsageError, cut, first_line
from natix_hf.intake.table_files import is_table, read_table


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Args:
        name: The file.
        columns: A list or an array of each column. Those of an npz file may differ in length.
        lines: Where each row begins, for errors; at least as long as the longest column.
        unit: What `lines` count.
        notes: What was unusual about the file.
    """

    name: str
    columns: dict[str, Any]
    lines: Sequence[int]
    unit: str
    notes: list[str]

    def where(self, row: int) -> str:
        return f"{self.name}, {self.unit} {self.lines[row]}"

    @property
    def said(self) -> str:
        return f"its columns are {', '.join(list(self.columns)[:20])}"


def read_columns(path: Path) -> Columns:
    """Read every column of a file.

    Raises:
        UsageError: if the file is missing or of another kind.
        DataError: if it is damaged.
    """
    name, kind = path.name, path.suffix.lower()
    if not path.is_file():
        raise UsageError(f"there is no file {path}: name a csv, tsv, jsonl, parquet or npz file of answers")
    if is_table(name):
        read = read_table(name, path.read_bytes())
        columns: dict[str, Any] = {column: [row[column] for row in read.rows] for column in read.columns}
        return Columns(name, columns, read.lines, "line", read.notes)
    if kind == ".parquet":
        return _of_arrays(name, _parquet(path))
    if kind == ".npz":
        return _of_arrays(name, _npz(path))
    raise UsageError(f"{path} is no table of answers: use csv, tsv, jsonl, parquet or npz")


def _of_arrays(name: str, columns: dict[str, Any]) -> Columns:
    rows = max((len(values) for values in columns.values()), default=0)
    return Columns(name, columns, range(1, rows + 1), "row", [])


def _parquet(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        read = parquet.read_table(path)
        doubled = next((name for name in read.column_names if read.column_names.count(name) > 1), None)
        if doubled is not None:
            raise DataError(f"{path.name}: two columns are called {cut(doubled)}: rename one")
        return {name: _values(read[name]) for name in read.column_names}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} cannot be read as parquet ({first_line(error)})") from None


def _values(column: Any) -> Any:
    import pyarrow as pa

    kind = column.type
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return column.to_numpy() if plain and not column.null_count else column.to_pylist()


def _npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
            text = {name: np.char.decode(array, "utf-8") for name, array in found.items() if array.dtype.kind == "S"}
    except Exception as error:  # zipfile, zlib and numpy raise many kinds
        raise DataError(f"{path.name} cannot be read as npz ({first_line(error)})") from None
    return {name: array for name, array in (found | text).items() if array.ndim}
