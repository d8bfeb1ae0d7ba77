"""A model's answers with their true labels, from a table of any origin: csv, tsv, jsonl, parquet or npz."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natix_hf.errors import DataError, UsageError, cut
from natix_hf.intake.answer_columns import find_answers, find_column
from natix_hf.intake.answer_files import Columns, read_columns

_WORDS = {"0": 0, "1": 1, "false": 0, "true": 1}


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
    table = read_columns(path)
    if not table.lines:
        raise DataError(f"{table.name} has no rows: each row is one answer with its true label")
    kind, answers = find_answers(table, logit, probability)
    labelled = find_column(table, "label", label)
    grouped = find_column(table, "group", group, needed=False)
    if labelled is None or grouped in (*answers, labelled) or labelled in answers:
        raise DataError(f"{table.name}: one column cannot be two things: {table.said}")
    _check_lengths(table, [*answers, labelled, *([] if grouped is None else [grouped])])
    parts = [_numbers(table, column) for column in answers]
    said = logit is not None or probability is not None
    if kind == "score":
        kind = _kind_of_score(table, answers[0], parts[0])
    return AnswerTable(
        values=parts[0] if len(parts) == 1 else np.stack(parts, axis=1),
        probabilities=True if kind == "probability" else False if said else None,
        labels=_labels(table, labelled, names),
        groups=None if grouped is None else _groups(table, grouped),
        columns={kind: answers, "label": [labelled], "group": [] if grouped is None else [grouped]},
        notes=table.notes,
    )


def _check_lengths(table: Columns, columns: list[str]) -> None:
    """Refuse columns of several lengths, or without a row. Other arrays of the file may have any length."""
    lengths = {column: len(table.columns[column]) for column in columns}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{column} {length}" for column, length in lengths.items())
        raise DataError(f"{table.name}: one value for each row is needed, found lengths: {told}")
    if not lengths[columns[0]]:
        raise DataError(f"{table.name} has no rows: each row is one answer with its true label")


def _kind_of_score(table: Columns, column: str, values: np.ndarray) -> str:
    if values.min() >= 0 and values.max() <= 1:
        raise DataError(
            f"{table.name}: {column} may hold logits or probabilities: say --logit {column} or --probability {column}"
        )
    return "logit"


def _numbers(table: Columns, column: str) -> np.ndarray:
    values = table.columns[column]
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        numbers: np.ndarray = values.astype(np.float64)
    elif isinstance(values, np.ndarray) and values.dtype.kind != "U":
        raise DataError(f"{table.name}: {column} holds {values.dtype}: it must hold numbers")
    elif all(isinstance(value, list) for value in values):  # a column of pairs
        if len({len(value) for value in values}) > 1:
            raise DataError(f"{table.name}: {column} must hold one number or two in each row")
        numbers = np.array([[_number(table, column, row, x) for x in value] for row, value in enumerate(values)])
    else:
        numbers = np.array([_number(table, column, row, value) for row, value in enumerate(values)])
    finite = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(f"{table.where(row)}: {column} is {values[row]}: it must be a finite number")
    return numbers


def _number(table: Columns, column: str, row: int, value: Any) -> float:
    try:
        if isinstance(value, bool | bytes) or value is None or (isinstance(value, str) and "_" in value):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):  # a whole number may be too large for a float
        told = "empty" if value is None or value == "" else repr(value)[:60]
        raise DataError(f"{table.where(row)}: {column} is {told}: it must be a number") from None


def _listed(table: Columns, column: str) -> list[Any]:
    """The values of a column as Python holds them, one for each row."""
    values = table.columns[column]
    if isinstance(values, np.ndarray) and values.ndim > 1:
        raise DataError(
            f"{table.name}: {column} has the shape {list(values.shape)}: it must be one value for each row"
        )
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _labels(table: Columns, column: str, names: Sequence[str] | None) -> np.ndarray:
    known: dict[Any, int] = {0: 0, 1: 1} | _WORDS | {f"{word}.0": int(word) for word in ("0", "1")}
    for label, name in enumerate(names or ()):
        if known.get(name.lower(), label) != label:
            raise UsageError(
                f"--names: {cut(name)} is the name of label {label}, but in a table it stands for the other"
            )
        known[name] = label
    values = _listed(table, column)
    found = np.empty(len(values), dtype=np.int8)
    for row, value in enumerate(values):
        meant = known.get(value) if isinstance(value, str | int | float) else None
        if meant is None and isinstance(value, str):
            meant = _WORDS.get(value.lower())
        if meant is None:
            told = "empty" if value is None else repr(value)[:60]
            also = f" or {' or '.join(names)}" if names else ", or words that --names NO,YES names"
            raise DataError(f"{table.where(row)}: {column} is {told}: it must be 0 or 1{also}")
        found[row] = meant
    return found


def _groups(table: Columns, column: str) -> np.ndarray:
    values, listed = table.columns[column], _listed(table, column)
    for row, value in enumerate(listed):
        if value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip() or value == b"":
            raise DataError(
                f"{table.where(row)}: {column} is empty: name the group of every row, or leave out the column"
            )
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuU":
        return values
    return np.array([str(value) for value in listed])
