"""Seeded splits by group, stratified by class; what overlaps or contradicts itself is left out."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from natix_hf.data.splits import CONTRADICTION, ROLES, Splits, say_dropped
from natix_hf.errors import DataError

SHARES = {"train": 0.60, "val_select": 0.15, "val_calib": 0.15, "test": 0.10}
_SHARES_WITH_OFFICIAL_TEST = {"train": 0.65, "val_select": 0.175, "val_calib": 0.175}


def make_splits(
    ids: Sequence[str],
    labels: np.ndarray,
    groups: Sequence[str | None],
    sha256: Sequence[str | None],
    given: Sequence[str | None],
    left_out: dict[str, str],
    seed: int,
    on_overlap: Literal["drop", "error"],
    label_noise: float = 0.0,
    origins: Sequence[str] | None = None,
) -> Splits:
    """Divide rows by group into train, val_select, val_calib and test.

    The shares are 60%, 15%, 15% and 10% of the groups of each class. If the source has its own test split, they are
    65%, 17.5% and 17.5%. A validation split of the source is val_select, and the others keep their proportions. A
    picture that has both labels is left out everywhere. The order of the rows does not matter: groups and ids are
    sorted before they are shuffled.

    Args:
        ids: Row ids.
        labels: Labels, int64 [n].
        groups: Group of each row. None: the row is its own group.
        sha256: Digest of each picture. It may be None for rows in `left_out`.
        given: The role that a row has already: "test" or "val_select" from the source's own splits, or "train" for a
            source that nothing may be measured on. None: the row is divided.
        left_out: Rows to leave out, as id -> reason.
        seed: Seed of the division and of the label noise.
        on_overlap: What to do with a group or picture in two roles.
        label_noise: Share of the train labels to flip.
        origins: Source of each row. Sources with the same splits of their own are divided together. None: there is
            one source.

    Raises:
        DataError: If rows overlap and `on_overlap` is `error`, or a role lacks rows of a class.
    """
    # A row without a group is its own group. The prefix separates it from a group that is named like a row id.
    own_groups = [f"group:{g}" if g is not None else f"row:{row_id}" for row_id, g in zip(ids, groups, strict=True)]
    both = _contradictions(ids, labels, sha256, left_out)
    left_out = left_out | both
    kept = np.array([row_id not in left_out for row_id in ids])
    roles = np.array([role or "" for role in given], dtype=object)
    names = np.asarray(origins if origins is not None else [""] * len(ids))
    own_splits = {name: frozenset(roles[kept & (names == name)]) - {"", "train"} for name in np.unique(names)}
    dividing: list[int] = []
    shares: dict[str, float] = {}
    for given_roles in sorted(set(own_splits.values()), key=sorted):
        alike = np.isin(names, [name for name, own in own_splits.items() if own == given_roles])
        part = np.flatnonzero(kept & (roles == "") & alike).tolist()
        of_part = _shares(given_roles)
        role_of_group = _divide_groups([own_groups[i] for i in part], labels[part], of_part, seed)
        for i in part:
            roles[i] = role_of_group[own_groups[i]]
        dividing += part
        shares = of_part if len(of_part) > len(shares) and part else shares
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
    _require_both_classes(splits, shares, {ids[i] for i in dividing})
    return splits


def _shares(given: Collection[str]) -> dict[str, float]:
    """The shares of the roles that the source's own splits do not give."""
    shares = _SHARES_WITH_OFFICIAL_TEST if "test" in given else SHARES
    if "val_select" not in given:
        return shares
    left = {role: share for role, share in shares.items() if role not in given}
    return {role: share / sum(left.values()) for role, share in left.items()}


