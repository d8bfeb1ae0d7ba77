"""What one layout says of the pictures: class, split and further columns, by place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from natix_hf.errors import DataError, cut
from natix_hf.intake.files import File
from natix_hf.intake.words import spelled


@dataclass
class Said:
    """What a layout says of the pictures. The keys of all mappings are places.

    Args:
        by: The layout, for a person, such as "class folders" or "labels.csv".
        classes: Class of each picture that the layout speaks of; None: it has no label.
        splits: "train", "validation" or "test", where it says one.
        origins: The line of a table that speaks of a picture, for errors.
        columns: Further values by the name of their column.
        outside: Pictures outside of the source's folder.
        missing: One line for each entry whose picture does not exist.
        refused: Pictures that can be no row, with the reason. Two entries with different classes are such a reason.
        files: Names of the files that were read, pictures not included.
        yes: The class that means yes, where the layout is plain about it.
        notes: What the user should hear.
    """

    by: str
    classes: dict[str, str | None] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    outside: dict[str, File] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    yes: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> set[str]:
        """Every class, as `spelled`."""
        return {spelled(name) for name in self.classes.values() if name is not None}


def classes_of_marks(
    present: Mapping[str, Iterable[str]], names: Iterable[str], positive_class: str | None, by: str
) -> tuple[dict[str, str], str | None]:
    """The class of each picture from the set of things that are marked in it.

    With `data.positive_class`, or if there is one kind of thing, a picture is a yes if that thing is marked in it. If
    each picture has one mark, that mark is its class.

    Args:
        present: The marks of each picture.
        names: Every kind of mark.
        positive_class: The recipe's key.
        by: The layout, for the error.

    Returns:
        The classes, and the one that means yes if the layout says so.

    Raises:
        DataError: If the marks do not say yes or no.
    """
    known = {spelled(name): name for name in names}
    sets = {place: set(marks) for place, marks in present.items()}
    if positive_class is not None:
        if spelled(positive_class) not in known:
            raise DataError(
                f"data.positive_class {cut(positive_class)} is none of the classes of {by}: {_listed(known.values())}"
            )
        yes = known[spelled(positive_class)]
    elif len(known) == 1:
        [yes] = known.values()
    elif all(len(marks) == 1 for marks in sets.values()):
        return {place: next(iter(marks)) for place, marks in sets.items()}, None
    else:
        raise DataError(
            f"{by} marks several things ({_listed(known.values())}): set data.positive_class to the one that means "
            "yes; a picture without it then means no"
        )
    single = all(len(marks) == 1 for marks in sets.values())
    other = {place: next(iter(marks)) if single else f"no {yes}" for place, marks in sets.items()}
    return {place: yes if yes in marks else other[place] for place, marks in sets.items()}, yes


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
