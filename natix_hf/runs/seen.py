"""What the models of another run have seen of the rows that this run measures on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from natix_hf.data.config import NEAR_DUPLICATES
from natix_hf.data.splits import SPLITS, Splits, read_splits
from natix_hf.provenance.manifest import read_manifest
from natix_hf.runs.graph import PHASES

# What a model has learned from, and the rows that it must not have learned from. Its val_select has chosen its epoch,
# as the run's own val_select does.
_MUST_NOT_MEET = {"train": ("val_select", "val_calib", "test"), "val_select": ("val_calib", "test")}


def rows_seen(run: Path, ours: Splits, data: Mapping[str, Any]) -> list[str]:
    """The rows that this run measures on and of whose picture or group another run has learned, one line each.

    Equal pictures are the same row. Groups are names of the source, so they are compared only where both runs group
    by the same key and read the same source or have a picture in common.

    Args:
        run: The folder of the other run.
        ours: The division of this run's rows.
        data: This run's `data` section, as manifests store it.

    Raises:
        VerificationError: If the other run does not say how its rows were divided.
    """
    folder = run / PHASES[0].folder
    given, theirs = read_manifest(folder)["section"]["data"], read_splits(folder / SPLITS)
    related = bool(set(theirs.sha256) & set(ours.sha256)) and data["group_by"] != NEAR_DUPLICATES
    by_group = given.get("group_by") == data["group_by"] and (related or given.get("source") == data["source"])
    return seen_of(theirs, ours, by_group)


def seen_of(theirs: Splits, ours: Splits, by_group: bool) -> list[str]:
    """`rows_seen` of two divisions. With `by_group` a name of a group means the same in both."""
    found: dict[str, str] = {}
    for role, protected in _MUST_NOT_MEET.items():
        pictures = {theirs.sha256[i]: int(i) for i in theirs.positions(role)}
        groups = {theirs.groups[i]: int(i) for i in theirs.positions(role) if by_group}
        for i in [i for name in protected for i in ours.positions(name)]:
            other = pictures.get(ours.sha256[i], groups.get(ours.groups[i]))
            if other is not None:
                told = f"row {ours.ids[i]} of {ours.roles[i]} is of a picture or group of its row {theirs.ids[other]}"
                found.setdefault(ours.ids[i], f"{told} of {role}")
    return list(found.values())
