"""The figures at a bounded rate of false negatives, against a search over every cut in exact numbers."""

from __future__ import annotations

import doctest
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from refusals import refused

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics import at_fnr
from natix_hf.metrics.at_fnr import figures_at_fnr, loosest, paired_difference_at_fnr
from natix_hf.metrics.groups import group_weights

Slow = tuple[Fraction | None, Fraction | None, Fraction, Fraction]


def slow(rows: list[tuple[int, int, int]], alpha: Fraction, price: Fraction) -> Slow:
    """FPR, FNR, abstained and cost of rows (confidence, wrong, label), with one cut below each of them."""
    total = {label: sum(y == label for _, _, y in rows) for label in (0, 1)}
    best: list[tuple[int, int, int]] = []
    for cut in sorted({c for c, _, _ in rows}, reverse=True):
        taken = [row for row in rows if row[0] >= cut]
        positives = [wrong for _, wrong, y in taken if y == 1]
        if Fraction(sum(positives) + 1, len(positives) + 1) <= alpha:
            best = taken
    rate = {}
    for label in (0, 1):
        wrongs = [wrong for _, wrong, y in best if y == label]
        rate[label] = Fraction(sum(wrongs), len(wrongs)) if wrongs else None
    accepted = [Fraction(sum(y == label for *_, y in best), total[label]) for label in (0, 1)]
    abstained = 1 - (accepted[0] + accepted[1]) / 2
    return rate[0], rate[1], abstained, (rate[0] or 0) + price * abstained


def _same(value: Any, expected: Fraction | None) -> bool:
    return bool(np.isnan(value)) if expected is None else bool(abs(value - float(expected)) < 1e-12)


def _rows(rng: np.random.Generator, n: int, wrong: float = 0.2) -> list[tuple[int, int, int]]:
    labels = rng.permutation(np.append([0, 1], rng.integers(0, 2, n - 2)))
    columns = rng.integers(0, n, n), rng.random(n) < wrong, labels
    return [(int(c), int(w), int(y)) for c, w, y in zip(*columns, strict=True)]


@pytest.mark.parametrize("alpha", [Fraction(1, 20), Fraction(7, 100), Fraction(29, 100), Fraction(1, 2)])
def test_figures_are_those_of_the_loosest_cut(alpha: Fraction) -> None:
    """Ties, cuts that pass again after one that failed, rows without any cut; and resamples as repeated rows."""
    rng, reached = np.random.default_rng(0), 0
    for _ in range(150):
        rows = _rows(rng, int(rng.integers(4, 90)), rng.choice([0.02, 0.1, 0.4]))
        counts = rng.integers(0, 3, (2, len(rows)))
        counts[:, [next(i for i, row in enumerate(rows) if row[2] == label) for label in (0, 1)]] += 1
        c, wrong, y = (np.array(column) for column in zip(*rows, strict=True))
        once = figures_at_fnr(c, wrong, y, float(alpha), 0.3)
        repeated = figures_at_fnr(c, wrong, y, float(alpha), 0.3, counts)
        for found, at, often in ((once, 0, np.ones(len(rows), int)), *((repeated, i, counts[i]) for i in (0, 1))):
            drawn = [row for row, n in zip(rows, often, strict=True) for _ in range(n)]
            expected = slow(drawn, alpha, Fraction(3, 10))
            values = found.fpr[at], found.fnr[at], found.abstained[at], found.cost[at]
            assert all(_same(value, each) for value, each in zip(values, expected, strict=True)), (rows, often)
            reached += expected[2] < 1
    assert reached > 50


def test_a_rate_of_exactly_alpha_reaches_it() -> None:
    """0.29 * 100 is below 29 in floating point: (28 + 1) / (99 + 1) reaches 0.29 all the same."""
    assert loosest(np.array([99]), np.array([28]), 0.29) == 0 and loosest(np.array([99]), np.array([29]), 0.29) == -1
    assert loosest(np.array([3, 8]), np.array([1, 3]), 0.1, nearest=True) == 1
    assert loosest(np.array([[30, 40], [1, 2]]), np.array([[0, 2], [0, 0]]), 0.05).tolist() == [0, -1]


def test_paired_differences_are_those_of_the_resamples() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(rng.integers(0, 2, 150), 2)
    wrong, groups = (rng.random(300) < 0.25).astype(int), np.repeat(np.arange(150), 2)
    a = rng.normal(size=300) - wrong
    b = a - 2 * wrong
    found = paired_difference_at_fnr(a, b, wrong, labels, groups, 0.1, 0.7, n_resamples=40, seed=5)
    assert list(found) == ["cost", "fpr", "abstained"]
    differences: dict[str, list[float]] = {name: [] for name in found}
    for drawn in np.concatenate(list(group_weights(groups, labels, 40, 5))):
        rows = np.repeat(np.arange(300), drawn)
        of_a, of_b = (figures_at_fnr(c[rows], wrong[rows], labels[rows], 0.1, 0.7) for c in (a, b))
        for name, values in differences.items():
            values.append(getattr(of_b, name)[0] - getattr(of_a, name)[0])
    for name, values in differences.items():
        low, high = np.nanquantile(values, [0.025, 0.975])
        assert (found[name]["low"], found[name]["high"]) == pytest.approx((low, high), abs=1e-12)
        expected = [getattr(figures_at_fnr(c, wrong, labels, 0.1, 0.7), name)[0] for c in (a, b)]
        assert [found[name]["a"], found[name]["b"]] == pytest.approx(expected, abs=1e-12)
    assert found["abstained"]["high"] < 0  # b knows who is wrong
    same = paired_difference_at_fnr(a, a, wrong, labels, groups, 0.1, n_resamples=40)
    assert all(one["low"] == one["high"] == one["difference"] == 0 for one in same.values())


def test_a_figure_that_is_mostly_undefined_is_not_compared() -> None:
    """One confidence puts missed positives first, so it reaches alpha at no cut and accepts nothing."""
    labels, wrong = np.tile([1, 0], 100), np.zeros(200, dtype=int)
    wrong[:40:2] = 1
    never, best = np.arange(200)[::-1], np.where(wrong == 1, 0, 1)
    found = paired_difference_at_fnr(never, best, wrong, labels, np.arange(200), 0.05, n_resamples=50)
    assert all(np.isnan(value) for value in found["fpr"].values())
    assert found["abstained"]["a"] == 1 and found["cost"]["high"] < 0


def test_what_cannot_be_is_refused() -> None:
    for alpha in (0, 1, -0.1, float("nan")):
        refused(UsageError, lambda alpha=alpha: figures_at_fnr([1, 2], [0, 1], [0, 1], alpha), "alpha", alpha)
    refused(DataError, lambda: figures_at_fnr([1, 2, 3], [0, 1], [0, 1], 0.1), "confidence", 3, 2)
    refused(DataError, lambda: figures_at_fnr([1, np.nan], [0, 1], [0, 1], 0.1), "confidence")


def test_examples_run() -> None:
    ran = doctest.testmod(at_fnr)
    assert ran.attempted and not ran.failed
