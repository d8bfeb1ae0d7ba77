"""Tables that name pictures: which column does, and which picture each row means."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from natix_hf.errors import DataError, cut
from natix_hf.intake.names import Found, Index, find_pictures, is_outside
from natix_hf.intake.table_files import PICTURE, Table, is_table, read_table

__all__ = ["Matched", "Table", "is_table", "match_pictures", "one_hot_columns", "read_table"]

# Names of columns that name pictures, without what is no letter. Those of the second row often hold a running number.
_USUAL = """filename file path filepath filepaths image imagepath imagefile imagefilename img imgpath imgname imagename
            images photo picture""".split()
_USUAL_IDS = "imageid imgid id name photoid pictureid frame".split()
_SAMPLE = 10_000


@dataclass(frozen=True)
class Matched:
    """The pictures of a table's rows.

    Args:
        column: The column that names them.
        pictures: For each row the picture relative to the root (`../img/0.jpg` for a file outside of it), or None if
            there is no such file. A file of the root that is no picture is named too.
        notes: What was found otherwise than it was written.
    """

    column: str
    pictures: list[str | None]
    notes: list[str] = field(default_factory=list)


def match_pictures(
    table: Table, pictures: Collection[str], exists: Callable[[str], bool], image_column: str
) -> Matched | None:
    """Find the column that names pictures, and the picture of each row.

    `image_column` is taken if any of its values is a picture, else the first column with a usual name most of whose
    values are, else any such column. `exists` tells whether there is a file, relative to the root or absolute.

    Returns:
        None if no column names pictures. Where one does, and none of them is here, each row's picture is None.

    Raises:
        DataError: If a value could mean several pictures. It names the line and the pictures.
    """
    index = Index(pictures)
    column = _column(table, index, exists, image_column)
    if column is None:
        return None
    written = [_text(row[column]) for row in table.rows]
    found = find_pictures(written, table.name, index, exists)
    for line, text, name in zip(table.lines, written, found, strict=True):
        if isinstance(name, tuple):
            raise DataError(
                f"{table.name}, line {line}: {column} {cut(text)} could be {name[0]} or {name[1]}: write the folder "
                "too"
            )
    sure: list[str | None] = [name if isinstance(name, str) else None for name in found]
    return Matched(column, sure, _notes(table, column, written, sure))


def one_hot_columns(table: Table, apart: Collection[str]) -> list[str] | None:
    """The columns that mark classes with 0 and 1 (Roboflow's `_classes.csv`), or None if another column stands there.

    Columns in `apart`, and those with a usual name for the picture, do not count.
    """
    names = [
        column for column in table.columns if column not in apart and _plain(column) not in {*_USUAL, *_USUAL_IDS}
    ]
    marks = {"0", "1", "0.0", "1.0", 0, 1}
    for column in names:
        if any(isinstance(value, list | dict) or value not in marks for value in _distinct(table, column)):
            return None
    return names if names and table.rows else None


def _distinct(table: Table, column: str) -> Collection[Any]:
    values = [row[column] for row in table.rows]
    try:
        return set(values)
    except TypeError:  # lists and objects of a jsonl file
        return values


def _plain(column: str) -> str:
    return re.sub(r"[^a-z]", "", column.lower())


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class _Share:
    """Shares of a column's values: `whole` are pictures with the ending as written, `any` with or without it, and
    `looks` end like pictures. `distinct`: no value stands twice, and there are more than two."""

    any: float = 0.0
    whole: float = 0.0
    ambiguous: float = 0.0
    looks: float = 0.0
    distinct: bool = False


def _column(table: Table, index: Index, exists: Callable[[str], bool], image_column: str) -> str | None:
    if not table.rows:
        return None
    sample = table.rows[:: -(-len(table.rows) // _SAMPLE)]

    @functools.cache
    def share(column: str) -> _Share:
        return _share([_text(row[column]) for row in sample], table.name, index, exists)

    if image_column in table.columns and share(image_column).any + share(image_column).ambiguous > 0:
        return image_column
    usual = [column for name in (*_USUAL, *_USUAL_IDS) for column in table.columns if _plain(column) == name]
    others = [column for column in table.columns if column not in usual]
    ranks: list[tuple[list[str], Callable[[str], bool]]] = [
        ([*usual, *others], lambda column: share(column).whole > 0.5),
        (usual, lambda column: share(column).any > 0.5),
        (usual, lambda column: share(column).any > 0 and _plain(column) in _USUAL),
        (usual, lambda column: share(column).ambiguous > 0.5),
        ([*usual, *others], lambda column: share(column).looks > 0.5),
        (others, lambda column: share(column).any + share(column).ambiguous > 0.5 and share(column).distinct),
    ]
    return next((column for columns, holds in ranks for column in columns if holds(column)), None)


def _share(values: Sequence[str | None], beside: str, index: Index, exists: Callable[[str], bool]) -> _Share:
    texts = [value for value in values if value]
    if not texts:
        return _Share()
    found = find_pictures(texts, beside, index, exists)
    names = [_alike_ending(text, name) for text, name in zip(texts, found, strict=True) if _counts(name, index)]
    ambiguous = sum(isinstance(name, tuple) for name in found)
    count = len(values)
    looks = sum(bool(PICTURE.search(text)) for text in texts)
    count, distinct = len(values), len(set(texts)) == len(texts) > 2
    return _Share(len(names) / count, sum(names) / count, ambiguous / count, looks / count, distinct)


def _counts(name: Found, index: Index) -> bool:
    return isinstance(name, str) and (name in index.known or is_outside(name))


def _alike_ending(text: str, name: Found) -> bool:
    return text.rpartition(".")[2].casefold() == str(name).rpartition(".")[2].casefold()


def _notes(table: Table, column: str, written: Sequence[str | None], found: Sequence[str | None]) -> list[str]:
    folder = table.name.rpartition("/")[0]
    other = [(text, name) for text, name in zip(written, found, strict=True)
             if text and name and name not in (text, f"{folder}/{text}") and not is_outside(name)]  # fmt: skip
    if not other:
        return []
    text, name = other[0]
    return [f"{table.name}: {len(other):,} of {len(found):,} pictures are not written as they lie, such as {column} "
            f"{cut(text)}, which is {name}"]  # fmt: skip
