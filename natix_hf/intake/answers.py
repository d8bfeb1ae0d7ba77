"""A model's answers with their true labels, from a table of any origin: csv, tsv, jsonl, parquet or npz."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natix_hf.errors import DataError, UsageError, first_line
from natix_hf.intake.table_files import is_table, read_table

# The usual names of columns, in small letters with _ between words. A pair is of labels 0 and 1.
_STEMS = {"logit": ("logit", "logits", "z"), "probability": ("prob", "probability", "probabilities", "proba", "p")}
_SINGLE = {
    "logit": (*_STEMS["logit"], "decision_function"),
    "probability": (*_STEMS["probability"], *(f"{stem}_1" for stem in _STEMS["probability"]), "p1"),
    "score": ("score", "scores"),
    "label": ("label", "labels", "y", "y_true", "true_label", "target", "targets", "truth", "ground_truth"),
    "group": (
        *(
            "group",
            "groups",
            "group_id",
            "video",
            "video_id",
            "vid",
            "vid_id",
            "video_info_vid_id",
            "track",
            "track_id",
        ),
        *(
            "sequence",
            "sequence_id",
            "seq",
            "seq_id",
            "clip",
            "clip_id",
            "patient",
            "patient_id",
            "subject",
            "subject_id",
        ),
    ),
}
_WORDS = {"0": 0, "1": 1, "false": 0, "true": 1}
_COMMAND = "natix-hf certify"


@dataclass(frozen=True)
class AnswerTable:
    """The columns of a table that a certificate needs.

    Args:
        values: float64 [n] or [n, 2].
        probabilities: What the values are; None: nobody said, only the name of the column.
        labels: int8 [n].
        groups: [n], or None if the table has no column for them.
        columns: The names of the columns that were read, by what they are.
        notes: What was unusual about the file.
    """

    values: np.ndarray
    probabilities: bool | None
    labels: np.ndarray
    groups: np.ndarray | None
    columns: dict[str, list[str]]
    notes: list[str]


@dataclass(frozen=True)
class _Table:
    name: str
    columns: dict[str, Any]  # a list or an array of each column
    lines: Sequence[int]
    unit: str  # what `lines` count
    notes: list[str]

    def where(self, row: int) -> str:
        return f"{self.name}, {self.unit} {self.lines[row]}"


def read_answers(
    path: Path,
    logit: str | None = None,
    probability: str | None = None,
    label: str | None = None,
    group: str | None = None,
    names: Sequence[str] | None = None,
) -> AnswerTable:
    """Read a table of answers. Columns that are not named are found by their usual names, if only one fits.

    Args:
        path: A csv, tsv, jsonl, parquet or npz file.
        logit, probability, label, group: Names of columns; of the first two only one may be given, and each may be two
            names with a comma between them, for labels 0 and 1.
        names: The names of answers 0 and 1, which the labels may be written as.

    Raises:
        UsageError: if the file is missing or of another kind, or both `logit` and `probability` are given.
        DataError: if the file is damaged, a column is missing or not clear, or a value cannot be used; the line names
            the row.
    """
    if logit is not None and probability is not None:
        raise UsageError("name one column for the answers: --logit or --probability, not both")
    table = _read(path)
    kind, answers = _answers(table, logit, probability)
    labelled = _column(table, "label", label)
    grouped = _column(table, "group", group, needed=False)
    if labelled is None or grouped in (*answers, labelled) or labelled in answers:
        raise DataError(f"{table.name}: one column cannot be two things: {_said(table)}")
    parts = [_numbers(table, column) for column in answers]
    said = logit is not None or probability is not None
    return AnswerTable(
        values=parts[0] if len(parts) == 1 else np.stack(parts, axis=1),
        probabilities=True if kind == "probability" else False if said else None,
        labels=_labels(table, labelled, names),
        groups=None if grouped is None else _groups(table, grouped),
        columns={kind: answers, "label": [labelled], "group": [] if grouped is None else [grouped]},
        notes=table.notes,
    )


def _read(path: Path) -> _Table:
    name, kind = path.name, path.suffix.lower()
    if not path.is_file():
        raise UsageError(f"there is no file {path}: name a csv, tsv, jsonl, parquet or npz file of answers")
    if is_table(name):
        read = read_table(name, path.read_bytes())
        columns: dict[str, Any] = {column: [row[column] for row in read.rows] for column in read.columns}
        table = _Table(name, columns, read.lines, "line", read.notes)
    elif kind == ".parquet":
        table = _of_arrays(name, _parquet(path))
    elif kind == ".npz":
        table = _of_arrays(name, _npz(path))
    else:
        raise UsageError(f"{path} is no table of answers: use csv, tsv, jsonl, parquet or npz")
    if not table.lines:
        raise DataError(f"{name} has no rows: each row is one answer with its true label")
    return table


def _of_arrays(name: str, columns: dict[str, Any]) -> _Table:
    rows = max((len(values) for values in columns.values()), default=0)
    return _Table(name, columns, range(1, rows + 1), "row", [])


def _parquet(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        read = parquet.read_table(path)
        doubled = next((name for name in read.column_names if read.column_names.count(name) > 1), None)
        if doubled is not None:
            raise DataError(f"{path.name}: two columns are called {doubled!r}: rename one")
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
    except Exception as error:  # zipfile, zlib and numpy raise many kinds
        raise DataError(f"{path.name} cannot be read as npz ({first_line(error)})") from None
    return {name: array for name, array in found.items() if array.ndim}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.strip().lower()).strip("_")


def _said(table: _Table) -> str:
    return f"its columns are {', '.join(list(table.columns)[:20])}"


def _answers(table: _Table, logit: str | None, probability: str | None) -> tuple[str, list[str]]:
    """What the answers are, and their one column or two."""
    for kind, given in (("logit", logit), ("probability", probability)):
        if given is not None:
            return kind, _named(table, kind, given, most=2)
    found = [(kind, [name]) for kind in ("logit", "probability", "score") for name in _usual(table, kind)]
    found += [(kind, pair) for kind in _STEMS for pair in _pairs(table, kind)]
    in_pairs = {name for _, names in found if len(names) == 2 for name in names}
    found = [(kind, names) for kind, names in found if len(names) == 2 or names[0] not in in_pairs]
    advice = f"{_said(table)}: say --logit COLUMN or --probability COLUMN"
    if not found:
        raise DataError(f"{table.name} has no column that is known to hold answers; {advice}")
    if len(found) > 1:
        several = " and ".join(", ".join(names) for _, names in found)
        raise DataError(f"{table.name}: both {several} may hold the answers; {advice}")
    [(kind, names)] = found
    if kind == "score":
        values = _numbers(table, names[0])
        if values.min() >= 0 and values.max() <= 1:
            raise DataError(
                f"{table.name}: {names[0]} may hold logits or probabilities: say --logit {names[0]} or --probability "
                f"{names[0]}"
            )
        kind = "logit"
    return kind, names


def _usual(table: _Table, kind: str) -> list[str]:
    return [name for name in table.columns if _plain(name) in _SINGLE[kind]]


def _pairs(table: _Table, kind: str) -> list[list[str]]:
    plain = {_plain(name): name for name in table.columns}
    both = [
        [plain.get(f"{stem}{between}{label}") for label in (0, 1)] for stem in _STEMS[kind] for between in ("_", "")
    ]
    return [[no, yes] for no, yes in both if no is not None and yes is not None]


def _named(table: _Table, kind: str, given: str, most: int = 1) -> list[str]:
    """The columns that are named, with a comma between two of them."""
    names = [name.strip() for name in given.split(",")]
    if given in table.columns or len(names) > most or len(set(names)) < len(names):
        names = [given]
    lacking = next((name for name in names if name not in table.columns), None)
    if lacking is not None:
        raise DataError(f"{table.name} has no column {lacking!r} for --{kind}; {_said(table)}")
    return names


def _column(table: _Table, kind: str, given: str | None, needed: bool = True) -> str | None:
    if given is not None:
        return _named(table, kind, given)[0]
    found = _usual(table, kind)
    if len(found) > 1 or (needed and not found):
        which = f"both {' and '.join(found)} may be" if found else "no column is known to be"
        raise DataError(f"{table.name}: {which} the {kind} of a row; {_said(table)}: say --{kind} COLUMN")
    return found[0] if found else None


def _numbers(table: _Table, column: str) -> np.ndarray:
    values = table.columns[column]
    if len(values) != len(table.lines):
        raise DataError(f"{table.name}: {column} has {len(values)} values, but there are {len(table.lines)} rows")
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        numbers: np.ndarray = values.astype(np.float64)
    elif all(isinstance(value, list) for value in values):  # a parquet column of pairs
        try:
            numbers = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(f"{table.name}: {column} must hold one number or two in each row") from None
    else:
        numbers = np.array([_number(table, column, row, value) for row, value in enumerate(values)])
    finite = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(f"{table.where(row)}: {column} is {values[row]}: it must be a finite number")
    return numbers


def _number(table: _Table, column: str, row: int, value: Any) -> float:
    try:
        if isinstance(value, bool) or value is None or (isinstance(value, str) and "_" in value):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        told = "empty" if value is None else repr(value)[:60]
        raise DataError(f"{table.where(row)}: {column} is {told}: it must be a number") from None


def _labels(table: _Table, column: str, names: Sequence[str] | None) -> np.ndarray:
    values = table.columns[column]
    if len(values) != len(table.lines):
        raise DataError(f"{table.name}: {column} has {len(values)} values, but there are {len(table.lines)} rows")
    known: dict[Any, int] = {0: 0, 1: 1} | _WORDS | {f"{word}.0": int(word) for word in ("0", "1")}
    for label, name in enumerate(names or ()):
        if known.get(name.lower(), label) != label:
            raise UsageError(f"--names: {name!r} is the name of label {label}, but in a table it stands for the other")
        known[name] = label
    found = np.empty(len(values), dtype=np.int8)
    for row, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        meant = known.get(value) if isinstance(value, str | int | float) else None
        if meant is None and isinstance(value, str):
            meant = _WORDS.get(value.lower())
        if meant is None:
            told = "empty" if value is None else repr(value)[:60]
            also = f" or {' or '.join(names)}" if names else ", or words that --names NO,YES names"
            raise DataError(f"{table.where(row)}: {column} is {told}: it must be 0 or 1{also}")
        found[row] = meant
    return found


def _groups(table: _Table, column: str) -> np.ndarray:
    values = table.columns[column]
    if len(values) != len(table.lines):
        raise DataError(f"{table.name}: {column} has {len(values)} values, but there are {len(table.lines)} rows")
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuU":
        return values
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    for row, value in enumerate(listed):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise DataError(
                f"{table.where(row)}: {column} is empty: name the group of every row, or leave out the column"
            )
    return np.array([str(value) for value in listed])
