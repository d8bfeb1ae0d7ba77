"""What all layouts of annotations have in common: the classes that are marked in each picture, and its split."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from natix_hf.errors import DataError
from natix_hf.intake.names import Found, Index, find_pictures

_SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
           "validation": "validation", "test": "test", "testing": "test"}  # fmt: skip
_WORD = re.compile(r"(?:^|(?<=[^a-z]))(train|training|val|valid|validation|test|testing)(?:\d{4})?(?=$|[^a-z0-9])")


@dataclass(frozen=True)
class Boxes:
    """What the annotations of a source say.

    Args:
        layout: "YOLO", "COCO", "LabelMe" or "Pascal VOC".
        names: Every class that the annotations name.
        present: The classes that are marked in each picture. One that the annotations speak of, and in which nothing
            is marked, has an empty set; one that they do not speak of is not there.
        files: The annotation files that were read.
        splits: "train", "validation" or "test" of a picture, where the layout says so.
        notes: What a user should hear.
    """

    layout: str
    names: list[str]
    present: dict[str, frozenset[str]]
    files: frozenset[str]
    splits: dict[str, str]
    notes: list[str]


@dataclass
class Marks:
    """The annotations of one layout, while they are read."""

    layout: str
    names: dict[str, None] = field(default_factory=dict)
    present: dict[str, set[str]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    splits: dict[str, dict[str, str]] = field(default_factory=dict)  # picture -> split -> the file that says so
    astrays: dict[str, list[str]] = field(default_factory=dict)  # annotation file -> what it names that is not here
    notes: list[str] = field(default_factory=list)

    def add(self, picture: str, classes: Iterable[str], file: str, split: str | None = None) -> None:
        """Note what `file` marks in a picture. Its split is that of the file, else that of its folder."""
        classes = list(classes)
        self.names.update(dict.fromkeys(classes))
        self.present.setdefault(picture, set()).update(classes)
        if split := split or split_of_folder(picture):
            self.splits.setdefault(picture, {}).setdefault(split, file)

    def astray(self, file: str, written: object) -> None:
        """Note that `file` speaks of a picture that is not here."""
        self.astrays.setdefault(file, []).append(str(written))


def gathered(marks: Marks) -> Boxes | None:
    """What was read, or None if no file was.

    Raises:
        DataError: If the annotations speak of no picture of the source.
    """
    if not marks.files:
        return None
    gone = sum(map(len, marks.astrays.values()))
    if gone:
        file, written = next(iter(marks.astrays.items()))
        such = f"such as {cut(written[0])} in {file}"
        if not marks.present:
            raise DataError(f"the {marks.layout} annotations speak of {counted(gone, 'picture')}, none of which is "
                            f"here, {such}: put the pictures into the same folder")  # fmt: skip
        marks.notes.append(f"{marks.layout}: {counted(gone, 'annotated picture')} not here, {such}")
    return Boxes(
        marks.layout,
        list(marks.names),
        {picture: frozenset(classes) for picture, classes in marks.present.items()},
        frozenset(marks.files),
        _agreed(marks),
        marks.notes,
    )


def _agreed(marks: Marks) -> dict[str, str]:
    """The split of each picture, or none at all where two files put one picture into different splits."""
    torn = [(picture, said) for picture, said in marks.splits.items() if len(said) > 1]
    if not torn:
        return {picture: next(iter(said)) for picture, said in marks.splits.items()}
    picture, said = torn[0]
    places = " and ".join(f"{split} in {file}" for split, file in said.items())
    marks.notes.append(f"{marks.layout}: no split is taken from the files, because {counted(len(torn), 'picture')} "
                       f"would stand in two, such as {picture} ({places}): leave only one division there")  # fmt: skip
    return {}


def split_of_name(name: str) -> str | None:
    """The split that the base name of a file tells (`instances_val2017.json`), or None if it tells none or two."""
    found = {_SPLITS[word] for word in _WORD.findall(posixpath.basename(name).lower())}
    return found.pop() if len(found) == 1 else None


def split_of_folder(name: str) -> str | None:
    """The split that the outermost telling folder of a file tells (`train`, `val2017`), or None."""
    for part in posixpath.dirname(name).lower().split("/"):
        if (word := _WORD.fullmatch(part)) is not None:
            return _SPLITS[word[1]]
    return None


def one_picture(file: str, written: str | None, index: Index) -> str | None:
    """The picture that a file about one picture means: the one beside it with its name, else the one that it names,
    else one with its name elsewhere.

    Raises:
        DataError: If it could mean several.
    """
    stem = posixpath.splitext(file)[0]
    if near := index.ending_in(stem, 0, stem=True):
        return sure(file, stem, near if len(near) > 1 else near[0])
    for name in (written, posixpath.basename(stem)):
        if name and (found := find_pictures([name], file, index, lambda _: False)[0]):
            return sure(file, name, found)
    return None


def sure(file: str, written: str, found: Found) -> str | None:
    """`found`, if it is one picture or none."""
    if isinstance(found, tuple):
        raise DataError(f"{file}: {cut(written)} could be {found[0]} or {found[1]}: keep one of them")
    return found


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number > 1 else "")


def cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
