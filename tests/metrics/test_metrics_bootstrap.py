"""The bootstrap: what is drawn, and that the intervals are those of compute_metrics over the same resamples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics import bootstrap_intervals, compute_metrics, count_groups, group_weights, paired_difference
from natix_hf.metrics import groups as groups_module
from natix_hf.metrics.table import interval_names, rates


def sample(seed: int, n_groups: int = 30, rows: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, labels and groups of unequal size; each group is of one class."""
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, n_groups, n_groups * rows)
    labels = (groups % 3 == 0).astype(int)
    logits = generator.normal(size=groups.size) + generator.normal(size=n_groups)[groups] + 2 * labels - 1
    return 1 / (1 + np.exp(-logits)), labels, groups


def draws(*arguments: Any) -> np.ndarray:
    return np.concatenate(list(group_weights(*arguments)))


def test_weights_respect_groups_and_classes() -> None:
    groups = np.array(["b", "a", "c", "a", "d", "b", "e", "e", "e"])
    labels = np.array([1, 0, 1, 0, 0, 0, 1, 1, 0])  # b ties, so it is positive; e is positive by majority
    weights = draws(groups, labels, 500, 3)
    assert weights.shape == (500, 9) and weights.dtype.kind == "i" and weights.min() == 0
    assert np.array_equal(weights[:, 0], weights[:, 5]) and np.array_equal(weights[:, 1], weights[:, 3])
    assert np.array_equal(weights[:, 6], weights[:, 7]) and np.array_equal(weights[:, 6], weights[:, 8])
    # One column for each group: three positive ones (b, c, e) and two negative ones (a, d).
    assert (weights[:, [0, 2, 6]].sum(axis=1) == 3).all()
    assert (weights[:, [1, 4]].sum(axis=1) == 2).all()
    # With replacement, each group as often: mean 1, and variance 1 - 1/G of a binomial draw.
    assert weights.mean(axis=0) == pytest.approx(np.ones(9), abs=0.15)
    assert weights[:, 2].var() == pytest.approx(2 / 3, abs=0.12)
    # The classes are drawn independently.
    assert abs(np.corrcoef(weights[:, 2], weights[:, 1])[0, 1]) < 0.15


def test_weights_depend_on_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, labels, groups = sample(0)
    whole = draws(groups, labels, 50, 1)
    assert len(list(group_weights(groups, labels, 50, 1))) == 1 and len(np.unique(whole, axis=0)) == 50
    assert not np.array_equal(whole, draws(groups, labels, 50, 2))
    assert np.array_equal(whole[:20], draws(groups, labels, 20, 1))
    for size, sizes in ((7 * 8 * groups.size, [7] * 7 + [1]), (1, [1] * 50)):
        monkeypatch.setattr(groups_module, "CHUNK_BYTES", size)
        assert [len(chunk) for chunk in group_weights(groups, labels, 50, 1)] == sizes
        assert np.array_equal(whole, draws(groups, labels, 50, 1))


def test_chunks_are_bounded() -> None:
    chunk = next(group_weights(np.arange(200_000), np.arange(200_000) % 2, 50, 0))
    assert 32 << 20 < chunk.nbytes <= 64 << 20


