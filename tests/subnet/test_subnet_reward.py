"""The validator's formula against histories worked out by hand, and against its own description, slowly."""

from __future__ import annotations

import doctest
import json
import math
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED
from refusals import refused

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics import select_threshold
from natix_hf.subnet import expectation, payout
from natix_hf.subnet import rewards as module
from natix_hf.subnet.expectation import mean_reward, reward_of_counts
from natix_hf.subnet.payout import wait_until
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


THIRD = ([0.9, 0.1] * 60, [1, 0] * 60)


@pytest.mark.parametrize(("back", "expected"), [(1, 0.0), (2, 0.0), (10, 0.0), (11, 0.125), (100, 0.125), (101, 1.0)])
@pytest.mark.parametrize("out", [1.7, 2.0, -2.0, 1.50001, -0.9])
def test_a_third_class_costs_as_long_as_it_is_in_a_window(out: float, back: int, expected: float) -> None:
    """-0.9 rounds to -1, but is an answer."""
    p = list(THIRD[0])
    p[-back] = out
    assert reward(p, THIRD[1]) == expected


@pytest.mark.parametrize("out", [1.4, -0.4])
def test_out_of_range_but_rounded_inside_costs_once(out: float) -> None:
    p = list(THIRD[0])
    p[-2 if out > 1 else -1] = out  # where it rounds to the right answer
    assert reward(p, THIRD[1]) == (1.0 if out > 1 else 0.0)


def histories(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


OFFICIAL = histories(Path(__file__).with_name("reward_histories.jsonl"))


def test_every_kind_of_official_history_is_here() -> None:
    assert {history["kind"] for history in OFFICIAL} == {
        "plain", "minus1", "half", "out_rounds_inside", "out_third_class", "one_class_labels", "constant_answer",
        "short", "integers",
    }  # fmt: skip


@pytest.mark.parametrize("number", range(len(OFFICIAL)))
def test_against_the_official_code(number: int) -> None:
    history = OFFICIAL[number]
    assert reward(history["probabilities"], history["labels"]) == history["reward"]  # to the last bit


@pytest.mark.shared
def test_against_all_official_results() -> None:
    every = histories(SHARED / "data" / "reward_histories" / "histories.jsonl")
    assert len(every) == 580 and {history["kind"] for history in every} == {history["kind"] for history in OFFICIAL}
    assert [h for h in every if reward(h["probabilities"], h["labels"]) != h["reward"]] == []


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
        (lambda: mean_reward([0.5, 1.5], 0.5), UsageError, ["rates"]),
        (lambda: mean_reward(0.5, math.nan), UsageError, ["rates"]),
        (lambda: mean_reward(0.5, 0.5, 5, 6), UsageError, [5, 6]),
        (lambda: wait_until(1.0, 0.5, 0.5), UsageError, ["share", 1.0]),
    ],
)  # fmt: skip
def test_refused(call: Any, error: type[Exception], facts: list[object]) -> None:
    refused(error, call, *facts)


def enumerated(tpr: float, tnr: float, answers: int, recent: int) -> float:
    """The mean over every sequence of labels and right or wrong answers, each with its probability."""
    total = 0.0
    for history in product([(1, 1), (1, 0), (0, 1), (0, 0)], repeat=answers):  # label, right
        chance = math.prod(0.5 * ((tpr if label else tnr) if right else 1 - (tpr if label else tnr))
                           for label, right in history)  # fmt: skip
        pairs = [(label if right else 1 - label, label) for label, right in history]
        tp, fp, tn, fn = (pairs.count(cell) for cell in ((1, 1), (1, 0), (0, 0), (0, 1)))
        bottom = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        mcc = max(0.0, (tp * tn - fp * fn) / bottom) if bottom else 0.0
        total += chance * (0.5 * mcc + 0.5 * sum(right for _, right in history[-recent:]) / recent) ** 3
    return total


@pytest.mark.parametrize(("answers", "recent"), [(1, 1), (2, 2), (3, 2), (6, 1), (6, 4)])
def test_the_mean_is_exact(answers: int, recent: int) -> None:
    rates = [(0.9, 0.75), (0.3, 0.95), (1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)]
    found = mean_reward(*np.array(rates).T, answers, recent)
    np.testing.assert_allclose(found, [enumerated(t, u, answers, recent) for t, u in rates], atol=1e-13)


