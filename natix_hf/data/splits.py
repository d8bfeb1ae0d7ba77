"""The role of each row, `splits.json`, and the search for leaks between roles."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from natix_hf.errors import VerificationError
from natix_hf.provenance.files import read_json, write_json

# From the least to the most protected role. A row that overlaps two roles leaves the less protected one.
ROLES = ("train", "val_select", "val_calib", "test")
CONTRADICTION = "the same picture has both labels"
SCHEMA = 1
SPLITS = "splits.json"


@dataclass(frozen=True)
class Splits:
    """The kept rows in the order of the source, one list entry per row.

    `labels` are the labels in use, with any label noise and after any review. `sha256` are digests of the pixels.
    `dropped` lists the rows left out as `{"id", "role", "reason"}`, and `relabelled` those with another label after a
    review as `{"id", "role", "label", "by"}`.
    """

    ids: list[str]
    roles: list[str]
    groups: list[str]
    labels: list[int]
    sha256: list[str]
    dropped: list[dict[str, str]] = field(default_factory=list)
    relabelled: list[dict[str, Any]] = field(default_factory=list)

    def positions(self, role: str) -> np.ndarray:
        """Positions of the rows of a role in these lists, int64."""
        return np.flatnonzero(np.asarray(self.roles) == role)

    def ids_of(self, role: str) -> list[str]:
        return [self.ids[i] for i in self.positions(role)]

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the rows and groups of every role, in total and with label 1."""
        result = {}
        for role in ROLES:
            at = self.positions(role)
            positive = [i for i in at if self.labels[i] == 1]
            result[role] = {
                "rows": len(at),
                "positive_rows": len(positive),
                "groups": len({self.groups[i] for i in at}),
                "positive_groups": len({self.groups[i] for i in positive}),
            }
        return result


def write_splits(path: Path, splits: Splits, read: Mapping[str, Any]) -> None:
    """Write `splits.json`. `read` is the block about what was read from the source."""
    columns = ("ids", "roles", "groups", "labels", "sha256", "dropped")
    summary = {"schema": SCHEMA, "counts": splits.counts(), "dropped_reasons": dropped_reasons(splits.dropped)}
    reviewed = {"relabelled": splits.relabelled} if splits.relabelled else {}
    write_json(path, summary | {"read": dict(read)} | {name: getattr(splits, name) for name in columns} | reviewed)


def dropped_reasons(dropped: list[dict[str, str]]) -> dict[str, int]:
    """Count the rows left out for each kind of reason."""
    return dict(Counter(short_reason(row["reason"]) for row in dropped))


def short_reason(reason: str) -> str:
    """The kind of a reason, without the row or file that it names."""
    return re.split(" as row |: ", reason)[0]


def say_dropped(dropped: list[dict[str, str]]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in dropped_reasons(dropped).items())


def read_splits(path: Path) -> Splits:
    """Read `splits.json`.

    Raises:
        VerificationError: If it is missing, damaged or of another schema.
    """
    content: Any = read_json(path)
    columns = ("ids", "roles", "groups", "labels", "sha256")
    if (
        not isinstance(content, dict)
        or content.get("schema") != SCHEMA
        or not all(isinstance(content.get(c), list) for c in columns)
    ):
        raise VerificationError(f"{path} is not a splits file of schema {SCHEMA}: it was damaged after it was written")
    texts = all(isinstance(value, str) for name in columns if name != "labels" for value in content[name])
    labels = all(type(label) is int for label in content["labels"])
    fit = texts and labels and len({len(content[c]) for c in columns}) == 1
    if not fit or any(role not in ROLES for role in content["roles"]):
        raise VerificationError(f"{path} has columns that do not fit together: it was damaged after it was written")
    left = {name: content.get(name, []) for name in ("dropped", "relabelled")}
    return Splits(**{c: content[c] for c in columns}, **left)


def leaks_between_roles(splits: Splits) -> list[str]:
    """List one line for every row id, group or picture in two roles. The list is empty if there is none."""
    found = []
    for what, keys in (("row", splits.ids), ("group", splits.groups), ("picture", splits.sha256)):
        first: dict[str, int] = {}
        for i, key in enumerate(keys):
            j = first.setdefault(key, i)
            if what == "row" and j != i:
                found.append(f"row {key} is listed twice, in {splits.roles[j]} and {splits.roles[i]}")
            elif splits.roles[j] != splits.roles[i]:
                found.append(
                    f"{what} {key} is in {splits.roles[j]} (row {splits.ids[j]}) "
                    f"and in {splits.roles[i]} (row {splits.ids[i]})"
                )
    return found
