"""The validator's formula against histories worked out by hand, and against its own description, slowly."""

from __future__ import annotations

import doctest
import math
from typing import Any

import numpy as np
import pytest
from refusals import refused

from natix_hf.errors import DataError, UsageError
from natix_hf.subnet import rewards as module
from natix_hf.subnet.rewards import expected_reward, reward


@pytest.mark.parametrize(
    ("accuracy", "told"), [(0.8, 0.343), (0.85, 0.465), (0.9, 0.614), (0.95, 0.791), (0.98, 0.913)]
)
def test_the_cube(accuracy: float, told: float) -> None:
    """At MCC = 2a - 1 and accuracy a; the mean over histories lies above it, for the cube is convex."""
    assert (0.5 * (2 * accuracy - 1) + 0.5 * accuracy) ** 3 == pytest.approx(told, abs=6e-4)
    mean, low, high = expected_reward(accuracy, accuracy, histories=4000)
    assert low < told < mean < high and mean - told < 0.02


GOOD = ([0.9, 0.1] * 50, [1, 0] * 50)
BY_HAND: dict[str, tuple[list[float], list[int], float]] = {
    "all right": (*GOOD, 1.0),
    "all wrong": ([0.1, 0.9] * 50, [1, 0] * 50, 0.0),
    "the last is out of range": ([*GOOD[0][:-1], -0.1], GOOD[1], 0.0),
    "the last is above one": ([0.1, 0.9] * 49 + [0.1, 1.0001], [0, 1] * 50, 0.0),
    "the last is no answer": ([*GOOD[0][:-1], -1.0], GOOD[1], 0.0),
    "no answers before are left out": ([-1.0] * 90 + [0.9, 0.1] * 5, [0] * 90 + [1, 0] * 5, 1.0),
    # 9 of the last 10 gave none: the accuracy is of one answer, the MCC of 91.
    "no answers take their place": ([0.9, 0.1] * 45 + [-1.0] * 9 + [0.1], [1, 0] * 45 + [1] * 9 + [0], 1.0),
    "labels of one class": ([0.9] * 100, [1] * 100, 0.125),
    "answers of one class": ([0.9] * 100, [1, 0] * 50, (0.5 * 0.5) ** 3),
    "exactly a half is no": ([0.5, 0.5] * 50, [1, 0] * 50, (0.5 * 0.5) ** 3),
    "three answers": ([0.9, 0.1, 0.9], [1, 0, 0], (0.5 * 0.5 + 0.5 * 2 / 3) ** 3),
    "one answer": ([0.9], [1], 0.125),
    "older than a hundred": ([0.1] * 50 + GOOD[0], [1] * 50 + GOOD[1], 1.0),
    "older than ten": ([0.1, 0.9] * 45 + [0.9, 0.1] * 5, [1, 0] * 50, (0.5 * 0.0 + 0.5 * 1.0) ** 3),
    "the only answers were none": ([-1.0, -1.0, 0.9], [1, 0, 1], 0.125),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    p, labels, expected = BY_HAND[name]
    assert reward(p, labels) == pytest.approx(expected, abs=1e-12)


def test_an_answer_out_of_range_before_is_a_third_class() -> None:
    """2.0 is no label: wrong in the accuracy, and in the MCC of three classes."""
    from sklearn.metrics import matthews_corrcoef

    p, labels = [0.9, 0.1] * 4 + [2.0, 0.1], [1, 0] * 5
    mcc = matthews_corrcoef(labels, np.round(p))
    assert 0 < mcc < 1 and reward(p, labels) == pytest.approx((0.5 * mcc + 0.5 * 0.9) ** 3)
    p[8] = -0.9  # rounds to -1, but is an answer
    assert reward(p, labels) == pytest.approx((0.5 * matthews_corrcoef(labels, np.round(p)) + 0.5 * 0.9) ** 3)


def slowly(p: list[float], labels: list[int]) -> float:
    """The description word by word, for answers within [0, 1] or -1."""
    if p[-1] == -1:
        return 0.0

    def window(n: int) -> list[tuple[int, int]]:
        return [(1 if x > 0.5 else 0, y) for x, y in list(zip(p, labels, strict=True))[-n:] if x != -1]

    tp, fp, tn, fn = (sum(pair == cell for pair in window(100)) for cell in ((1, 1), (1, 0), (0, 0), (0, 1)))
    bottom = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    mcc = max(0.0, (tp * tn - fp * fn) / bottom) if bottom else 0.0
    recent = window(10)
    return float((0.5 * mcc + 0.5 * sum(a == b for a, b in recent) / len(recent)) ** 3)


def test_against_the_description() -> None:
    rng = np.random.default_rng(0)
    for _ in range(120):
        n = int(rng.integers(1, 250))
        labels = (rng.random(n) < rng.choice([0.0, 0.1, 0.5, 1.0])).astype(int)
        p = np.clip(labels * 0.3 + rng.random(n) * 0.7, 0, 1).round(1)
        p[rng.random(n) < 0.2] = -1.0
        assert reward(p, labels) == pytest.approx(slowly(p.tolist(), labels.tolist()), abs=1e-12)


def test_the_expectation_is_that_of_single_histories() -> None:
    rng = np.random.default_rng(3)
    singles = []
    for _ in range(800):
        labels = (rng.random(100) < 0.5).astype(int)
        right = rng.random(100) < np.where(labels == 1, 0.9, 0.75)
        singles.append(reward(np.where(right, labels, 1 - labels), labels))
    mean, low, high = expected_reward(0.9, 0.75, histories=20_000)
    assert mean == pytest.approx(np.mean(singles), abs=4 * np.std(singles) / math.sqrt(800))
    assert (low, high) == pytest.approx(tuple(np.quantile(singles, [0.025, 0.975])), abs=0.04)
    assert expected_reward(0.9, 0.75) == expected_reward(0.9, 0.75)  # seeded


@pytest.mark.parametrize(
    ("call", "error", "facts"),
    [
        (lambda: reward([], []), DataError, ["labels", "empty"]),
        (lambda: reward([0.5], [2]), DataError, ["labels", 2]),
        (lambda: reward([0.5, 0.5], [1]), DataError, ["probabilities 2", "labels 1"]),
        (lambda: reward([math.nan], [1]), UsageError, ["probabilities", "NaN"]),
        (lambda: expected_reward(1.1, 0.5), UsageError, [1.1]),
        (lambda: expected_reward(0.5, -0.1), UsageError, [-0.1]),
        (lambda: expected_reward(math.nan, 0.5), UsageError, ["nan"]),
        (lambda: expected_reward(0.5, 0.5, 0), UsageError, ["histories", 0]),
    ],
)  # fmt: skip
def test_refused(call: Any, error: type[Exception], facts: list[object]) -> None:
    refused(error, call, *facts)


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0
