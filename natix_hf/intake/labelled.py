"""Tables that name pictures: a class, a split and further columns for each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any

from natix_hf.errors import DataError, cut
from natix_hf.intake.files import File, Found, find_files
from natix_hf.intake.kinds import kind_of
from natix_hf.intake.names import is_outside
from natix_hf.intake.said import Said, classes_of_marks
from natix_hf.intake.splitwords import SPLITS, split_of, split_of_file
from natix_hf.intake.table_files import read_parquet
from natix_hf.intake.tables import Table, match_pictures, one_hot_columns, read_table
from natix_hf.intake.words import class_name, spelled

LABEL_COLUMN = "label"  # the default of `data.label_column`
# Columns that hold the labels where `data.label_column` does not exist, if there is one of them.
_LABEL_COLUMNS = (LABEL_COLUMN, "labels", "class", "classes", "class_name", "category", "target", "answer", "tag")
SPLIT_COLUMNS = ("split", "subset")
_SUBMISSION = re.compile(r"(^|[^a-z])submission([^a-z]|$)")  # Kaggle's example of an answer, `sample_submission.csv`


def read_tables(found: Found, image_column: str, label_column: str, positive_class: str | None, strict: bool) -> Said:
    """Read every table of a source that names pictures.

    Args:
        found: The files of the source.
        image_column, label_column, positive_class: The recipe's keys.
        strict: False: a table that cannot be read is left out with the reason, because other things give the labels.

    Raises:
        DataError: If a table cannot be read (`strict`), or its columns do not say what the labels are.
    """
    known = {file.place: file for file in found.pictures}
    said = Said(by="")
    readers = []
    parquet = {file.name for file in found.columns if file.path.suffix.lower() == ".parquet"}
    for file in (*found.tables, *(file for file in found.columns if file.name in parquet)):
        if _SUBMISSION.search(PurePosixPath(file.place).stem.lower()):
            said.notes.append(f"{file.place} was not used: the labels of a submission are no labels of its pictures")
            continue
        try:
            content = b"" if file.name in parquet else found.read(file)
            table = read_parquet(file.place, file.path) if file.name in parquet else read_table(file.place, content)
            places = known or _beside(found, table)
            matched = match_pictures(table, places, _exists(found), image_column)
        except DataError as error:
            if strict:
                raise DataError(f"{error}; or move the table out of {found.source}") from None
            said.notes.append(f"{file.place} was not used: {error}")
            continue
        if matched is None:
            continue
        try:
            labels = _labels_of(table, matched.column, label_column, positive_class)
        except DataError as error:
            if strict:
                raise
            labels = None
            said.notes.append(f"{file.place} gives no labels, the folders do: {error}")
        said.files.add(file.name)
        said.notes += [*table.notes, *matched.notes]
        readers.append(_Read(table, matched.pictures, matched.column, labels, places))
    said.by = _names([read.table.name for read in readers if read.labels is not None])
    twice = _Twice()
    for read in readers:
        _take(said, read, found, twice)
    said.notes += twice.notes()
    return said


@dataclass(frozen=True)
class _Labels:
    """The labels of a table's rows, the columns that they come from, and the class that means yes if that is plain."""

    values: list[str | None]
    columns: frozenset[str]
    yes: str | None = None


@dataclass(frozen=True)
class _Read:
    table: Table
    pictures: Sequence[str | None]
    path_column: str
    labels: _Labels | None
    places: Mapping[str, File]


@dataclass
class _Twice:
    """Pictures that several rows name, in all and with different splits, and the first of each."""

    rows: int = 0
    splits: int = 0
    first: str = ""
    torn: str = ""

    def notes(self) -> list[str]:
        found = []
        if self.rows:
            found.append(f"{self.rows:,} rows of tables name a picture that a row before names, such as {self.first}")
        if self.splits:
            found.append(
                f"{self.splits:,} pictures stand in two splits, such as {self.torn}: each counts for test before "
                "validation, and for validation before train"
            )
        return found


def _beside(found: Found, table: Table) -> dict[str, File]:
    """The pictures of a table that is the source itself: those that it names, else all below its folder."""
    if found.source.is_dir() or kind_of(found.source.name) != "table":
        return {}
    values = {value for row in table.rows for value in row.values() if isinstance(value, str)}
    named = {value.replace("\\", "/").removeprefix("./") for value in values if kind_of(value) == "picture"}
    exists = _exists(found)
    here = {name for name in named if not is_outside(name) and not is_outside(normpath(name)) and exists(name)}
    if not here and not any(exists(name) for name in named):
        around = find_files(found.root)
        return {file.place: file for file in around.pictures}
    return {name: File(name, name, found.root / name) for name in here}


