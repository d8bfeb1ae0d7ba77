"""Load the rows of `data.source`: every source, its labels and its groups, joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from natix_hf.data.classes import NEGATIVE, UNLABELLED, Labelled, label_rows
from natix_hf.data.config import NEAR_DUPLICATES, DataConfig, SourceConfig
from natix_hf.data.groups import COLUMN, NEAR, NONE, PATTERN, groups_of
from natix_hf.data.own_keys import without_strangers
from natix_hf.data.part import Part, read_part
from natix_hf.errors import DataError, cut
from natix_hf.intake.splitwords import TEST, TRAIN, VALIDATION
from natix_hf.intake.words import spelled

if TYPE_CHECKING:
    from datasets import Dataset

_DESCRIPTION = "scene_description"
_YES_NO = {"no": 0, "yes": 1}


@dataclass(frozen=True)
class FileCounts:
    """The files of a source: how many there are, how many were read, and the others with their reason.

    `sources` names the sources whose rows are files of their own.
    """

    found: int = 0
    used: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    sources: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SourceRows:
    """All rows of all sources, in their order.

    Args:
        images: One column, `data.image_column`, of undecoded images.
        ids: Ids of the rows. With several sources each begins with the name of its source.
        labels: Labels, int64 [n]; -1 for rows in `left_out` without one.
        classes: Class of each row, as people wrote it.
        groups: Group of each row. None: the row is its own group.
        given: The role that a row's source fixes: "train", "val_select" or "test"; None: the row is divided.
        origins: Name of the source of each row.
        columns: The columns of `data.slices`, by name.
        left_out: Rows that are not used, as id -> reason.
        files: Counts of the files of all sources.
        groups_from: "column", "pattern", "near_duplicates" or "none".
        contradictions: Pictures that a source's own tables give two labels.
        notes: What the user should hear.
    """

    images: Dataset
    ids: list[str]
    labels: np.ndarray
    classes: list[str]
    groups: list[str | None]
    given: list[str | None]
    origins: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    files: FileCounts = field(default_factory=FileCounts)
    groups_from: str = NONE
    contradictions: int = 0
    notes: list[str] = field(default_factory=list)


def load_source(config: DataConfig, if_known: Collection[str] = ()) -> SourceRows:
    """Load every source, decide its labels and groups, and join the rows.

    Args:
        if_known: Those of the keys positive_class and exclude_classes that count only for classes that there are.

    Raises:
        DataError: If a source does not exist or has no rows, a column is missing, the classes do not say which one
            means yes, or all rows have one label.
    """
    from datasets import concatenate_datasets

    sources = config.sources
    assert sources, "without a source there are no rows to load"
    several = len(sources) > 1
    parts = [read_part(source, config) for source in sources]
    if several:
        _require_known(parts, config, if_known)
    if if_known:
        sources = [without_strangers(s, part.classes, if_known) for part, s in zip(parts, sources, strict=True)]
    labelled = [_labels(part, source, several) for part, source in zip(parts, sources, strict=True)]
    groups = [groups_of(part, source.group_by) for part, source in zip(parts, sources, strict=True)]
    names = [str(source.name) for source in sources]

    def told(name: str, row_id: str) -> str:
        return f"{name}:{row_id}" if several else row_id

    left_out: dict[str, str] = {}
    for part, source, found in zip(parts, sources, labelled, strict=True):
        refused = {part.ids[i]: reason for i, reason in found.left_out.items()} | _refused_by_rule(part, source, found)
        left_out |= {told(part.name, row_id): reason for row_id, reason in refused.items()}
    rows = SourceRows(
        images=parts[0].images if not several else concatenate_datasets([part.images for part in parts]),
        ids=[told(part.name, row_id) for part in parts for row_id in part.ids],
        labels=np.concatenate([found.labels for found in labelled]),
        classes=[name for found in labelled for name in found.names],
        groups=[told(name, g) if g is not None else None for name, of in zip(names, groups, strict=True) for g in of],
        given=[role for part, source in zip(parts, sources, strict=True) for role in _given(part, source)],
        origins=[part.name for part in parts for _ in part.ids],
        columns={name: _column(parts, name) for name in config.slices},
        left_out=left_out,
        files=FileCounts(
            sum(part.found for part in parts),
            sum(part.used for part in parts),
            {told(part.name, name): reason for part in parts for name, reason in part.left_out.items()},
            frozenset(part.name for part in parts if part.rows_are_files),
        ),
        groups_from=_groups_from(config, sources),
        contradictions=sum(part.contradictions for part in parts),
        notes=[note for part, found in zip(parts, labelled, strict=True) for note in (*part.notes, *found.notes)],
    )
    _require_two_labels(rows, config)
    return rows


def load_unlabelled(source: str, config: DataConfig) -> Part:
    """Load every row of an additional source and ignore its labels.

    Args:
        source: A folder, an archive, a table or a Hub dataset id.
        config: Names the image column, and the groups if `source` has such a column. Its `revision` applies to
            `source`.

    Raises:
        DataError: If the source does not exist, has no rows or has no images.
    """
    given = SourceConfig(source=source, name=source, revision=config.revision, image_column=config.image_column)
    return read_part(given, config, key="phase4.unlabelled", labelled=False)


def _require_known(parts: Sequence[Part], config: DataConfig, if_known: Collection[str]) -> None:
    """Raise DataError if a class that a key of `data` names is in no source, or one of a source's own not in it."""
    of_part = [{spelled(name) for name in set(part.classes) if name not in (None, UNLABELLED)} for part in parts]
    everywhere = set[str]().union(*of_part)
    given = config.source if isinstance(config.source, list) else []
    of_data: dict[str, Sequence[str | None]] = {
        "positive_class": [config.positive_class],
        "exclude_classes": config.exclude_classes,
    }
    asked = [
        (name, f"data.{key}", "any source", everywhere)
        for key, wanted in of_data.items()
        if key not in if_known
        for name in wanted
        if name
    ]
    for entry, part, names in zip(given, parts, of_part, strict=True):
        if isinstance(entry, SourceConfig) and entry.label is None:
            asked += [(name, "positive_class", part.name, names) for name in [entry.positive_class] if name]
            asked += [(name, "exclude_classes", part.name, names) for name in entry.exclude_classes or ()]
    for name, key, where, known in asked:
        if not {spelled(name), spelled(name).removesuffix(".0")} & known:
            told = ", ".join(sorted(known)[:10]) or "none"
            raise DataError(f"{key} {cut(name)} is no class of {where}: the classes are {told}")


