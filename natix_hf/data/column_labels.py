"""The classes and splits that the columns of a data set say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from natix_hf.data.config import SourceConfig
from natix_hf.errors import cut
from natix_hf.intake.labelled import LABEL_COLUMN, SPLIT_COLUMNS, label_column_of
from natix_hf.intake.said import classes_of_marks
from natix_hf.intake.splitwords import TRAIN, split_of
from natix_hf.intake.words import UNLABELLED, class_name

if TYPE_CHECKING:
    from datasets import Dataset


def classes_of(dataset: Dataset, split: str, source: SourceConfig) -> tuple[list[str | None], str | None]:
    """The class of each row of a split, and the one that means yes if one-hot columns say so.

    Raises:
        DataError: If several columns may hold the labels, or a value is no class.
    """
    from datasets import ClassLabel

    where, apart = f"row {split}/", str(source.image_column)
    of_split = f"split {cut(split)} of {source.source}"
    column = label_column_of(dataset.column_names, apart, str(source.label_column), of_split)
    if column is not None:
        feature, values = dataset.features[column], dataset[column][:]
        if isinstance(feature, ClassLabel):  # `datasets` stores a missing label as -1
            name_of = {value: class_name(name, where) for value, name in enumerate(feature.names)}
            return [None if value is None else name_of.get(value, UNLABELLED) for value in values], None
        return [class_name(value, f"{where}{index} of {source.source}") for index, value in enumerate(values)], None
    hot = _one_hot(dataset, apart={apart}) if source.label_column == LABEL_COLUMN else None
    if hot is None:
        return [None] * len(dataset), None
    rows = list(zip(*(dataset[name][:] for name in hot), strict=True))
    present = {str(i): [name for name, value in zip(hot, row, strict=True) if value] for i, row in enumerate(rows)}
    classes, yes = classes_of_marks(present, hot, source.positive_class, source.source)
    return [classes[str(i)] for i in range(len(rows))], yes


def _one_hot(dataset: Dataset, apart: set[str]) -> list[str] | None:
    """The columns that hold one 1 in each row and 0 else, if the data set has such columns and no other numbers."""
    names = [
        name
        for name, feature in dataset.features.items()
        if name not in apart and str(getattr(feature, "dtype", "")).startswith(("int", "uint", "bool", "float"))
    ]
    columns = [dataset[name][:] for name in names]
    binary = len(names) >= 2 and all(value in (0, 1) for values in columns for value in values)
    return names if binary and all(sum(row) == 1 for row in zip(*columns, strict=True)) else None


def splits_of(splits: Mapping[str, Dataset], source: str, notes: list[str]) -> list[str | None]:
    """The split of each row: that of its file or, where all rows are in one, what a column called split says."""
    known = {split: split_of(split) for split in splits}
    columns = {name for dataset in splits.values() for name in dataset.column_names if name.lower() in SPLIT_COLUMNS}
    if columns and set(known.values()) <= {TRAIN, None}:
        name = min(columns)
        written: list[Any] = []
        for dataset in splits.values():
            written += dataset[name][:] if name in dataset.column_names else [None] * len(dataset)
        said = [split_of(value) if isinstance(value, str) else None for value in written]
        if None not in said:
            return said
        notes.append(
            f"{source}: the column {cut(name)} gives no splits, because of {said.count(None):,} values such as "
            f"{cut(str(written[said.index(None)]))}: each row must have train, validation or test there"
        )
    notes += [
        f"{source}: the split {cut(split)} is divided like train, because its name says nothing"
        for split in splits
        if known[split] is None
    ]
    return [known[split] for split, dataset in splits.items() for _ in range(len(dataset))]
