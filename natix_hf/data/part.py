"""One source of rows: synthetic scenes, a folder, an archive, a table, parquet files or a data set of the Hub."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from natix_hf.data.column_labels import classes_of, splits_of
from natix_hf.data.config import DataConfig, SourceConfig
from natix_hf.errors import DataError, cut
from natix_hf.intake.archives import store_members
from natix_hf.intake.columns import (
    declared_configs,
    holds_images,
    hub_pictures,
    is_saved,
    load_files,
    load_hub,
    load_saved,
    on_hub,
    undecoded,
)
from natix_hf.intake.files import File, find_files, why_no_row
from natix_hf.intake.folder import Listing, read_listing, read_marked, read_pictures, say_no_picture
from natix_hf.provenance.alone import alone
from natix_hf.provenance.files import json_sha256
from natix_hf.synthetic import SyntheticConfig, build_synthetic, drawn_otherwise

if TYPE_CHECKING:
    from datasets import Dataset

SYNTHETIC = "synthetic"


@dataclass
class Part:
    """The rows of one source, as aligned lists.

    Args:
        name: Name of the source.
        images: One column, `data.image_column`, of undecoded images.
        ids: Ids of the rows, unique in the source: the path of a picture, or `<split>/<index>`.
        paths: What `group_by.pattern` is searched in: the path of the picture, or the row's id.
        classes: Class of each row; None: it has none.
        splits: The source's own split of each row: "train", "validation", "test", or None.
        origins: Where each class comes from, for errors.
        columns: Further columns by name.
        left_out: Files that are no rows, as name -> reason.
        found, used: Number of files, and of those that were read. Both are 0 where there are no files.
        rows_are_files: True if each row is a file of its own.
        labels_from: What gives the labels, for a person.
        yes: The class that means yes, where the layout says so.
        contradictions: Pictures that the source's own tables give two classes.
        notes: What the user should hear.
    """

    name: str
    images: Dataset
    ids: list[str]
    paths: list[str]
    classes: list[str | None]
    splits: list[str | None]
    origins: list[str]
    columns: Mapping[str, Sequence[Any]]
    left_out: dict[str, str] = field(default_factory=dict)
    found: int = 0
    used: int = 0
    rows_are_files: bool = False
    labels_from: str = ""
    yes: str | None = None
    contradictions: int = 0
    notes: list[str] = field(default_factory=list)


def read_part(source: SourceConfig, config: DataConfig, key: str = "data.source", labelled: bool = True) -> Part:
    """Read the rows of one source.

    Args:
        source: The source, with all keys filled in.
        config: The recipe's section, for what is the same for all sources.
        key: The key that names the source, for errors.
        labelled: False: labels are not looked for.

    Raises:
        DataError: If the source does not exist, has no pictures, or does not say its labels.
    """
    path = Path(os.path.expanduser(source.source))  # Path("./~") would be the home folder
    if source.source == SYNTHETIC:
        part = _from_splits(source, config, {"train": _scenes(config.synthetic)}, labelled)
        part.notes += filter(None, [drawn_otherwise()])
        return part
    if path.exists():
        if source.revision is not None:
            raise DataError(f"data.revision is for a dataset on the Hub, but {path} is on disk: remove the key")
        return _from_disk(source, config, path, key, labelled)
    if not on_hub(source.source):
        raise DataError(
            f"{key}: there is no folder or file {source.source} (seen from {Path.cwd()}): check the path, or name a "
            "dataset of the Hub as org/name"
        )
    pictures = hub_pictures(source.source, source.revision)
    if pictures is not None:
        return _from_disk(source, config, pictures, key, labelled)
    return _from_splits(source, config, load_hub(source.source, source.revision, source.config, key), labelled)


def _scenes(config: SyntheticConfig) -> Dataset:
    """Draw the built-in scenes, or read them from the cache."""
    from datasets import config as of_datasets

    path = Path(of_datasets.HF_DATASETS_CACHE) / "natix_hf" / f"scenes-{json_sha256(config.plain())[:32]}"
    with alone(path, "drawing the same scenes"):
        return build_synthetic(config)


def _from_disk(source: SourceConfig, config: DataConfig, path: Path, key: str, labelled: bool) -> Part:
    if is_saved(path):
        return _from_splits(source, config, load_saved(path, key), labelled)
    found = find_files(path)
    declared = declared_configs(path) if path.is_dir() else []
    in_columns = found.columns and (not found.pictures or holds_images(found, str(source.image_column)))
    if in_columns or len(declared) > 1 or (declared and source.config is not None):
        notes: list[str] = []
        splits, used = load_files(found, source.config, key, notes)
        part = _from_splits(source, config, splits, labelled)
        others = (*found.pictures, *found.tables, *found.others, *found.columns)
        part.left_out = found.left_out | {file.name: why_no_row(file) for file in others if file.name not in used}
        part.found, part.used = found.count, len(used)
        if lost := sum(file.name not in used for file in found.pictures):
            notes.append(f"{lost:,} pictures that are in no parquet file and no configuration are left out")
        part.notes += notes
        return part
    if not (found.pictures or found.tables):
        raise DataError(f"{key}: {say_no_picture(found)}")
    if source.config is not None:
        raise DataError(f"data.config is {cut(source.config)}, but {path} has no configurations: remove the key")
    if not labelled or source.label is not None:
        marked = read_marked(found) if labelled and source.label == "yes" else None
        listing = marked if marked is not None else read_pictures(found, str(source.image_column))
    else:
        listing = read_listing(
            found,
            str(source.image_column),
            str(source.label_column),
            source.positive_class,
            source.exclude_classes or (),
        )
    return _from_listing(str(source.name), listing, config)


def _from_listing(name: str, listing: Listing, config: DataConfig) -> Part:
    if listing.missing and config.on_bad_image == "error":
        more = f" ({len(listing.missing)} rows have none)" if len(listing.missing) > 1 else ""
        raise DataError(f"{listing.missing[0]}{more}: repair the table, or set data.on_bad_image=skip")
    notes = list(listing.notes)
    if listing.missing:
        notes.append(f"{len(listing.missing)} rows of a table name no picture, the first is {listing.missing[0]}")
    return Part(
        name=name,
        images=_images_of(listing.pictures, config.image_column),
        ids=[file.name for file in listing.pictures],
        paths=[file.place for file in listing.pictures],
        classes=listing.classes,
        splits=listing.splits,
        origins=listing.origins,
        columns=dict(listing.columns),
        left_out=listing.left_out,
        found=listing.found,
        used=listing.used,
        rows_are_files=True,
        labels_from=listing.labels_from,
        yes=listing.yes,
        contradictions=listing.contradictions,
        notes=notes,
    )


def _images_of(files: Sequence[File], column: str) -> Dataset:
    """One undecoded image column. Cells hold the path of a file, or the stored bytes of an archive's member."""
    from datasets import Dataset, Features, Image, concatenate_datasets

    by_archive: dict[Path | None, list[int]] = defaultdict(list)
    for i, file in enumerate(files):
        by_archive[file.path if file.member is not None else None].append(i)
    parts, order = [], []
    features = Features({column: Image(decode=False)})
    for archive, at in by_archive.items():
        if archive is not None:
            members = [str(files[i].member) for i in at]
            stored = store_members(archive, members)
            parts.append(stored if column == "image" else stored.rename_column("image", column))
        else:
            cells = [{"bytes": None, "path": str(files[i].path)} for i in at]
            part = Dataset.from_dict({column: cells}, features)
            # A path says nothing about what is in the file: the key of the decode cache must change with it.
            facts = [(files[i].name, *_stat(files[i].path)) for i in at]
            part._fingerprint = json_sha256([column, facts])[:32]
            parts.append(part)
        order += at
    joined = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    return joined if order == sorted(order) else joined.select(np.argsort(order))