def paid(labels: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The reward of the last answer of each history, bool [n, answers]: `slowly` for many of them."""
    y, ok = labels[:, -100:], right[:, -100:]
    tp, tn, fp, fn = ((y & ok).sum(1), (~y & ok).sum(1), (~y & ~ok).sum(1), (y & ~ok).sum(1))
    bottom = np.sqrt(1.0 * (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    mcc = np.clip((tp * tn - fp * fn) / np.where(bottom, bottom, np.inf), 0, None)
    return np.asarray((0.5 * mcc + 0.5 * ok[:, -10:].mean(1)) ** 3)


@pytest.mark.parametrize(("tpr", "tnr"), [(0.9, 0.75), (0.98, 0.7), (0.6, 0.55)])
def test_the_mean_is_that_of_many_histories(tpr: float, tnr: float) -> None:
    rng = np.random.default_rng(5)
    labels = rng.random((40_000, 100)) < 0.5
    right = rng.random(labels.shape) < np.where(labels, tpr, tnr)
    singles = paid(labels, right)
    for i in range(5):
        assert singles[i] == pytest.approx(reward((labels[i] == right[i]).astype(float), labels[i].astype(int)))
    assert float(mean_reward(tpr, tnr)) == pytest.approx(singles.mean(), abs=4 * singles.std() / math.sqrt(40_000))
    assert expected_reward(tpr, tnr)[0] == float(mean_reward(tpr, tnr))


def test_a_better_rate_never_pays_less() -> None:
    grid = np.linspace(0, 1, 31)
    means = mean_reward(grid[:, None], grid[None, :])
    assert means.shape == (31, 31) and np.diff(means, axis=0).min() > 0 and np.diff(means, axis=1).min() > 0
    np.testing.assert_allclose(means, means.T, atol=1e-13)


def test_the_threshold_that_pays_most() -> None:
    """Against every threshold, one by one; the prior of the sample and the target do not matter."""
    rng = np.random.default_rng(2)
    labels = (rng.random(300) < 0.8).astype(int)
    scores = (labels * 1.5 + rng.normal(size=300)).round(1)
    found = select_threshold(scores, labels, reward_of_counts)
    each = {t: float(mean_reward((scores[labels == 1] > t).mean(), (scores[labels == 0] <= t).mean()))
            for t in np.unique(scores)[:-1]}  # fmt: skip
    assert found.value == pytest.approx(max(each.values()), abs=1e-12) and found.objective == "reward_of_counts"
    assert (found.tpr, found.tnr) == (
        (scores[labels == 1] > found.threshold).mean(), (scores[labels == 0] <= found.threshold).mean()
    )  # fmt: skip
    weighted = select_threshold(scores, labels, reward_of_counts, target_prior=0.3)
    assert weighted.threshold == found.threshold
    refused(UsageError, lambda: select_threshold(scores, labels, lambda tp, fp, tn, fn: tp * math.nan), "finite")


def test_twenty_thousand_thresholds_take_seconds() -> None:
    rng = np.random.default_rng(3)
    labels = (rng.random(20_000) < 0.5).astype(int)
    begin = time.monotonic()
    select_threshold(labels * 1.0 + rng.normal(size=20_000), labels, reward_of_counts)
    assert time.monotonic() - begin < 60


def test_how_long_a_new_model_waits() -> None:
    """Against 2000 miners, question by question, from no answer and no score."""
    rng, tpr, tnr = np.random.default_rng(4), 0.9, 0.8
    labels = rng.random((2000, 130)) < 0.5
    right = rng.random(labels.shape) < np.where(labels, tpr, tnr)
    score, means, spread = np.zeros(2000), [], 0.0
    for i in range(130):
        score = 0.05 * paid(labels[:, : i + 1], right[:, : i + 1]) + 0.95 * score
        means.append(score.mean())
        spread = max(spread, 4 * score.std() / math.sqrt(2000))
    final = float(mean_reward(tpr, tnr))
    for share in (0.5, 0.95):
        wait = wait_until(share, tpr, tnr)
        assert wait is not None
        before, at = means[wait.questions - 2 : wait.questions]
        assert before - spread < share * final < at + spread
        assert wait.hours == pytest.approx((wait.questions * 26 / 60, wait.questions * 30 / 60))
    assert wait_until(0.5, 0.0, 0.0) is None


def test_doctests() -> None:
    assert [doctest.testmod(each).failed for each in (module, expectation, payout)] == [0, 0, 0]
