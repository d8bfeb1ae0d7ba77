"""Splits by group: the stated shares, no row order, no leak; and what overlaps leaves the less protected side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facts import tells
from refusals import refused

from natix_hf.data.division import make_splits
from natix_hf.data.splits import ROLES, Splits, leaks_between_roles, read_splits, write_splits
from natix_hf.errors import DataError, VerificationError

SHARES = {"train": 0.60, "val_select": 0.15, "val_calib": 0.15, "test": 0.10}
SHARES_BESIDE_TEST = {"train": 0.65, "val_select": 0.175, "val_calib": 0.175}


@dataclass
class Source:
    ids: list[str]
    labels: np.ndarray
    groups: list[str | None]
    sha256: list[str]
    given: list[str | None]

    def split(self, seed: int = 0, on_overlap: Any = "drop", noise: float = 0.0, left_out: Any = None) -> Splits:
        columns = self.ids, self.labels, self.groups, self.sha256, self.given
        return make_splits(*columns, left_out or {}, seed, on_overlap, noise)

    def reordered(self, order: np.ndarray) -> Source:
        lists = ([column[i] for i in order] for column in (self.ids, self.groups, self.sha256, self.given))
        ids, groups, sha256, given = lists
        return Source(ids, self.labels[order], groups, sha256, given)


def random_source(seed: int, official: int = 0, pictures: int | None = None, groups_in_test: bool = False) -> Source:
    """Groups of 1 to 6 rows, one class each, some rows without a group, and `official` rows of a test split.

    `pictures`: how many different ones there are, so that some appear twice; None: all differ.
    """
    rng = np.random.default_rng(seed)
    labels: list[int] = []
    groups: list[str | None] = []
    for group in range(int(rng.integers(60, 150))):
        rows = int(rng.integers(1, 7))
        labels += [int(rng.random() < 0.35)] * rows
        groups += [f"video {group}"] * rows if rng.random() < 0.9 else [None] * rows
    divided = len(labels)
    labels += rng.integers(0, 2, official).tolist()
    groups += [str(rng.choice(np.array(groups[:divided], dtype=object))) if groups_in_test else None] * official
    n = len(labels)
    drawn = [rng.integers(pictures) if pictures else i for i in range(n)]
    sha256 = [f"picture {number} of label {label}" for number, label in zip(drawn, labels, strict=True)]
    is_test = np.arange(n) >= divided
    ids = [f"{'test' if t else 'train'}/{i}" for i, t in enumerate(is_test)]
    return Source(ids, np.array(labels, dtype=np.int64), groups, sha256, ["test" if t else None for t in is_test])


def role_of(splits: Splits) -> dict[str, str]:
    return dict(zip(splits.ids, splits.roles, strict=True))


@pytest.mark.parametrize("official", [0, 30])
@pytest.mark.parametrize("seed", range(6))
def test_shares_of_groups_per_class_and_no_group_in_two_splits(seed: int, official: int) -> None:
    source = random_source(seed, official)
    splits = source.split(seed)
    assert sorted(splits.ids) == sorted(source.ids) and not splits.dropped
    assert leaks_between_roles(splits) == []
    shares = SHARES_BESIDE_TEST if official else SHARES
    divided = [i for i, row_id in enumerate(splits.ids) if not row_id.startswith("test/")]
    for label in (0, 1):
        groups = {splits.groups[i]: splits.roles[i] for i in divided if splits.labels[i] == label}
        for role, share in shares.items():
            count = sum(r == role for r in groups.values())
            assert abs(count - share * len(groups)) < 1, f"{count} of {len(groups)} groups of label {label} in {role}"
    if official:
        assert set(splits.ids_of("test")) == {row_id for row_id in source.ids if row_id.startswith("test/")}


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    source = random_source(seed, official=20, pictures=900)
    order = np.random.default_rng(seed + 50).permutation(len(source.ids))
    one, other = source.split(noise=0.1), source.reordered(order).split(noise=0.1)
    assert role_of(one) == role_of(other)
    assert dict(zip(one.ids, one.labels, strict=True)) == dict(zip(other.ids, other.labels, strict=True))
    assert {row["id"] for row in one.dropped} == {row["id"] for row in other.dropped}
    assert other.ids == [source.ids[i] for i in order if source.ids[i] in set(one.ids)], "entries keep the given order"


def test_the_seed_decides_and_nothing_else() -> None:
    source = random_source(3)
    assert source.split(7, noise=0.1) == source.split(7, noise=0.1)
    assert role_of(source.split(7)) != role_of(source.split(8))


def test_a_mixed_group_counts_for_its_majority_and_stays_whole() -> None:
    base = random_source(1)
    labels = base.labels.copy()
    first = [i for i, group in enumerate(base.groups) if group == next(g for g in base.groups if g)]
    labels[first[0]] = 1 - labels[first[0]]
    splits = replace(base, labels=labels).split()
    assert len({splits.roles[i] for i in first}) == 1


def test_a_group_named_like_a_row_is_another_group() -> None:
    """A row without a group is its own group, also where some group has its id for a name."""
    base = random_source(2)
    alone = base.groups.index(None)
    groups = [base.ids[alone] if g == "video 0" else g for g in base.groups]
    splits = replace(base, groups=groups).split()
    assert splits.groups[alone] not in {splits.groups[i] for i, g in enumerate(groups) if g == base.ids[alone]}


def _brute_force_overlaps(source: Source, before: dict[str, str]) -> set[str]:
    """Rows that must leave, pair by pair: first those with a group in a stricter role, then, of what is left, those
    with a picture in one."""
    rank = {role: n for n, role in enumerate(ROLES)}
    kept = list(range(len(source.ids)))
    for keys in (source.groups, source.sha256):
        leaving = {
            i
            for i in kept
            for j in kept
            if keys[i] is not None and keys[i] == keys[j] and rank[before[source.ids[i]]] < rank[before[source.ids[j]]]
        }
        kept = [i for i in kept if i not in leaving]
    return {source.ids[i] for i in range(len(source.ids)) if i not in kept}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("groups_in_test", [False, True])
def test_overlap_equals_a_pairwise_search(seed: int, groups_in_test: bool) -> None:
    source = random_source(seed, official=25, pictures=600, groups_in_test=groups_in_test)
    splits = source.split(seed)
    untouched = replace(source, sha256=[f"{i}" for i in range(len(source.ids))])
    before = role_of(untouched.split(seed)) | {row["id"]: row["role"] for row in untouched.split(seed).dropped}
    expected = _brute_force_overlaps(source, before)
    assert expected, "the planted overlap"
    assert {row["id"] for row in splits.dropped} == expected
    assert len(splits.dropped) == len(expected)
    assert set(splits.ids) == set(source.ids) - expected
    assert leaks_between_roles(splits) == []
    assert {row["role"] for row in splits.dropped} <= set(ROLES[:-1]), "a test row never leaves"
    with pytest.raises(DataError) as caught:
        source.split(seed, on_overlap="error")
    assert tells(caught.value, f"{len(expected)} rows", "data.on_overlap=drop")
    assert any(row_id in str(caught.value) for row_id in expected)


@pytest.mark.parametrize("weaker", ROLES[:-1])
@pytest.mark.parametrize("stricter", ROLES[1:])
def test_one_planted_picture_leaves_the_less_protected_side(weaker: str, stricter: str, tmp_path: Path) -> None:
    if ROLES.index(weaker) >= ROLES.index(stricter):
        weaker, stricter = stricter, weaker  # planted the other way round
    source = random_source(0)
    clean = source.split()
    label_of = dict(zip(clean.ids, clean.labels, strict=True))
    a = clean.ids_of(weaker)[-1]
    b = next(row_id for row_id in clean.ids_of(stricter) if label_of[row_id] == label_of[a])
    sha256 = ["twin" if row_id in (a, b) else row_id for row_id in source.ids]
    splits = replace(source, sha256=sha256).split()
    if weaker == stricter:
        assert splits.dropped == [] and a in splits.ids and b in splits.ids, "within one role it is no leak"
        return
    (dropped,) = splits.dropped
    assert (dropped["id"], dropped["role"]) == (a, weaker) and tells(dropped["reason"], "picture", stricter, b)
    assert role_of(splits) == {row_id: role for row_id, role in role_of(clean).items() if row_id != a}
    write_splits(tmp_path / "splits.json", splits, {})
    counted = json.loads((tmp_path / "splits.json").read_text())["dropped_reasons"]
    assert list(counted.values()) == [1] and tells(*counted, "picture", stricter) and b not in str(counted)
    strict = replace(source, sha256=sha256)
    refused(DataError, lambda: strict.split(on_overlap="error"), a, b, "data.on_overlap=drop")


def test_a_group_across_the_official_test_leaves_the_training_side() -> None:
    source = random_source(4, official=10)
    train_group = next(g for g in source.groups if g is not None)
    groups = [*source.groups[:-1], train_group]
    splits = replace(source, groups=groups).split()
    members = {row_id for row_id, g in zip(source.ids[:-1], groups[:-1], strict=True) if g == train_group}
    assert {row["id"] for row in splits.dropped} == members
    assert all(tells(row["reason"], "group", "test/") for row in splits.dropped)
    assert source.ids[-1] in splits.ids_of("test")


def test_refused_rows_are_listed_and_protect_nothing() -> None:
    source = random_source(5, official=10)
    refused = source.ids[-1]
    sha256 = [*source.sha256]
    sha256[0] = sha256[-1]
    splits = replace(source, sha256=sha256).split(left_out={refused: "label 1 without a scene description"})
    assert splits.dropped == [{"id": refused, "role": "test", "reason": "label 1 without a scene description"}]
    assert source.ids[0] in splits.ids


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.25])
def test_label_noise_flips_its_exact_share_of_train_and_no_other_row(noise: float) -> None:
    source = random_source(6)
    splits, true = source.split(noise=noise), dict(zip(source.ids, source.labels.tolist(), strict=True))
    flipped = [r for row_id, r, y in zip(splits.ids, splits.roles, splits.labels, strict=True) if y != true[row_id]]
    assert len(flipped) == round(noise * len(splits.ids_of("train")))
    assert set(flipped) <= {"train"}
    assert source.labels.tolist() == list(true.values()), "the source's own labels stay"


@pytest.mark.parametrize(
    ("labels", "official", "facts"),
    [
        ([0, 1] * 2, 0, ["2 with label 0 and 2 with label 1", "need 6", "add 4 with label 0 and 4 with label 1"]),
        ([0] * 40 + [1] * 4, 0, ["40 with label 0 and 4 with label 1", "need 6", "add 2 with label 1"]),
        ([1] * 40, 0, ["label 0", "need 6", "add 6 with label 0"]),
        ([0] * 40 + [1] * 3 + [0, 1], 2, ["40 with label 0 and 3 with label 1", "need 4", "add 1 with label 1"]),
        ([0, 1] * 20 + [0, 0], 2, ["test", "label 1", "own test split"]),
    ],
)
def test_too_few_groups_is_an_error_that_says_how_many_are_needed(
    labels: list[int], official: int, facts: list[str]
) -> None:
    refused(DataError, _rows_alone(labels, official).split, *facts)


def _rows_alone(labels: list[int], official: int) -> Source:
    n = len(labels)
    given = ["test" if i >= n - official else None for i in range(n)]
    return Source([f"train/{i}" for i in range(n)], np.array(labels), [None] * n, [str(i) for i in range(n)], given)


@pytest.mark.parametrize(("official", "needed"), [(0, 6), (2, 4)])
def test_as_many_as_are_needed_are_enough(official: int, needed: int) -> None:
    for count in range(needed, needed + 30):
        counts = _rows_alone([0, 1] * count + [0, 1][:official], official).split().counts()
        assert all(0 < role["positive_rows"] < role["rows"] for role in counts.values())


@pytest.mark.parametrize("seed", range(3))
def test_a_picture_with_both_labels_is_kept_nowhere(seed: int) -> None:
    """Equal to a search over all pairs of rows."""
    source = random_source(seed, official=20)
    rng = np.random.default_rng(seed)
    sha256 = [f"picture {number}" for number in rng.integers(0, 3 * len(source.ids), len(source.ids))]
    splits = replace(source, sha256=sha256).split()
    rows = list(zip(source.ids, source.labels.tolist(), sha256, strict=True))
    both = {a for a, label, digest in rows for _, other, same in rows if digest == same and label != other}
    assert both and not both & set(splits.ids)
    refused_rows = {row["id"]: row["reason"] for row in splits.dropped if "both labels" in row["reason"]}
    assert set(refused_rows) == both


@pytest.mark.parametrize("given", [{"val_select"}, {"val_select", "test"}])
def test_a_validation_split_is_val_select_and_the_rest_keeps_its_shares(given: set[str]) -> None:
    source = random_source(4, official=40)
    fixed = ["val_select" if role else None for role in source.given]
    if "test" in given:
        fixed = [("test" if i % 2 else role) if role else None for i, role in enumerate(fixed)]
    splits = replace(source, given=fixed).split()
    role_by_id = role_of(splits)
    assert all(role_by_id[row_id] == role for row_id, role in zip(source.ids, fixed, strict=True) if role)
    shares = SHARES_BESIDE_TEST if "test" in given else SHARES
    left = {role: share for role, share in shares.items() if role not in given}
    divided = [i for i, row_id in enumerate(splits.ids) if not row_id.startswith("test/")]
    for label in (0, 1):
        groups = {splits.groups[i]: splits.roles[i] for i in divided if splits.labels[i] == label}
        assert set(groups.values()) == set(left)
        for role, share in left.items():
            count = sum(r == role for r in groups.values())
            assert abs(count - share / sum(left.values()) * len(groups)) < 1


def test_splits_come_back_from_their_file(tmp_path: Path) -> None:
    splits = random_source(7, official=20, pictures=500).split(noise=0.1)
    assert splits.dropped
    write_splits(tmp_path / "splits.json", splits, {})
    assert read_splits(tmp_path / "splits.json") == splits
    counts = json.loads((tmp_path / "splits.json").read_text())["counts"]
    for role in ROLES:
        at = splits.positions(role)
        positive = [i for i in at if splits.labels[i]]
        assert counts[role] == {
            "rows": len(splits.ids_of(role)),
            "positive_rows": len(positive),
            "groups": len({splits.groups[i] for i in at}),
            "positive_groups": len({splits.groups[i] for i in positive}),
        }


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda c: [c],
    "another schema": lambda c: c | {"schema": 99},
    "no schema": lambda c: {k: v for k, v in c.items() if k != "schema"},
    "a column is gone": lambda c: {k: v for k, v in c.items() if k != "sha256"},
    "a column is text": lambda c: c | {"ids": "train/0"},
    "a column is short": lambda c: c | {"labels": c["labels"][:-1]},
    "an unknown role": lambda c: c | {"roles": ["training", *c["roles"][1:]]},
    "a role that is a list": lambda c: c | {"roles": [["train"], *c["roles"][1:]]},
}


@pytest.mark.parametrize("damage", [*DAMAGE, "half a file", "no file"])
def test_a_damaged_splits_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    write_splits(path, random_source(8).split(), {})
    if damage in DAMAGE:
        path.write_text(json.dumps(DAMAGE[damage](json.loads(path.read_text()))))
    else:
        path.unlink() if damage == "no file" else path.write_bytes(path.read_bytes()[:1000])
    refused(VerificationError, lambda: read_splits(path), path)


def test_a_leak_is_found_by_its_group_and_by_its_picture() -> None:
    splits = random_source(9).split()
    counted = [splits.groups.count(g) for g in splits.groups]
    at = next(i for i in splits.positions("train") if counted[i] > 1)
    found = leaks_between_roles(replace(splits, roles=[*splits.roles[:at], "test", *splits.roles[at + 1 :]]))
    assert found and all(splits.groups[at] in line for line in found)
    assert any(splits.ids[at] in line for line in found)
    a, b = splits.positions("train")[0], splits.positions("val_calib")[0]
    sha256 = [splits.sha256[b] if i == a else digest for i, digest in enumerate(splits.sha256)]
    (line,) = leaks_between_roles(replace(splits, sha256=sha256))
    assert tells(line, "picture", sha256[b], splits.ids[a], splits.ids[b], "train", "val_calib")


@pytest.mark.parametrize("role", ["train", "test"])
def test_a_duplicated_id_is_found_in_the_same_and_in_another_role(role: str) -> None:
    splits = random_source(9).split()
    at = splits.positions("train")[0]
    twice = Splits(
        [*splits.ids, splits.ids[at]], [*splits.roles, role], [*splits.groups, "own"], [*splits.labels, 0],
        [*splits.sha256, "own"],
    )  # fmt: skip
    (line,) = leaks_between_roles(twice)
    assert tells(line, splits.ids[at], "twice", "train", role)
