"""Wrong labels: the confident joint as the paper writes it, planted flips are found, and what must not matter does
not."""

from __future__ import annotations

import numpy as np
import pytest
from refusals import refused

from natix_hf.errors import DataError
from natix_hf.metrics.label_noise import confident_joint, estimated_joint, find_wrong_labels, noise_rates


def joint_of_the_paper(p: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Northcutt et al. 2021, equations 1 and 2, row by row."""
    chances = np.stack([1 - p, p], axis=1)
    cuts = [np.average(chances[labels == c, c], weights=weights[labels == c]) for c in (0, 1)]
    counts = np.zeros((2, 2))
    for chance, label, weight in zip(chances, labels, weights, strict=True):
        above = [c for c in (0, 1) if chance[c] >= cuts[c]]
        if above:
            counts[label, max(above, key=lambda c: chance[c])] += weight
    return counts


@pytest.mark.parametrize("seed", range(5))
def test_the_confident_joint_is_the_papers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 200)
    p = np.clip(0.5 + (labels - 0.5) * rng.uniform(-0.4, 1, 200), 0.01, 0.99)
    weights = rng.integers(0, 3, 200).astype(np.float64)
    counts, cuts, confident = confident_joint(p, labels, weights)
    assert counts == pytest.approx(joint_of_the_paper(p, labels, weights))
    for label, known in zip(labels[weights > 0], confident[weights > 0], strict=True):
        assert known == -1 or counts[label, known] > 0
    joint = estimated_joint(counts, np.bincount(labels, weights))
    assert joint.sum() == pytest.approx(1)
    assert joint.sum(axis=1) == pytest.approx(np.bincount(labels, weights) / weights.sum())
    rates = noise_rates(joint)
    assert rates["all"] == pytest.approx(joint[0, 1] + joint[1, 0])
    assert rates["missed"] * joint[:, 1].sum() + rates["false"] * joint[:, 0].sum() == pytest.approx(rates["all"])
    assert all(0 < cut < 1 for cut in cuts)


def world(
    seed: int, groups: int = 120, rows: int = 6, prior: float = 0.3, apart: float = 2.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers of a model that knows something about groups and rows, true labels, groups."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.random(groups) < prior, rows).astype(np.int64)
    group = np.repeat(np.arange(groups), rows)
    z = (2 * truth - 1) * apart + np.repeat(rng.normal(0, 0.5, groups), rows) + rng.normal(0, 1.5, len(truth))
    return z, truth, group


def flip(labels: np.ndarray, at: np.ndarray) -> np.ndarray:
    noisy = labels.copy()
    noisy[at] = 1 - noisy[at]
    return noisy


def scores(flagged: np.ndarray, flipped: np.ndarray) -> tuple[float, float]:
    hits = (flagged & flipped).sum()
    return hits / flagged.sum(), hits / flipped.sum()


def test_random_flips_are_found_and_the_group_helps() -> None:
    z, truth, group = world(0)
    noisy = flip(truth, np.random.default_rng(1).permutation(len(truth))[:36])
    with_groups = find_wrong_labels(z, noisy, group, n_resamples=100)
    precision, recall = scores(with_groups.flagged, noisy != truth)
    assert precision > 0.9 and recall > 0.8 and not with_groups.whole_groups
    ranked = np.argsort(with_groups.margin)[:36]
    alone = np.argsort(find_wrong_labels(z, noisy, np.arange(len(z)), n_resamples=1).margin)[:36]
    assert (noisy != truth)[ranked].mean() > (noisy != truth)[alone].mean() + 0.1
    rates, bounds = with_groups.noise.rates, with_groups.noise.intervals
    assert abs(float(rates["all"] or 0) - 0.05) < 0.02
    for name, value in rates.items():
        low, high = bounds[name].low, bounds[name].high
        assert value is not None and low is not None and high is not None and low <= value <= high


def test_groups_that_are_wrong_as_a_whole_are_one_finding_each() -> None:
    z, truth, group = world(2, apart=4)
    wrong = np.flatnonzero(np.isin(group, [3, 40, 77, 101]))
    suspects = find_wrong_labels(z, flip(truth, wrong), group, n_resamples=10)
    assert sorted(int(group[rows[0]]) for rows in suspects.whole_groups) == [3, 40, 77, 101]
    assert all(len(rows) == 6 and suspects.flagged[rows].all() for rows in suspects.whole_groups)


@pytest.mark.parametrize(("shift", "scale"), [(3.0, 1.0), (-2.0, 4.0), (0.0, 0.1)])
def test_a_balanced_sampler_and_overconfidence_change_nothing(shift: float, scale: float) -> None:
    z, truth, group = world(3)
    noisy = flip(truth, np.random.default_rng(1).permutation(len(truth))[:36])
    first, other = (find_wrong_labels(given, noisy, group, n_resamples=20) for given in (z, shift + scale * z))
    assert other.flagged.tolist() == first.flagged.tolist()
    assert other.probabilities == pytest.approx(first.probabilities, abs=1e-6)
    assert other.noise.rates == pytest.approx(first.noise.rates, abs=1e-6)


def test_the_order_of_rows_and_the_names_of_groups_do_not_matter() -> None:
    z, truth, group = world(4)
    noisy = flip(truth, np.random.default_rng(1).permutation(len(truth))[:36])
    order = np.random.default_rng(2).permutation(len(z))
    first = find_wrong_labels(z, noisy, group, n_resamples=1)
    names = np.array([f"video {number}" for number in group])
    other = find_wrong_labels(z[order], noisy[order], names[order], n_resamples=1)
    assert other.flagged.tolist() == first.flagged[order].tolist()


def test_groups_that_hold_both_labels_do_no_harm() -> None:
    """Two places to a group: the labels of its other rows say little."""
    z, truth, group = world(5)
    noisy = flip(truth, np.random.default_rng(1).permutation(len(truth))[:36])
    mixed = np.random.default_rng(2).permutation(group.max() + 1)[group] // 2
    ranked = np.argsort(find_wrong_labels(z, noisy, mixed, n_resamples=1).margin)[:36]
    alone = np.argsort(find_wrong_labels(z, noisy, np.arange(len(z)), n_resamples=1).margin)[:36]
    assert (noisy != truth)[ranked].mean() >= (noisy != truth)[alone].mean() - 0.05


def test_right_labels_that_a_model_tells_apart_give_nothing() -> None:
    truth = np.repeat([0, 1], 40)
    suspects = find_wrong_labels((2 * truth - 1) * 8.0, truth, np.arange(80) // 2)
    assert not suspects.flagged.any() and suspects.whole_groups == []
    assert suspects.noise.rates["all"] == 0
    bounds = suspects.noise.intervals["all"]
    assert bounds.exact and bounds.low == 0 and 0 < float(bounds.high or 0) < 0.15


@pytest.mark.parametrize("away", [0.1, 1.0, 7.3])
def test_equal_answers_to_a_class_are_confident(away: float) -> None:
    """Rounding must not put a mean above all of its equal parts."""
    truth = np.arange(90) % 2
    suspects = find_wrong_labels((2 * truth - 1) * away, truth, np.arange(90), n_resamples=50)
    assert suspects.noise.counts == [[45, 0], [0, 45]]
    for bounds in suspects.noise.intervals.values():
        assert bounds.low == 0 and 0 < float(bounds.high or 0) < 0.5


def test_few_groups_get_exact_bounds() -> None:
    z, truth, group = world(6, groups=5, rows=30, prior=0.5)
    noisy = flip(truth, np.array([1, 40]))
    suspects = find_wrong_labels(z, noisy, group, n_resamples=50)
    assert suspects.noise.intervals["missed"].exact and suspects.noise.intervals["false"].exact


def test_what_cannot_be_audited_is_refused() -> None:
    refused(DataError, lambda: find_wrong_labels([0.1, 0.2], [1, 1], ["a", "b"]), "both labels")
    refused(DataError, lambda: find_wrong_labels([0.1, float("nan")], [0, 1], ["a", "b"]), "logits")
    refused(DataError, lambda: find_wrong_labels([0.1, 0.2], [0, 1], ["a"]), "groups")
    refused(DataError, lambda: find_wrong_labels([], [], []), "empty")


def test_constant_answers_are_no_reason_to_stop() -> None:
    suspects = find_wrong_labels(np.zeros(20), np.arange(20) % 2, np.arange(20) // 2, n_resamples=20)
    assert np.isfinite(suspects.margin).all()
