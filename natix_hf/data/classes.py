"""From classes to labels: which class is 0, which is 1, and which rows have none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from natix_hf.errors import DataError, cut
from natix_hf.intake.words import UNLABELLED, meaning, spelled

__all__ = ["NEGATIVE", "UNLABELLED", "Labelled", "label_rows"]

NEGATIVE = "unlabelled: its label is negative, as -1"

_SHOWN = 10


@dataclass(frozen=True)
class Labelled:
    """The labels of a source's rows.

    Args:
        labels: int64 [n]; -1 for a row that is left out.
        names: Class of each row, in its most frequent spelling. `UNLABELLED` where there is none.
        left_out: Positions of the rows that are left out -> reason.
        notes: What the user should hear.
    """

    labels: np.ndarray
    names: list[str]
    left_out: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def label_rows(
    classes: Sequence[str | None],
    splits: Sequence[str | None],
    origins: Sequence[str],
    source: str,
    positive_class: str | None = None,
    exclude_classes: Sequence[str] = (),
    yes: str | None = None,
    alone: bool = True,
) -> Labelled:
    """Decide the label of every row.

    Names are compared without case and outer blanks. The rows of `exclude_classes` are left out, and so are rows that
    are marked as unlabelled, and a split in which no row has a class.

    Args:
        classes: Class of each row; `UNLABELLED`: it is marked as having none, as by -1; None: its class is missing.
        splits: The source's own split of each row, or None.
        origins: Where each class comes from, for errors.
        source: Name of the source, for errors.
        positive_class, exclude_classes: The recipe's keys.
        yes: The class that means yes, where the layout says so.
        alone: False: other sources may hold the classes that the keys name, and this one does not.

    Raises:
        DataError: If the classes do not say which one means yes, a row of a labelled split has no class, or a class
            that a key names does not exist.
    """
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for name in classes:
        if name is not None and name != UNLABELLED:
            spellings[spelled(name)][name] += 1
    usual = {key: counts.most_common(1)[0][0] for key, counts in spellings.items()}
    keys = [spelled(name) if name is not None and name != UNLABELLED else None for name in classes]
    marked = {i for i, name in enumerate(classes) if name == UNLABELLED}
    if not alone:  # a class that only other sources have
        exclude_classes = [name for name in exclude_classes if _found(name, usual) is not None]
    excluded = {_known(name, usual, "data.exclude_classes", source) for name in exclude_classes}
    used = {key for key in usual if key not in excluded}
    if not alone and positive_class is not None and _found(positive_class, usual) is None:
        label_of = meaning(used) or dict.fromkeys(used, 0)
    else:
        label_of = _labels_of(used, usual, spellings, positive_class, yes, source)
    unlabelled = _unlabelled_splits(keys, splits)
    result = Labelled(
        np.full(len(keys), -1, dtype=np.int64), [usual[key] if key is not None else UNLABELLED for key in keys]
    )
    for i, key in enumerate(keys):
        if key is None:
            if splits[i] in unlabelled:
                result.left_out[i] = f"unlabelled: the {splits[i]} split of {source} has no labels"
            elif i in marked:
                result.left_out[i] = NEGATIVE
            else:
                at = [j for j, key in enumerate(keys) if key is None and splits[j] not in unlabelled]
                raise DataError(_missing([j for j in at if j not in marked], origins, len(keys), source))
        elif key in excluded:
            result.left_out[i] = f"class {usual[key]} is in data.exclude_classes"
        else:
            result.labels[i] = label_of[key]
    for key, counts in spellings.items():
        if len(counts) > 1:
            told = ", ".join(f"{cut(name)} ({count:,})" for name, count in counts.most_common(5))
            result.notes.append(
                f"{source}: one class is written in several ways, {told}: they count as {cut(usual[key])}"
            )
    if single := sum(splits[i] not in unlabelled for i in marked):
        result.notes.append(f"{source}: {single:,} rows with a negative label, as -1, count as unlabelled: left out")
    for split in sorted(str(split) for split in unlabelled):
        result.notes.append(
            f"{source}: the {split} split has no labels and is left out ({_count(splits, split):,} rows)"
        )
    return result


def _labels_of(
    used: set[str],
    usual: dict[str, str],
    spellings: dict[str, Counter[str]],
    positive_class: str | None,
    yes: str | None,
    source: str,
) -> dict[str, int]:
    """The label of each class."""
    chosen = positive_class if positive_class is not None else yes
    if chosen is not None:
        positive = _known(chosen, usual, "data.positive_class", source)
        if positive not in used:
            raise DataError(
                f"data.positive_class {cut(positive_class)} is in data.exclude_classes too: remove it from one"
            )
        return {key: int(key == positive) for key in used}
    plain = meaning(used)
    if plain is not None or not used:
        return plain or {}
    counts = {usual[key]: spellings[key].total() for key in used}
    told = ", ".join(f"{_cut(name)} ({counts[name]:,})" for name in sorted(counts)[:_SHOWN])
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    if len(used) == 1:
        raise DataError(
            f"{source} has one class only, {told}: a yes/no question needs pictures of both; if its classes are "
            "deeper folders, name the folder that holds them, or set data.positive_class to one of them"
        )
    raise DataError(
        f"the classes of {source} are {told}{more}: set data.positive_class to the one that means yes; "
        "data.exclude_classes leaves classes out"
    )


def _cut(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."


def _found(name: str, usual: dict[str, str]) -> str | None:
    """The class of this name, as `spelled`. A whole number may be written as 1 or 1.0."""
    wanted = spelled(name)
    return next((key for key in (wanted, wanted.removesuffix(".0")) if key in usual), None)


def _known(name: str, usual: dict[str, str], key: str, source: str) -> str:
    """The class that a key names. Raises DataError if it does not exist."""
    found = _found(name, usual)
    if found is None:
        names = sorted(usual.values())
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise DataError(
            f"{key} {cut(name)} is none of the classes of {source}: {', '.join(map(_cut, names[:_SHOWN]))}{more}"
        )
    return found


def _unlabelled_splits(keys: Sequence[str | None], splits: Sequence[str | None]) -> set[str | None]:
    """The source's own splits in which no row has a class, if another split has some."""
    labelled = {split for key, split in zip(keys, splits, strict=True) if key is not None}
    return {split for split in set(splits) if split is not None and split not in labelled} if labelled else set()


def _missing(at: Sequence[int], origins: Sequence[str], rows: int, source: str) -> str:
    if len(at) == rows:
        return f"no row of {source} has a label: set data.label_column to the column that holds them"
    return (
        f"{len(at)} of {rows} rows of {source} have no label, the first is {origins[at[0]]}: fill it in, remove the "
        "row, or write -1 to leave it out"
    )


def _count(splits: Sequence[str | None], split: str) -> int:
    return sum(other == split for other in splits)