def _labels(part: Part, source: SourceConfig, several: bool) -> Labelled:
    if source.label is not None:
        value = _YES_NO[source.label]
        labels = np.full(len(part.ids), value, dtype=np.int64)
        return Labelled(labels, [source.label] * len(part.ids))
    return label_rows(
        part.classes,
        part.splits,
        part.origins,
        part.name if several else str(PurePath(source.source)),
        source.positive_class,
        source.exclude_classes or (),
        part.yes,
        alone=not several,
    )


def _given(part: Part, source: SourceConfig) -> list[str | None]:
    """The role that the source's own splits give its rows. A source without a train split is divided like one, and a
    note says so."""
    if source.role == "train":
        return [TRAIN] * len(part.ids)
    labelled = [source.label is not None or name not in (None, UNLABELLED) for name in part.classes]
    own = {split for split, known in zip(part.splits, labelled, strict=True) if known}
    if own <= {TEST, VALIDATION}:
        if own:
            held = " and ".join(sorted(str(split) for split in own))
            part.notes.append(f"{part.name} has no train split, only {held}: its rows are divided as if it had none")
        return [None] * len(part.ids)
    roles = {VALIDATION: "val_select", TEST: "test"}
    return [roles.get(str(split)) for split in part.splits]


def _refused_by_rule(part: Part, source: SourceConfig, found: Labelled) -> dict[str, str]:
    """Apply the validator's rule: label 1 counts only with a scene description, label 0 only without one."""
    if source.label_rule != _DESCRIPTION:
        return {}
    if _DESCRIPTION not in part.columns:
        held = ", ".join(part.columns) or "no columns beside picture and label"
        raise DataError(
            f"data.label_rule: {part.name} has no column {cut(_DESCRIPTION)}: it has {held}; data.label_rule=none "
            f"takes "
            "every label as it is"
        )
    refused = {}
    for row_id, label, description in zip(part.ids, found.labels, part.columns[_DESCRIPTION], strict=True):
        if label >= 0 and bool(label) != bool((description or "").strip()):
            refused[row_id] = "label 1 without a scene description" if label else "label 0 with a scene description"
    return refused


def _column(parts: Sequence[Part], name: str) -> list[Any]:
    """A column of all sources. A source that lacks it has None there, unless all lack it."""
    if not any(name in part.columns for part in parts):
        held = ", ".join(dict.fromkeys(column for part in parts for column in part.columns)) or "none"
        raise DataError(f"data.slices: {parts[0].name} has no column {cut(name)}: its columns are {held}")
    found: list[Any] = []
    for part in parts:
        found += part.columns[name] if name in part.columns else [None] * len(part.ids)
    return found


def _groups_from(config: DataConfig, sources: Sequence[SourceConfig]) -> str:
    if config.group_by == NEAR_DUPLICATES:
        return NEAR
    given = [source.group_by for source in sources if source.role != "train"]  # what is measured needs groups
    kinds = {NONE if by is None else COLUMN if isinstance(by, str) else PATTERN for by in given}
    return NONE if NONE in kinds else kinds.pop()


def _require_two_labels(rows: SourceRows, config: DataConfig) -> None:
    kept = np.array([row_id not in rows.left_out for row_id in rows.ids]) & (rows.labels >= 0)
    if not kept.any():
        why = Counter(rows.left_out.values()).most_common(1)
        raise DataError(f"{_said(config)} has no row with a label" + (f" ({why[0][0]})" if why else ""))
    if len(set(rows.labels[kept].tolist())) == 1:
        names = Counter(name for name, keep in zip(rows.classes, kept, strict=True) if keep and name != UNLABELLED)
        told = ", ".join(f"{name} ({count:,})" for name, count in names.most_common(5))
        lone = "one class only" if len(names) == 1 else "classes of one label only"
        reasons = Counter(reason for reason in rows.files.left_out.values()).most_common(1)
        marked = sum(reason == NEGATIVE for reason in rows.left_out.values())
        told += f", and {marked:,} rows with a negative label" if marked else ""
        told += f" (left out: {reasons[0][1]:,} x {reasons[0][0]})" if reasons else ""
        raise DataError(
            f"{_said(config)} has {lone}, {told}: a yes/no question needs pictures of both; "
            + ("negative labels count as unlabelled, write 0 where they mean no" if marked else _DEEPER)
        )


_DEEPER = (
    "if its classes are deeper folders, name the folder that holds them, or set data.positive_class to one of them, "
    "or add another source to the list in data.source"
)


def _said(config: DataConfig) -> str:
    return str(PurePath(config.source)) if isinstance(config.source, str) else "data.source"
