"""Intervals of small samples: exact bounds against scipy, their coverage, and what is said where there is none."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from facts import tells
from refusals import refused
from scipy.stats import binom, binomtest

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics import Interval, bootstrap_intervals, compute_metrics, exact_interval, metric_intervals
from natix_hf.metrics.table import METRICS, Score

SHARES = ("accuracy", "precision", "recall", "specificity", "fnr", "fpr")
FROM_BOTH = ("balanced_accuracy", "f1", "mcc")


def test_exact_bounds_are_those_of_scipy() -> None:
    for n, level in itertools.product((1, 2, 3, 7, 20, 300), (0.95, 0.8)):
        for k in {0, 1, n // 3, n // 2, n - 1, n}:
            hits = [1] * k + [0] * (n - k)
            theirs = binomtest(k, n).proportion_ci(level, method="exact")
            wanted = pytest.approx((theirs.low, theirs.high), abs=1e-9)
            assert exact_interval(hits, level=level) == wanted
            # rows outside the denominator, a group's further rows, and weights without effect change nothing
            more = [*hits, 1, 0], [1] * n + [0, 0]
            assert exact_interval(*more, sample_weight=[2.5] * (n + 2), level=level) == wanted
            assert exact_interval(hits * 4, groups=list(range(n)) * 4, level=level) == wanted


@pytest.mark.parametrize("n", [1, 3, 5, 20])
def test_exact_bounds_cover(n: int) -> None:
    """By the binomial distribution itself, at every true share."""
    bounds = [exact_interval([1] * k + [0] * (n - k)) for k in range(n + 1)]
    for share in np.linspace(0.01, 0.99, 99):
        covered = sum(binom.pmf(k, n, share) for k, (low, high) in enumerate(bounds) if low <= share <= high)
        assert covered >= 0.95


@pytest.mark.parametrize("sizes", [[10] * 5, [1] * 9 + [50], [1, 2, 3, 4, 5, 6, 7, 8], [30, 1, 1]])
@pytest.mark.parametrize("alike", [True, False])
def test_exact_bounds_cover_unequal_groups(sizes: list[int], alike: bool) -> None:
    """Whether all rows of a group share their outcome, the worst case, or none do."""
    rng, groups = np.random.default_rng(1), np.repeat(np.arange(len(sizes)), sizes)
    for share in (0.5, 0.9, 0.98):
        misses = 0
        for _ in range(300):
            drawn = rng.random(len(sizes))[groups] if alike else rng.random(len(groups))
            low, high = exact_interval((drawn < share).astype(int), groups=groups)
            misses += not low <= share <= high
        assert misses <= 0.05 * 300


def _case(positives: int, negatives: int, wrong: int = 0, frames: int = 1) -> tuple[Any, Any, Any]:
    """Groups of equal frames; the answers of the first `wrong` groups of each class are wrong."""
    y = np.repeat([1, 0], [positives * frames, negatives * frames])
    groups = np.repeat(np.arange(positives + negatives), frames)
    p = np.where(y == 1, 0.9, 0.1) + np.random.default_rng(0).uniform(-0.05, 0.05, y.size)
    place = np.where(groups < positives, groups, groups - positives)
    return np.where(place < wrong, 1 - p, p), y, groups


# positives, negatives, wrong of each -> what is exact, and what has no interval
TABLE: dict[str, tuple[tuple[int, int, int], tuple[str, ...], tuple[str, ...]]] = {
    "two rows": ((1, 1, 0), SHARES, (*FROM_BOTH, "auroc", "ece", "brier", "nll")),
    "one wrong of two": ((2, 2, 1), SHARES, (*FROM_BOTH, "auroc", "ece", "brier", "nll")),
    "three of a class": ((40, 3, 1), ("accuracy", "precision", "specificity", "fpr"),
                         (*FROM_BOTH, "auroc", "ece", "brier", "nll")),
    "twenty right": ((10, 10, 0), (*SHARES, *FROM_BOTH), ("auroc",)),
    "four of each": ((4, 4, 0), (*SHARES, *FROM_BOTH), ("auroc",)),
    "enough": ((40, 40, 5), (), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("prior", [None, 0.5])
def test_degenerate_cases(name: str, frames: int, prior: float | None) -> None:
    from natix_hf.metrics import prior_weights

    (positives, negatives, wrong), exact, without = TABLE[name]
    p, y, groups = _case(positives, negatives, wrong, frames)
    weights = prior_weights(y, prior)
    found = metric_intervals(p, y, groups, sample_weight=weights, n_resamples=200)
    plain = bootstrap_intervals(p, y, groups, sample_weight=weights, n_resamples=200)
    assert {key for key, each in found.items() if each.exact} == set(exact)
    assert {key for key, each in found.items() if each.reason} == set(without)
    values = compute_metrics(p, y, sample_weight=weights)
    for key, each in found.items():
        if each.reason:
            assert (each.low, each.high) == (None, None) and tells(each.reason, "cannot be estimated from", "group")
        else:
            assert each.low is not None and each.high is not None and each.low < each.high, key
            assert each.low - 1e-9 <= values[key] <= each.high + 1e-9, key
        if key not in (*exact, *without):
            assert (each.low, each.high) == plain[key]


def test_twenty_right_answers() -> None:
    p, y, groups = _case(10, 10)
    found = metric_intervals(p, y, groups)
    assert found["accuracy"].low == pytest.approx(0.832, abs=5e-4) and found["accuracy"].high == 1
    assert found["recall"].low == pytest.approx(binomtest(10, 10).proportion_ci(method="exact").low)
    assert tells(found["auroc"].reason, "20 groups", "every resample")


def test_bounds_from_both_rates_are_the_worst_over_a_grid() -> None:
    p, y, groups = _case(12, 6)
    found = metric_intervals(p, y, groups)
    tpr, tnr = (exact_interval([1] * n, level=0.975) for n in (12, 6))
    grid = [(a, b) for a in np.linspace(*tpr, 30) for b in np.linspace(*tnr, 30)]
    for name in FROM_BOTH:
        metric = METRICS[name]
        assert not isinstance(metric, Score)
        values = [float(metric.function(12 * a, 6 * (1 - b), 6 * b, 12 * (1 - a))) for a, b in grid]
        assert (found[name].low, found[name].high) == pytest.approx((min(values), max(values)))


def test_figures_that_are_undefined_have_no_reason() -> None:
    found = metric_intervals([0.1] * 8, [0] * 8, range(8))
    assert found["recall"] == found["precision"] == found["auroc"] == Interval()
    assert found["specificity"].exact and found["accuracy"].exact
    assert all(np.isnan(exact_interval([0, 1], counted=[0, 0])))


@pytest.mark.parametrize(
    ("given", "error", "facts"),
    [
        ({"hits": [0.5]}, DataError, ["hits"]),
        ({"hits": []}, DataError, ["hits"]),
        ({"hits": [0, 1], "groups": ["a"]}, DataError, ["groups", 1, 2]),
        ({"hits": [0, 1], "counted": [1]}, DataError, ["counted", 1, 2]),
        ({"hits": [1], "level": 1}, UsageError, ["level", 1]),
    ],
)
def test_bad_input(given: dict[str, Any], error: type[Exception], facts: list[Any]) -> None:
    refused(error, lambda: exact_interval(**given), *facts)
