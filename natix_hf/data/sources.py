"""Load the rows of `data.source`: synthetic scenes, a folder, or a dataset on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from natix_hf.data.config import DataConfig
from natix_hf.errors import DataError, first_line
from natix_hf.synthetic import build_synthetic

if TYPE_CHECKING:
    from datasets import Dataset

TEST_SPLIT = "test"
_UNLABELLED = "phase4.unlabelled"
# Pairs of class names that are clear about which one is label 1.
_KNOWN_CLASSES = (["none", "roadwork"], ["0", "1"], ["no", "yes"], ["false", "true"], ["negative", "positive"])


@dataclass(frozen=True)
class SourceRows:
    """All rows of a source, in the order of the source.

    Args:
        dataset: The rows, with an undecoded image column.
        ids: `<source split>/<index>` of each row.
        labels: Labels, int64 [n].
        groups: Group of each row. None: the row is its own group.
        official_test: bool [n], True for rows of the source's own test split.
        left_out: Rows that the label rule refuses, as id -> reason.
    """

    dataset: Dataset
    ids: list[str]
    labels: np.ndarray
    groups: list[str | None]
    official_test: np.ndarray
    left_out: dict[str, str]


def load_source(config: DataConfig) -> SourceRows:
    """Load the source and check its columns.

    Raises:
        DataError: If the source does not exist or has no rows, a column is missing, or a label is not 0 or 1.
    """
    assert config.source is not None, "without a source there are no rows to load"
    splits = _load_splits(config.source, config)
    wanted = [
        config.image_column,
        config.label_column,
        *([config.group_by] if config.group_by else []),
        *config.slices,
    ]
    if config.label_rule == "scene_description":
        wanted.append("scene_description")
    for name, split in splits.items():
        missing = [column for column in wanted if column not in split.column_names]
        if missing:
            has = ", ".join(split.column_names)
            raise DataError(f"{config.source} split {name!r} has no column {missing[0]!r}: it has {has}")
    dataset = _joined(splits, config.source, config.image_column)
    ids = [f"{name}/{index}" for name, split in splits.items() for index in range(len(split))]
    official_test = np.repeat([name == TEST_SPLIT for name in splits], [len(split) for split in splits.values()])
    if official_test.all():  # a source that has only a test split is divided like any other
        official_test[:] = False
    labels = _labels(dataset, ids, config)
    return SourceRows(
        dataset=dataset,
        ids=ids,
        labels=labels,
        groups=[None if g is None or g != g else str(g) for g in dataset[config.group_by]]  # NaN is not itself
        if config.group_by
        else [None] * len(ids),
        official_test=official_test,
        left_out=_apply_label_rule(dataset, ids, labels) if config.label_rule == "scene_description" else {},
    )


def load_unlabelled(source: str, config: DataConfig) -> tuple[Dataset, list[str], list[str | None]]:
    """Load every row of an additional source and ignore its labels.

    Args:
        source: A folder or a Hub dataset id.
        config: Names the image column, and the group column if `source` has it. Its `revision` applies to `source`.

    Returns:
        The undecoded image column, the row ids, and the groups (None: the row is its own group).

    Raises:
        DataError: If the source does not exist, has no rows or has no images.
    """
    splits = _load_splits(source, config, key=_UNLABELLED)
    for name, split in splits.items():
        if config.image_column not in split.column_names:
            has = ", ".join(split.column_names)
            raise DataError(f"{source} split {name!r} has no column {config.image_column!r}: it has {has}")
    dataset = _joined(splits, source, config.image_column)
    ids = [f"{Path(source).name}:{name}/{index}" for name, split in splits.items() for index in range(len(split))]
    grouped = config.group_by is not None and config.group_by in dataset.column_names
    values = dataset[config.group_by] if grouped else [None] * len(ids)
    groups = [None if g is None or g != g else str(g) for g in values]  # NaN is not itself
    return dataset.select_columns([config.image_column]), ids, groups


def _joined(splits: dict[str, Dataset], source: str, image_column: str) -> Dataset:
    """Join all splits into one dataset with an undecoded image column."""
    from datasets import Image, concatenate_datasets

    try:
        dataset = concatenate_datasets([split.with_format(None) for split in splits.values()])
    except ValueError as error:
        names, cause = ", ".join(splits), first_line(error)[:200]
        raise DataError(f"the splits {names} of {source} do not have the same columns ({cause})") from None
    if len(dataset) == 0:
        raise DataError(f"{source} has no rows")
    if not isinstance(dataset.features[image_column], Image):
        try:
            dataset = dataset.cast_column(image_column, Image())
        except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors are some of these
            raise DataError(
                f"column {image_column!r} of {source} does not hold images ({first_line(error)})"
            ) from None
    dataset = dataset.cast_column(image_column, Image(decode=False))
    return dataset


def _load_splits(source: str, config: DataConfig, key: str = "data.source") -> dict[str, Dataset]:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    if source == "synthetic":
        return {"train": build_synthetic(config.synthetic)}
    folder = Path(source)
    looks_like_path = source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1
    if not folder.is_dir() and (looks_like_path or "/" not in source):
        given = "[FOLDER]" if key == _UNLABELLED else "FOLDER"
        raise DataError(f"{key}: there is no folder {source} (seen from {Path.cwd()}): set {key}={given}")
    if folder.is_dir() and config.revision is not None:
        raise DataError(f"data.revision is for a dataset on the Hub, but {source} is a folder: remove the key")
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded: Any = load_from_disk(str(folder))
        else:
            loaded = load_dataset(source, revision=None if folder.is_dir() else config.revision)
    except DatasetNotFoundError as error:
        raise DataError(
            f"{key}: no dataset {source!r} on the Hub, or no right to read it ({first_line(error)})"
        ) from None
    except (OSError, ValueError, IndexError, RuntimeError, DatasetsError) as error:  # IndexError: saved without rows
        cause = first_line(error.__cause__ or error)  # DatasetGenerationError hides the real error in its cause
        raise DataError(f"{key}: {source} cannot be loaded by `datasets` ({cause})") from None
    return {"train": loaded} if isinstance(loaded, Dataset) else dict(DatasetDict(loaded))


def _labels(dataset: Dataset, ids: list[str], config: DataConfig) -> np.ndarray:
    from datasets import ClassLabel

    values = dataset[config.label_column][:]
    feature = dataset.features[config.label_column]
    if isinstance(feature, ClassLabel):
        positive = feature.names.index(_positive_class(feature.names, config))
        # `datasets` stores a missing label as -1.
        values = [None if value is None or value < 0 else int(value == positive) for value in values]
    elif config.positive_class is not None:
        held = f"{config.label_column!r} holds {feature.dtype} values"
        raise DataError(f"data.positive_class is for named classes, but {held}: remove the key")
    for row_id, value in zip(ids, values, strict=True):
        if not isinstance(value, int) or value not in (0, 1):
            raise DataError(f"row {row_id} of {config.source} has label {value!r}: labels must be 0 or 1")
    return np.asarray(values, dtype=np.int64)


def _positive_class(names: list[str], config: DataConfig) -> str:
    """Name of the class that becomes label 1.

    `datasets` numbers class folders in alphabetical order, so their numbers say nothing.
    """
    if config.positive_class is not None:
        if config.positive_class not in names:
            raise DataError(f"data.positive_class {config.positive_class!r} is none of the classes {', '.join(names)}")
        return config.positive_class
    if [name.lower() for name in names] in _KNOWN_CLASSES:
        return names[1]
    raise DataError(f"the classes are {', '.join(names)}: set data.positive_class to the one that means yes")


def _apply_label_rule(dataset: Dataset, ids: list[str], labels: np.ndarray) -> dict[str, str]:
    """Apply the validator's rule: label 1 counts only with a scene description, label 0 only without one."""
    refused = {}
    columns = zip(ids, labels, dataset["scene_description"][:], strict=True)
    for row_id, label, description in columns:
        if bool(label) != bool((description or "").strip()):
            refused[row_id] = "label 1 without a scene description" if label else "label 0 with a scene description"
    return refused