@pytest.mark.parametrize("weighted", [False, True])
def test_intervals_are_those_of_compute_metrics(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    p, y, groups = sample(4)
    p = p.round(1)  # so that some equal the threshold
    p[:4] = [0, 1, 0, 1]  # certain, some of them wrong: the likelihood is clipped
    base = np.random.default_rng(1).random(y.size) + 0.1 if weighted else np.ones(y.size)
    names = (*rates(), "brier", "nll", "auroc", "auprc", "ece")
    looped = [compute_metrics(p, y, 0.6, sample_weight=row * base) for row in draws(groups, y, 40, 9)]
    monkeypatch.setattr(groups_module, "CHUNK_BYTES", 30 * 8 * y.size)
    given = base if weighted else None
    found = bootstrap_intervals(p, y, groups, 0.6, given, n_resamples=40, level=0.9, seed=9, metrics=names)
    assert list(found) == list(names)
    for name in names:
        expected = np.nanpercentile([metrics[name] for metrics in looped], [5, 95])
        assert found[name] == pytest.approx(tuple(expected), abs=1e-12), name
        assert found[name][0] < compute_metrics(p, y, 0.6, sample_weight=base)[name] < found[name][1] or name == "ece"


def test_undefined_resamples_are_left_out() -> None:
    # Precision is undefined in a resample without the one group that is called positive.
    p, y, groups = [0.9, 0.1, 0.2, 0.3], [1, 1, 0, 0], [0, 1, 2, 3]
    found = bootstrap_intervals(p, y, groups, n_resamples=60, metrics=["precision", "recall"])
    assert found["precision"] == (1, 1) and found["recall"] == (0, 1)
    nothing = bootstrap_intervals(p, y, groups, 0.95, n_resamples=20, metrics=["precision", "mcc"])
    assert all(math.isnan(end) for end in nothing["precision"]) and nothing["mcc"] == (0, 0)
    one_class = bootstrap_intervals(p, [0] * 4, groups, n_resamples=20)
    assert tuple(one_class) == interval_names() == (*rates(), "brier", "nll", "auroc", "ece")
    for name in ("recall", "auroc", "balanced_accuracy"):
        assert all(math.isnan(end) for end in one_class[name])
    assert 0 <= one_class["accuracy"][0] < one_class["accuracy"][1] <= 1
    # A resample may hold no row of any weight.
    light = bootstrap_intervals(p, y, groups, sample_weight=[1, 0, 1, 0], n_resamples=60)
    assert light["brier"][1] < 0.05 and not any(math.isnan(end) for end in light["ece"])


def test_intervals_cover() -> None:
    # Rows of a group share their outcome, so that rows drawn alone would make the interval far too short.
    true_recall, per_class, rows, runs = 0.7, 40, 5, 60
    groups = np.repeat(np.arange(2 * per_class), rows)
    labels = (groups < per_class).astype(int)
    covered = {"groups": 0, "rows": 0}
    for run in range(runs):
        outcome = np.random.default_rng(run).random(2 * per_class)[groups] < true_recall
        for name, names in (("groups", groups), ("rows", np.arange(groups.size))):
            found = bootstrap_intervals(outcome, labels, names, n_resamples=150, seed=run, metrics=["recall"])
            covered[name] += found["recall"][0] <= true_recall <= found["recall"][1]
    assert 0.85 <= covered["groups"] / runs <= 1 and covered["rows"] / runs < 0.8


@pytest.mark.parametrize("weighted", [False, True])
def test_paired_difference_is_that_of_compute_metrics(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    a, y, groups = sample(6)
    a = a.round(1)  # so that some equal the threshold
    logits = np.log(a.clip(0.01, 0.99) / (1 - a.clip(0.01, 0.99)))  # other scores with the same decisions
    assert paired_difference(a, logits, y, groups, 0.5, 0, n_resamples=9) == {"difference": 0, "low": 0, "high": 0}
    b = np.clip(a + np.where(y == 1, 0.15, -0.05), 0, 1)
    base = np.random.default_rng(1).random(y.size) + 0.1 if weighted else np.ones(y.size)

    def difference(weights: np.ndarray) -> float:
        after = compute_metrics(b, y, 0.6, sample_weight=weights)["mcc"]
        return after - compute_metrics(a, y, 0.5, sample_weight=weights)["mcc"]

    resampled = [difference(row * base) for row in draws(groups, y, 30, 2)]
    monkeypatch.setattr(groups_module, "CHUNK_BYTES", 20 * 8 * y.size)
    rest: dict[str, Any] = {"sample_weight": base if weighted else None, "n_resamples": 30, "level": 0.8, "seed": 2}
    low, high = np.percentile(resampled, [10, 90])
    found = paired_difference(a, b, y, groups, 0.5, 0.6, **rest)
    assert found == pytest.approx({"difference": difference(base), "low": low, "high": high}, abs=1e-12)
    swapped = paired_difference(b, a, y, groups, 0.6, 0.5, **rest)
    assert swapped == pytest.approx({"difference": -found["difference"], "low": -high, "high": -low}, abs=1e-12)


def test_count_groups() -> None:
    # Identifiers beyond 2**53 are not told apart by a float64.
    assert count_groups(torch.tensor([2**60, 2**60 + 1, 2**60 + 2]), [0, 1, 1])["groups"] == 3
    groups, labels = ["a", "a", "b", "c", "c", "c"], [1, 0, 0, 1, 0, 0]
    assert count_groups(groups, labels) == {"groups": 3, "positive_groups": 1, "negative_groups": 2, "few": True}
    for negatives, few in ((19, True), (20, False)):
        counted = count_groups(np.arange(20 + negatives), [1] * 20 + [0] * negatives)
        assert counted["few"] is few and counted["negative_groups"] == negatives


PAIR: dict[str, Any] = {"scores_a": [0.1, 0.9], "scores_b": [0.1, 0.9], "threshold_a": 0.5, "threshold_b": 0.5}
REFUSED: list[tuple[type[Exception], dict[str, Any], list[object]]] = [
    (UsageError, {"n_resamples": 0}, ["n_resamples", 1, 0]), (UsageError, {"seed": -1}, ["seed", -1]),
    (UsageError, {"level": 1.0}, ["level", "1.0"]), (UsageError, {"level": 95}, ["level", 95]),
    (UsageError, {"metrics": ["mcc", "n", "kappa"]}, ["n, kappa", "accuracy", "smooth_ece"]),
    (UsageError, {"threshold": math.nan}, ["threshold", "nan"]),
    (UsageError, {"threshold_a": math.nan}, ["threshold_a", "nan"]),
    (UsageError, {"threshold_b": math.inf}, ["threshold_b", "inf"]),
    (DataError, {"scores_b": [0.1, math.nan]}, ["scores_b", "nan", 1]),
    (DataError, {"scores_b": [0.1]}, ["scores_a 2", "scores_b 1", "labels 2"]),
    (DataError, {"probabilities": [0.1, 2]}, ["probabilities", "[0, 1]", 2]),
    (DataError, {"sample_weight": [1, 1, 1]}, ["sample_weight 3"]),
]  # fmt: skip


@pytest.mark.parametrize(("error", "change", "facts"), REFUSED)
def test_refused(error: type[Exception], change: dict[str, Any], facts: list[object]) -> None:
    rest: dict[str, Any] = {"labels": [0, 1], "groups": [0, 1]} | change
    name = next(iter(change))
    if name not in PAIR:
        refused(error, lambda: bootstrap_intervals(**{"probabilities": [0.1, 0.9]} | rest), *facts)
    if name not in ("metrics", "threshold", "probabilities"):
        refused(error, lambda: paired_difference(**PAIR | rest), *facts)


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        ([0], ["groups 1", "labels 2"]), (["a", None], ["groups", "position 1"]), ([None, "a"], ["position 0"]),
        ([1.0, math.nan], ["position 1"]), (np.array(["a", 1], dtype=object), ["groups", "strings", "numbers"]),
        ([[0, 1]], ["groups", "one-dimensional"]), ([], ["groups", "empty"]),
    ],
)  # fmt: skip
def test_groups_refused_at_the_call(names: Any, facts: list[str]) -> None:
    refused(DataError, lambda: count_groups(names, [0, 1]), *facts)
    refused(DataError, lambda: group_weights(names, [0, 1], 10, 0), *facts)  # before anything is drawn
    refused(DataError, lambda: bootstrap_intervals([0.1, 0.9], [0, 1], names), *facts)
