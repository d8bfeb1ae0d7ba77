"""The subnet's reward: the validator's formula for a history of answers, and the expected reward for two rates."""

from __future__ import annotations

from typing import Any

import numpy as np

from natix_hf.errors import UsageError
from natix_hf.metrics.arrays import Floats, Labels, as_labels, check_lengths
from natix_hf.metrics.classification import matthews

LONG_WINDOW, SHORT_WINDOW = 100, 10
NO_ANSWER = -1.0  # stands for an error, a time-out or an abstention


def reward(probabilities: Any, labels: Any) -> float:
    """Compute the reward for the last answer of a history.

    Source: the subnet's public code, v2.0.4, January 2026. The reward is the cube of
    `0.5 * MCC of the last 100 answers + 0.5 * accuracy of the last 10`. Probabilities are rounded; exactly 0.5 becomes
    "no". The MCC is 0 if it is negative, or if the labels or the answers are of one class. An answer of -1 earns 0 and
    is ignored in both windows, but still occupies a place in them. A probability outside [0, 1] earns 0. It is rounded
    like any other answer and may therefore count as a third class.

    Args:
        probabilities (`array-like` of shape `(n,)`): P(roadwork) of each answer, oldest first; -1 for no answer.
        labels (`array-like` of shape `(n,)`): The true labels, 0 or 1.

    Returns:
        `float`: The reward, from 0 to 1.

    Raises:
        [`DataError`]: If the labels are invalid or the lengths differ.
        [`UsageError`]: If a probability is NaN.

    Example:
        >>> round(reward([0.9, 0.2, 0.8, 0.4] * 25, [1, 0, 1, 1] * 25), 4)
        0.2605
    """
    y = as_labels(labels)
    p = np.asarray(probabilities, dtype=np.float64)
    check_lengths(probabilities=p, labels=y)
    if np.isnan(p).any():
        raise UsageError("probabilities hold NaN, which the validator does not accept: use -1 for no answer")
    if p[-1] == NO_ANSWER or not 0 <= p[-1] <= 1:
        return 0.0
    long, short = slice(-LONG_WINDOW, None), slice(-SHORT_WINDOW, None)
    return float((0.5 * _mcc(p[long], y[long]) + 0.5 * _accuracy(p[short], y[short])) ** 3)


def _mcc(p: Floats, labels: Labels) -> float:
    from sklearn.metrics import matthews_corrcoef

    given = p != NO_ANSWER
    if len(np.unique(labels[given])) < 2:
        return 0.0
    return max(0.0, float(matthews_corrcoef(labels[given], np.round(p[given]))))


def _accuracy(p: Floats, labels: Labels) -> float:
    given = p != NO_ANSWER
    return float((np.round(p[given]) == labels[given]).mean()) if given.any() else 0.0


def expected_reward(tpr: float, tnr: float, histories: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Estimate the reward of a miner with these rates by simulation.

    Each simulated history has 100 independent answers. Half of the labels are 1 on average.

    Args:
        tpr (`float`): Share of the pictures with roadwork that are answered correctly.
        tnr (`float`): Share of the pictures without roadwork that are answered correctly.
        histories (`int`, defaults to 2000): Number of simulated histories.
        seed (`int`, defaults to 0): Seed of the simulation.

    Returns:
        `tuple[float, float, float]`: Mean reward, and the lower and upper end of the range of 95% of single rewards.

    Raises:
        [`UsageError`]: If a rate is outside [0, 1], or `histories` is below 1.

    Example:
        >>> [round(value, 2) for value in expected_reward(1.0, 1.0)]
        [1.0, 1.0, 1.0]
    """
    if not (0 <= tpr <= 1 and 0 <= tnr <= 1):
        raise UsageError(f"rates must be from 0 to 1, found {tpr} and {tnr}")
    if histories < 1:
        raise UsageError(f"histories must be at least 1, found {histories}")
    generator = np.random.default_rng(seed)
    labels = generator.random((histories, LONG_WINDOW)) < 0.5
    right = generator.random(labels.shape) < np.where(labels, tpr, tnr)
    answers = labels == right
    cells = [answers & labels, answers & ~labels, ~answers & ~labels, ~answers & labels]
    tp, fp, tn, fn = (cell.sum(axis=1).astype(np.float64) for cell in cells)
    mcc = np.maximum(np.asarray(matthews(tp, fp, tn, fn)), 0.0)
    rewards = (0.5 * mcc + 0.5 * right[:, -SHORT_WINDOW:].mean(axis=1)) ** 3
    low, high = np.quantile(rewards, [0.025, 0.975])
    return float(rewards.mean()), float(low), float(high)