def _stat(path: Path) -> tuple[str, int, int]:
    facts = path.stat()
    return str(path), facts.st_size, facts.st_mtime_ns


def _from_splits(source: SourceConfig, config: DataConfig, splits: dict[str, Dataset], labelled: bool) -> Part:
    from datasets import concatenate_datasets

    image_column, name = str(source.image_column), str(source.name)
    splits = {split: dataset.with_format(None) for split, dataset in splits.items()}
    for split, dataset in splits.items():
        if image_column not in dataset.column_names:
            raise DataError(
                f"{source.source} split {cut(split)} has no column {cut(image_column)}: it has {_names(dataset)}; set "
                "data.image_column"
            )
    images = [
        undecoded(dataset.select_columns([image_column]), image_column, source.source) for dataset in splits.values()
    ]
    joined = images[0] if len(images) == 1 else concatenate_datasets(images)
    if len(joined) == 0:
        raise DataError(f"{source.source} has no rows")
    if image_column != config.image_column:
        joined = joined.rename_column(image_column, config.image_column)
    classes: list[str | None] = []
    yes = None
    for split, dataset in splits.items():
        if labelled and source.label is None:
            found, yes_here = classes_of(dataset, split, source)
            classes += found
            yes = yes or yes_here
        else:
            classes += [None] * len(dataset)
    if labelled and source.label is None and not any(name is not None for name in classes):
        held = ", ".join(sorted({column for dataset in splits.values() for column in dataset.column_names}))
        raise DataError(
            f"{source.source} has no column {cut(source.label_column)} with labels: it has {held}; set "
            f"data.label_column"
        )
    ids = [f"{split}/{index}" for split, dataset in splits.items() for index in range(len(dataset))]
    notes: list[str] = []
    return Part(
        name=name,
        images=joined,
        ids=ids,
        paths=_paths(joined, config.image_column, ids),
        classes=classes,
        splits=splits_of(splits, source.source, notes),
        origins=[f"row {row_id}" for row_id in ids],
        columns=_Columns(splits),
        labels_from=f"the column {cut(source.label_column)}",
        yes=yes,
        notes=notes,
    )


class _Columns(Mapping[str, "Sequence[Any]"]):
    """The columns of several splits, joined when they are asked for. A split without a column has None there."""

    def __init__(self, splits: dict[str, Dataset]) -> None:
        self._splits = splits
        self._names = list(dict.fromkeys(name for dataset in splits.values() for name in dataset.column_names))

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self._names:
            raise KeyError(name)
        values: list[Any] = []
        for dataset in self._splits.values():
            values += list(dataset[name]) if name in dataset.column_names else [None] * len(dataset)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _paths(images: Dataset, column: str, ids: list[str]) -> list[str]:
    """The path that each cell holds beside its bytes, else the row's id."""
    import pyarrow.compute as pc

    paths = pc.struct_field(images.with_format("arrow")[column], "path").to_pylist() if len(images) else []
    return [path or row_id for path, row_id in zip(paths, ids, strict=True)]


def _names(dataset: Dataset) -> str:
    return ", ".join(dataset.column_names)