def _exists(found: Found) -> Callable[[str], bool]:
    return lambda name: os.path.isfile(os.path.join(found.root, name))


def _labels_of(table: Table, path_column: str, label_column: str, positive_class: str | None) -> _Labels | None:
    column = label_column_of(table.columns, path_column, label_column, table.name)
    if column is not None:
        values = [
            class_name(row.get(column), f"{table.name} line {line}")
            for row, line in zip(table.rows, table.lines, strict=True)
        ]
        return _Labels(values, frozenset({column}))
    hot = one_hot_columns(table, [path_column]) if label_column == LABEL_COLUMN else None
    if hot is None:
        return None
    present = {str(i): [name for name in hot if _is_one(row[name])] for i, row in enumerate(table.rows)}
    classes, yes = classes_of_marks(present, hot, positive_class, table.name)
    return _Labels([classes[str(i)] for i in range(len(table.rows))], frozenset(hot), yes)


def _is_one(value: Any) -> bool:
    return float(value) == 1.0


def label_column_of(columns: Sequence[str], apart: str, label_column: str, where: str) -> str | None:
    """The column of the labels: the recipe's, in any case, or if that is the default, the one with a usual name.

    Args:
        columns: All columns.
        apart: The column of the pictures.
        label_column: The recipe's key.
        where: The table, for the error.

    Raises:
        DataError: If several have a usual name.
    """
    if label_column in columns:
        return label_column
    by_spelling = {spelled(name): name for name in columns if name != apart}
    if spelled(label_column) in by_spelling:
        return by_spelling[spelled(label_column)]
    if label_column != LABEL_COLUMN:  # what a person has typed is not replaced
        return None
    usual = [by_spelling[name] for name in _LABEL_COLUMNS if name in by_spelling]
    if len(usual) > 1:
        raise DataError(f"{where} has the columns {', '.join(usual)}: set data.label_column to the labels' one")
    return usual[0] if usual else None


def _take(said: Said, read: _Read, found: Found, twice: _Twice) -> None:
    table, split_column = read.table, _split_column(read.table, said.notes)
    apart = {read.path_column, split_column, *(read.labels.columns if read.labels else ())}
    by_name = _split_of_table(table.name)
    known = {file.place for file in found.pictures}
    before: set[str] = set()
    for i, (row, line, place) in enumerate(zip(table.rows, table.lines, read.pictures, strict=True)):
        where = f"{table.name} line {line}"
        if place is None:
            said.missing.append(f"{where}: there is no picture {str(row.get(read.path_column))[:80]}")
            continue
        if place not in known:
            if place not in read.places and not is_outside(place):
                continue  # a file of the source that cannot be read here: it is left out with the reason
            said.outside[place] = read.places.get(place) or File(place, place, found.root / place)
        if place in before:
            twice.rows += 1
            twice.first = twice.first or f"{where}: {place}"
        before.add(place)
        if read.labels is not None:
            _say_class(said, place, read.labels.values[i], where)
            said.yes = said.yes or read.labels.yes
        split = split_of(row[split_column]) if split_column is not None else by_name
        if split is not None:
            said.splits[place] = _stricter(split, said.splits.get(place), place, twice)
        for column in table.columns:
            if column not in apart:
                said.columns.setdefault(column, {})[place] = row.get(column)


def _say_class(said: Said, place: str, name: str | None, where: str) -> None:
    before = said.classes.get(place)
    if place in said.classes and before is not None and name is not None and spelled(before) != spelled(name):
        said.refused[place] = f"it has both labels: {before} in {said.origins[place]}, {name} in {where}"
    if before is None:
        said.classes[place] = name
        said.origins[place] = where


def _stricter(split: str, before: str | None, place: str, twice: _Twice) -> str:
    if before is None or before == split:
        return split
    twice.splits += 1
    twice.torn = twice.torn or place
    return max(split, before, key=SPLITS.index)


def _split_column(table: Table, notes: list[str]) -> str | None:
    """The column that names the split of every row, if there is one."""
    for name in table.columns:
        if name.lower() in SPLIT_COLUMNS:
            values = [row.get(name) for row in table.rows]
            strange = [value for value in values if not isinstance(value, str) or split_of(value) is None]
            if not strange:
                return name
            notes.append(
                f"{table.name}: the column {cut(name)} gives no splits, because of {len(strange):,} values such as "
                f"{cut(str(strange[0]))}: each row must have train, validation or test there"
            )
    return None


def _split_of_table(name: str) -> str | None:
    path = PurePosixPath(name)
    folders = [split for part in reversed(path.parent.parts) if (split := split_of(part)) is not None]
    return split_of_file(path.stem) or (folders[0] if folders else None)


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more tables" if len(names) > 3 else "")