def _contradictions(
    ids: Sequence[str], labels: np.ndarray, sha256: Sequence[str | None], left_out: dict[str, str]
) -> dict[str, str]:
    """The rows whose picture also stands in the source with the other label, with the reason to drop each."""
    first: dict[str, dict[int, str]] = defaultdict(dict)
    facts = [
        (row_id, int(label), digest)
        for row_id, label, digest in zip(ids, labels, sha256, strict=True)
        if row_id not in left_out and digest is not None
    ]
    for row_id, label, digest in facts:
        first[digest].setdefault(label, row_id)
    return {
        row_id: f"{CONTRADICTION}: it is also row {first[digest][1 - label]}"
        for row_id, label, digest in facts
        if len(first[digest]) == 2
    }


def _divide_groups(groups: list[str], labels: np.ndarray, shares: dict[str, float], seed: int) -> dict[str, str]:
    """Assign a role to each group. A group has the class of most of its rows.

    Each class is divided by the largest remainder method.
    """
    votes: dict[str, list[int]] = defaultdict(list)
    for group, label in zip(groups, labels, strict=True):
        votes[group].append(int(label))
    role_of_group = {}
    for label in (0, 1):
        members = sorted(group for group, seen in votes.items() if _is_positive(seen) == bool(label))
        order = np.random.default_rng([seed, label]).permutation(len(members))
        start = 0
        for role, size in _sizes(shares, len(members)).items():
            role_of_group.update({members[i]: role for i in order[start : start + size]})
            start += size
    return role_of_group


def _sizes(shares: dict[str, float], count: int) -> dict[str, int]:
    """Divide `count` groups by the largest remainder method."""
    exact = {role: share * count for role, share in shares.items()}
    sizes = {role: int(size) for role, size in exact.items()}
    by_remainder = sorted(shares, key=lambda role: sizes[role] - exact[role])
    for role in by_remainder[: count - sum(sizes.values())]:
        sizes[role] += 1
    return sizes


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


def groups_needed(shares: dict[str, float]) -> int:
    """The smallest number of groups of a class of which every role gets one."""
    return next(count for count in itertools.count(1) if all(_sizes(shares, count).values()))


def _require_both_classes(splits: Splits, shares: dict[str, float], divided: set[str]) -> None:
    """Refuse splits of which one lacks a class, with the number of groups that each class needs.

    Args:
        shares: Shares of the roles that were divided; the other roles are the source's own splits.
        divided: Ids of the rows that were divided.
    """
    lacking = [
        (role, label)
        for role, count in splits.counts().items()
        for label, rows in ((0, count["rows"] - count["positive_rows"]), (1, count["positive_rows"]))
        if not rows
    ]
    if not lacking:
        return
    role, label = lacking[0]
    begin = f"{role} has no row with label {label}"
    if role not in shares:
        own = "test" if role == "test" else "validation"
        raise DataError(
            f"{begin}: the source's own {own} split needs both classes{_besides(splits)}, add rows of the other or "
            "leave that split out"
        )
    needed, found = groups_needed(shares), _groups_by_class(splits, divided)
    counted = " and ".join(f"{count} with label {which}" for which, count in found.items())
    missing = " and ".join(f"{needed - count} with label {which}" for which, count in found.items() if count < needed)
    raise DataError(
        f"{begin}: the source has too few groups to divide ({counted}{_besides(splits)}), and {', '.join(shares)} "
        f"need {needed} of each label: add {missing or 'more groups'}"
    )


def _groups_by_class(splits: Splits, divided: set[str]) -> dict[int, int]:
    """The number of groups that were divided, by the class of most of their rows."""
    votes: dict[str, list[int]] = defaultdict(list)
    for row_id, group, label in zip(splits.ids, splits.groups, splits.labels, strict=True):
        if row_id in divided:
            votes[group].append(label)
    positive = sum(_is_positive(seen) for seen in votes.values())
    return {0: len(votes) - positive, 1: positive}


def _is_positive(labels: list[int]) -> bool:
    return 2 * sum(labels) >= len(labels)


def _besides(splits: Splits) -> str:
    return f"; left out: {say_dropped(splits.dropped)}" if splits.dropped else ""
