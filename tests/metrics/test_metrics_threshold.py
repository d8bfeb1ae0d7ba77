"""The exact threshold, against exhaustive search in rational numbers and with scikit-learn."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics import prior_weights, select_threshold, sweep, threshold

SKLEARN = {"mcc": matthews_corrcoef, "balanced_accuracy": balanced_accuracy_score, "f1": f1_score}


def exact_value(objective: str, tp: Fraction, fp: Fraction, tn: Fraction, fn: Fraction) -> Fraction:
    """The objective as a fraction; of MCC its signed square, which orders alike and is rational."""
    if objective == "mcc":
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        numerator = tp * tn - fp * fn
        return numerator * abs(numerator) / product if product else Fraction(0)
    if objective == "f1":
        return 2 * tp / (2 * tp + fp + fn)
    return (tp / (tp + fn) + tn / (tn + fp)) / 2


def exhaustive(scores: list[int], labels: list[int], objective: str, prior: Fraction | None) -> float:
    """Best midpoint by comparing fractions: value, then gap, then lowest."""
    positives = sum(labels)
    negatives = len(labels) - positives
    wp, wn = (prior / positives, (1 - prior) / negatives) if prior else (Fraction(1), Fraction(1))
    values = sorted(set(scores))
    found = []
    for k, (lower, upper) in enumerate(pairwise(values)):
        tp = wp * sum(1 for s, y in zip(scores, labels, strict=True) if s > lower and y)
        fp = wn * sum(1 for s, y in zip(scores, labels, strict=True) if s > lower and not y)
        value = exact_value(objective, tp, fp, wn * negatives - fp, wp * positives - tp)
        found.append((value, upper - lower, -k, (lower + upper) / 2))
    return max(found)[3]


@pytest.mark.parametrize("objective", ["mcc", "balanced_accuracy", "f1"])
@pytest.mark.parametrize("prior", [None, Fraction(1, 2), Fraction(1, 5)])
def test_exhaustive_with_all_ties(objective: str, prior: Fraction | None) -> None:
    generator = np.random.default_rng(0)
    for _ in range(150):
        n = int(generator.integers(3, 14))
        scores = generator.integers(0, 12, n).tolist()
        labels = [1, 0, *generator.integers(0, 2, n - 2).tolist()]
        if len(set(scores)) > 1:
            result = select_threshold(scores, labels, objective, None if prior is None else float(prior))
            assert result.threshold == exhaustive(scores, labels, objective, prior), (scores, labels)


@pytest.mark.parametrize("objective", ["mcc", "balanced_accuracy", "f1"])
@pytest.mark.parametrize("prior", [None, 0.5, 0.1])
def test_sklearn_over_every_midpoint(objective: str, prior: float | None) -> None:
    generator = np.random.default_rng(5)
    labels = (generator.random(60) < 0.25).astype(int)
    scores = generator.normal(size=60) + labels
    weights = prior_weights(labels, prior)
    ordered = np.sort(scores)
    midpoints = (ordered[:-1] + ordered[1:]) / 2
    values = np.array([SKLEARN[objective](labels, scores > t, sample_weight=weights) for t in midpoints])
    tpr, tnr = (np.array([((scores > t) == y)[labels == y].mean() for t in midpoints]) for y in (1, 0))
    result, best = select_threshold(scores, labels, objective, prior), int(np.argmax(values))
    assert (result.objective, result.n, result.threshold) == (objective, 60, pytest.approx(midpoints[best]))
    assert (result.value, result.tpr, result.tnr) == pytest.approx((values[best], tpr[best], tnr[best]), abs=1e-12)
    table = sweep(scores, labels, prior)
    for name, expected in {"threshold": midpoints, objective: values, "tpr": tpr, "tnr": tnr}.items():
        assert table[name] == pytest.approx(expected)


def test_by_hand() -> None:
    result = select_threshold([-3, -1, 5, 9], [0, 0, 1, 1])
    assert (result.threshold, result.value, result.tpr, result.tnr) == (2, 1, 1, 1)
    # The scores rank backwards: calling nothing positive would reach 0, yet the one margin is what is returned.
    result = select_threshold([0, 1], [1, 0])
    assert (result.threshold, result.value) == (0.5, -1)
    # By symmetry the MCC is the same in both outer margins: the widest gap, then the lowest.
    assert select_threshold([0, 1, 2, 4], [0, 1, 0, 1]).threshold == 3
    assert select_threshold([0, 2, 3, 4], [0, 1, 0, 1]).threshold == 1
    assert select_threshold([0, 1, 2, 3], [0, 1, 0, 1]).threshold == 0.5


def test_mirrored_counts_tie_in_spite_of_rounding() -> None:
    generator = np.random.default_rng(2)
    for _ in range(200):
        a, b = (int(value) for value in generator.integers(2, 40, 2))
        # First margin: a negatives below; second: a positives above; the middle holds b of each.
        scores = [0] * a + [1] * (2 * b) + [3] * a
        labels = [0] * a + [0, 1] * b + [1] * a
        assert select_threshold(scores, labels).threshold == 2
        assert select_threshold([-s for s in scores], [1 - y for y in labels]).threshold == -2


def test_constant_scores() -> None:
    for objective, value in (("mcc", 0), ("balanced_accuracy", 0.5), ("f1", 0)):
        result = select_threshold([1.5] * 4, [0, 1, 0, 1], objective)
        assert (result.threshold, result.value, result.tpr, result.tnr) == (1.5, value, 0, 1)
        assert sweep([1.5, 1.5], [0, 1])[objective].tolist() == [value]
    table = sweep([1.5, 1.5], [0, 1])
    assert [table[name].tolist() for name in ("threshold", "tpr", "tnr")] == [[1.5], [0], [1]]
    # -0.0 and 0.0 are one score.
    assert select_threshold([-0.0, 0.0], [0, 1]).value == 0


@pytest.mark.parametrize("lower", [1.0, -1.0, 0.1, 1e300, -1e-310, 1.5e-323, 5e-324, 0.0, -5e-324, -1e-323])
def test_adjacent_floats(lower: float) -> None:
    for start in (lower, float(np.nextafter(lower, np.inf))):
        upper = float(np.nextafter(start, np.inf))
        result = select_threshold([start, upper], [0, 1])
        assert result.threshold == start and result.value == 1
        assert (np.array([start, upper]) > result.threshold).tolist() == [False, True]


def test_extreme_scores() -> None:
    largest = float(np.finfo(np.float64).max)
    assert select_threshold([-largest, largest], [0, 1]).threshold == 0
    assert select_threshold([-largest, 0, largest], [0, 1, 1]).threshold == -largest / 2
    assert select_threshold([largest / 2, largest], [0, 1]).threshold == largest * 0.75
    table = sweep([-largest, 0, largest], [0, 1, 1])
    assert np.isfinite(table["threshold"]).all()


def test_order_dtype_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 2, 1000)
    scores = (generator.normal(size=1000) + labels).astype(np.float32)
    before = scores.copy(), labels.copy()
    result = select_threshold(scores, labels)
    shuffle = generator.permutation(1000)
    assert select_threshold(scores[shuffle], labels[shuffle]) == result
    assert select_threshold(scores.tolist(), labels.astype(bool)) == result
    assert select_threshold(torch.tensor(scores, requires_grad=True), torch.tensor(labels)) == result
    monkeypatch.setattr(threshold, "CHUNK", 7)
    assert select_threshold(scores, labels) == result
    sweep(scores, labels)
    assert all(map(np.array_equal, before, (scores, labels)))  # what was given is left alone


@pytest.mark.parametrize("max_points", [1, 2, 50, 999])
def test_thinned_sweep(max_points: int) -> None:
    generator = np.random.default_rng(11)
    labels = generator.integers(0, 2, 5000)
    scores = generator.normal(size=5000) + labels
    best = select_threshold(scores, labels, target_prior=0.2)
    table = sweep(scores, labels, 0.2, max_points)
    full = sweep(scores, labels, 0.2, 10**6)
    assert full["threshold"].size == 4999 and full["mcc"].max() == best.value
    assert all(column.size == max_points and column.dtype == np.float64 for column in table.values())
    at = int(np.flatnonzero(table["threshold"] == best.threshold)[0])
    assert table["mcc"][at] == best.value and table["tpr"][at] == best.tpr and table["tnr"][at] == best.tnr
    rows = np.searchsorted(full["threshold"], table["threshold"])
    assert (np.diff(rows) > 0).all()
    for name, column in table.items():
        assert np.array_equal(column, full[name][rows])
    if max_points > 2:
        assert (rows[0], rows[-1]) == (0, 4998) and np.diff(rows).max() <= 2 * 4998 / (max_points - 1)


@pytest.mark.parametrize("function", [select_threshold, sweep])
def test_refused(function: Any) -> None:
    for labels in ([0, 0], [1, 1]):
        refused(DataError, lambda y=labels: function([0.1, 0.2], y), "one class", "2 labels", labels[0])
    for bad in (math.nan, math.inf, -math.inf):
        refused(DataError, lambda bad=bad: function([0.1, bad], [0, 1]), "scores", bad, "position 1")
    refused(DataError, lambda: function([0.1, 0.2], [2, 1]), "labels", 2, "position 0")
    refused(DataError, lambda: function([0.1, 0.2], [0, 1, 1]), "scores 2", "labels 3")
    refused(DataError, lambda: function([], []), "scores", "empty")
    refused(UsageError, lambda: function([0.1, 0.2], [0, 1], target_prior=1.0), "target_prior", 1.0)
    known = ("mcc", "balanced_accuracy", "f1")
    refused(UsageError, lambda: select_threshold([0.1, 0.2], [0, 1], "accuracy"), "objective", *known, "accuracy")
    refused(UsageError, lambda: sweep([0.1, 0.2], [0, 1], max_points=0), "max_points", 0)
