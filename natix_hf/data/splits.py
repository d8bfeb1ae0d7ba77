"""Seeded splits by group, stratified by class, and the overlaps between them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from natix_hf.errors import DataError, VerificationError
from natix_hf.provenance.files import read_json, write_json

# From the least to the most protected role. A row that overlaps two roles leaves the less protected one.
ROLES = ("train", "val_select", "val_calib", "test")
_SHARES = {"train": 0.60, "val_select": 0.15, "val_calib": 0.15, "test": 0.10}
_SHARES_WITH_OFFICIAL_TEST = {"train": 0.65, "val_select": 0.175, "val_calib": 0.175}
SCHEMA = 1
SPLITS = "splits.json"


@dataclass(frozen=True)
class Splits:
    """The kept rows in the order of the source, one list entry per row.

    `labels` are the labels in use, with any label noise. `sha256` are digests of the pixels. `dropped` lists the rows
    left out as `{"id", "role", "reason"}`.
    """

    ids: list[str]
    roles: list[str]
    groups: list[str]
    labels: list[int]
    sha256: list[str]
    dropped: list[dict[str, str]] = field(default_factory=list)

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


def make_splits(
    ids: Sequence[str],
    labels: np.ndarray,
    groups: Sequence[str | None],
    sha256: Sequence[str | None],
    official_test: np.ndarray,
    left_out: dict[str, str],
    seed: int,
    on_overlap: Literal["drop", "error"],
    label_noise: float = 0.0,
) -> Splits:
    """Divide rows by group into train, val_select, val_calib and test.

    The shares are 60%, 15%, 15% and 10% of the groups of each class. If the source has its own test split, they are
    65%, 17.5% and 17.5%. The order of the rows does not matter: groups and ids are sorted before they are shuffled.

    Args:
        ids: Row ids.
        labels: Labels, int64 [n].
        groups: Group of each row. None: the row is its own group.
        sha256: Digest of each picture. It may be None for rows in `left_out`.
        official_test: bool [n], True for rows of the source's own test split.
        left_out: Rows to leave out, as id -> reason.
        seed: Seed of the division and of the label noise.
        on_overlap: What to do with a group or picture in two roles.
        label_noise: Share of the train labels to flip.

    Raises:
        DataError: If rows overlap and `on_overlap` is `error`, or a role lacks rows of a class.
    """
    # A row without a group is its own group. The prefix separates it from a group that is named like a row id.
    own_groups = [f"group:{g}" if g is not None else f"row:{row_id}" for row_id, g in zip(ids, groups, strict=True)]
    kept = np.array([row_id not in left_out for row_id in ids])
    roles = np.where(official_test, "test", "").astype(object)
    dividing = np.flatnonzero(kept & ~official_test).tolist()
    shares = _SHARES_WITH_OFFICIAL_TEST if official_test.any() else _SHARES
    role_of_group = _divide_groups([own_groups[i] for i in dividing], labels[dividing], shares, seed)
    for i in dividing:
        roles[i] = role_of_group[own_groups[i]]
    dropped = [
        {"id": row_id, "role": str(roles[i]), "reason": left_out[row_id]}
        for i, row_id in enumerate(ids)
        if not kept[i]
    ]
    overlaps = _overlaps(np.flatnonzero(kept).tolist(), ids, roles, own_groups, sha256)
    if overlaps and on_overlap == "error":
        i, reason = next(iter(overlaps.items()))
        raise DataError(
            f"{len(overlaps)} rows overlap between splits, the first is {ids[i]} ({reason}): "
            "set data.on_overlap=drop to leave them out"
        )
    for i, reason in overlaps.items():
        kept[i] = False
        dropped.append({"id": ids[i], "role": str(roles[i]), "reason": reason})
    at = np.flatnonzero(kept).tolist()
    train = sorted((i for i in at if roles[i] == "train"), key=lambda i: ids[i])
    used_labels = _flip_train_labels(labels, np.array(train, dtype=np.int64), label_noise, seed)
    splits = Splits(
        ids=[ids[i] for i in at],
        roles=[str(roles[i]) for i in at],
        groups=[own_groups[i] for i in at],
        labels=[int(used_labels[i]) for i in at],
        sha256=[str(sha256[i]) for i in at],
        dropped=dropped,
    )
    _require_both_classes(splits)
    return splits


def _divide_groups(groups: list[str], labels: np.ndarray, shares: dict[str, float], seed: int) -> dict[str, str]:
    """Assign a role to each group. A group has the class of most of its rows.

    Each class is divided by the largest remainder method.
    """
    votes: dict[str, list[int]] = defaultdict(list)
    for group, label in zip(groups, labels, strict=True):
        votes[group].append(int(label))
    role_of_group = {}
    for label in (0, 1):
        members = sorted(group for group, seen in votes.items() if (2 * sum(seen) >= len(seen)) == bool(label))
        order = np.random.default_rng([seed, label]).permutation(len(members))
        exact = {role: share * len(members) for role, share in shares.items()}
        sizes = {role: int(size) for role, size in exact.items()}
        by_remainder = sorted(shares, key=lambda role: sizes[role] - exact[role])
        for role in by_remainder[: len(members) - sum(sizes.values())]:
            sizes[role] += 1
        start = 0
        for role, size in sizes.items():
            role_of_group.update({members[i]: role for i in order[start : start + size]})
            start += size
    return role_of_group


def _overlaps(
    at: list[int], ids: Sequence[str], roles: np.ndarray, groups: Sequence[str], sha256: Sequence[str | None]
) -> dict[int, str]:
    """Find the rows whose group or picture is also in a more protected role, with the reason to drop each."""
    reasons: dict[int, str] = {}
    for what, keys in (("group", groups), ("picture", sha256)):
        strictest: dict[str | None, int] = {}
        for i in at:
            if i not in reasons:
                best = strictest.setdefault(keys[i], i)
                if ROLES.index(roles[i]) > ROLES.index(roles[best]):
                    strictest[keys[i]] = i
        for i in at:
            other = strictest.get(keys[i], i)
            if i not in reasons and ROLES.index(roles[i]) < ROLES.index(roles[other]):
                reasons[i] = f"the same {what} is in {roles[other]} as row {ids[other]}"
    return reasons


def _flip_train_labels(labels: np.ndarray, train: np.ndarray, share: float, seed: int) -> np.ndarray:
    flipped = labels.copy()
    chosen = np.random.default_rng([seed, 2]).permutation(train)[: round(share * len(train))]
    flipped[chosen] = 1 - flipped[chosen]
    return flipped


def _require_both_classes(splits: Splits) -> None:
    for role, count in splits.counts().items():
        if count["rows"] == 0:
            raise DataError(
                f"no rows are left for {role}: the source has too few groups ({_group_total(splits)}) to divide"
                f"{_besides(splits)}, add more groups"
            )
        if count["positive_rows"] in (0, count["rows"]):
            missing = 1 if count["positive_rows"] == 0 else 0
            raise DataError(
                f"{role} has no row with label {missing}: the source has too few groups of that class to divide"
                f"{_besides(splits)}, add more groups"
            )


def _group_total(splits: Splits) -> int:
    return len(set(splits.groups))


def _besides(splits: Splits) -> str:
    return f" (left out: {say_dropped(splits.dropped)})" if splits.dropped else ""


def write_splits(path: Path, splits: Splits) -> None:
    columns = ("ids", "roles", "groups", "labels", "sha256", "dropped")
    summary = {"schema": SCHEMA, "counts": splits.counts(), "dropped_reasons": dropped_reasons(splits.dropped)}
    write_json(path, summary | {name: getattr(splits, name) for name in columns})


def dropped_reasons(dropped: list[dict[str, str]]) -> dict[str, int]:
    """Count the rows left out for each kind of reason."""
    return dict(Counter(re.split(" as row |: ", row["reason"])[0] for row in dropped))


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
    if len({len(content[c]) for c in columns}) != 1 or any(role not in ROLES for role in content["roles"]):
        raise VerificationError(f"{path} has columns that do not fit together: it was damaged after it was written")
    return Splits(**{c: content[c] for c in columns}, dropped=content.get("dropped", []))


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
