"""Read rows from a dataset in memory that has an image column and perhaps a label column."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from natix_hf.data.decode import decode_once
from natix_hf.data.rows import Rows
from natix_hf.errors import DataError, cut
from natix_hf.intake.columns import undecoded
from natix_hf.provenance.files import json_sha256

if TYPE_CHECKING:
    from datasets import Dataset

_TENSORS = ("pixel_values", "labels", "label")
_CACHE_PX = 256  # short side of the copies that training reads, the default of `data.cache_px`


def is_plain(dataset: Any, image_column: str = "image") -> bool:
    """Check that a dataset holds pictures to prepare, not tensors that are ready for a model.

    A plain dataset is a `datasets.Dataset` that has the image column and no transform of its own, or a list or tuple
    of mappings with the image column.
    """
    import datasets

    if isinstance(dataset, datasets.Dataset):
        return image_column in dataset.column_names and dataset.format["type"] != "custom"
    return isinstance(dataset, list | tuple) and all(isinstance(row, dict) and image_column in row for row in dataset)


def rows_of(
    dataset: Any,
    role: str,
    image_column: str = "image",
    label_column: str | None = "label",
    cache_px: int = _CACHE_PX,
) -> Rows:
    """Read a plain dataset: check its labels and decode every image once.

    Args:
        dataset: A plain dataset ([`is_plain`]). Images are PIL images, encoded bytes or paths. Labels are a
            `ClassLabel` with two names, 0 and 1, or booleans.
        role: Name of the rows in errors and caches, such as "train".
        image_column: Name of the image column.
        label_column: Name of the label column. None: there are no labels; all are set to 0 and mean nothing.
        cache_px: Short side in px of the copies that augmentation starts from.

    Returns:
        [`Rows`]: The rows. Each row is its own group, and its id is `<role>/<index>`.

    Raises:
        DataError: If there are no rows, a column is missing, a label is not 0 or 1, or an image cannot be read. The
            message names the row.

    Example:
        >>> rows = rows_of(dataset, "train")  # doctest: +SKIP
        >>> rows.labels  # doctest: +SKIP
        array([0, 1, 1])
    """
    what = f"{role}_dataset"
    if len(dataset) == 0:
        raise DataError(f"{what} has no rows")
    table = _table(dataset, image_column).with_format(None)
    for column in (image_column, label_column):
        if column is not None and column not in table.column_names:
            raise DataError(f"{what} has no column {cut(column)}: it has {', '.join(table.column_names)}")
    labels = np.zeros(len(table), dtype=np.int64)
    if label_column is not None:
        labels = _labels(table, label_column, what)
    ids = [f"{role}/{index}" for index in range(len(table))]
    source = undecoded(table, image_column, what)
    files = _files_of(source, image_column)
    if files:  # a path says nothing about what is in the file: the keys of all caches must change with it
        source._fingerprint = json_sha256([source._fingerprint, files])[:32]
    decoded = decode_once(source, ids, image_column, cache_px, on_bad_image="skip")
    problem = next((problem for problem in decoded["problem"] if problem is not None), None)
    if problem is not None:
        raise DataError(f"{problem}: repair it, or remove that row from {what}")
    return Rows(role, ids, labels, np.asarray(ids), source, decoded, image_column)


def tensors_only(dataset: Any, role: str, image_column: str) -> Any:
    """Reduce a `datasets.Dataset` of tensors to the model's columns. Any other dataset is returned as it is."""
    import datasets

    if isinstance(dataset, dict):
        return {name: tensors_only(rows, name, image_column) for name, rows in dataset.items()}
    plain = is_plain(dataset, image_column)
    if not isinstance(dataset, datasets.Dataset) or plain or dataset.format["type"] == "custom":
        return dataset
    if "pixel_values" not in dataset.column_names:
        has = ", ".join(dataset.column_names)
        raise DataError(f"{role}_dataset has no column {cut(image_column)}: it has {has}")
    return dataset.select_columns([name for name in _TENSORS if name in dataset.column_names])


def prepared(dataset: Any, role: str, image_column: str, label_column: str) -> Any:
    """Read the rows of a plain dataset, which must have both labels. Any other dataset is returned as it is."""
    if not is_plain(dataset, image_column):
        return dataset
    rows = rows_of(dataset, role, image_column, label_column)
    if len(set(rows.labels.tolist())) < 2:
        raise DataError(f"{role}_dataset has only label {rows.labels[0]}: it must have rows of both labels")
    return rows


def class_names(dataset: Any, label_column: str = "label") -> list[str] | None:
    """Names of labels 0 and 1 if the label column is a `ClassLabel`, else None."""
    import datasets

    feature = dataset.features.get(label_column) if isinstance(dataset, datasets.Dataset) else None
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def shared_names(train: Any, others: Sequence[Any], label_column: str) -> list[str] | None:
    """`class_names` of the rows to train on.

    Raises:
        DataError: If other rows have the same names for other labels.
    """
    names = class_names(train, label_column)
    for each in (class_names(other, label_column) for other in others):
        if names is not None and each is not None and sorted(each) == sorted(names) and each != names:
            raise DataError(
                f"{cut(label_column)} of train_dataset names 0 {names[0]} and 1 {names[1]}, and that of an "
                "eval_dataset the other way round: use its align_labels_with_mapping"
            )
    return names


def _files_of(source: Any, column: str) -> list[tuple[str, int, int]]:
    """What `stat` says of the files that the cells name. Stored bytes keep the name of a file that is not there."""
    found = []
    for name in source.select_columns([column]).flatten()[f"{column}.path"]:
        with suppress(OSError, ValueError, TypeError):
            facts = os.stat(name)
            found.append((str(name), facts.st_size, facts.st_mtime_ns))
    return found


def _table(dataset: Any, image_column: str) -> Dataset:
    import datasets

    if isinstance(dataset, datasets.Dataset):
        return dataset
    columns = {name: [row.get(name) for row in dataset] for name in dataset[0]}
    return datasets.Dataset.from_dict(columns).cast_column(image_column, datasets.Image())


def _labels(table: Dataset, column: str, what: str) -> np.ndarray:
    names = class_names(table, column)
    if names is not None and len(names) != 2:
        raise DataError(f"{cut(column)} of {what} has {len(names)} classes ({', '.join(names[:5])}): it must have two")
    values = table[column][:]
    for row, value in enumerate(values):
        if isinstance(value, str):
            raise DataError(
                f"{cut(column)} of {what} holds text, such as {cut(value)}: convert it to 0 and 1, for example with "
                f"dataset.class_encode_column({cut(column)})"
            )
        if not isinstance(value, int) or value not in (0, 1):
            raise DataError(f"row {row} of {what} has label {cut(value)}: labels must be 0 or 1")
    return np.asarray(values, dtype=np.int64)
