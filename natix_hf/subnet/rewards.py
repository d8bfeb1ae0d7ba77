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
    is ignored in both windows, but still occupies a place in them. A probability outside [0, 1] earns 0. If it rounds
    to neither 0 nor 1, such as 1.7 or -2, the official code fails on this third class and takes 0 for the MCC as long
    as the answer is among the last 100, and 0 for the accuracy as long as it is among the last 10.

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
    mcc, accuracy = (
        figure(p[-window:], y[-window:]) for figure, window in ((_mcc, LONG_WINDOW), (_accuracy, SHORT_WINDOW))
    )
    return float((0.5 * mcc + 0.5 * accuracy) ** 3)


def _mcc(p: Floats, labels: Labels) -> float:
    from sklearn.metrics import matthews_corrcoef

    answers, labels = _given(p, labels)
    if len(np.unique(labels)) < 2 or _third_class(answers):
        return 0.0
    return max(0.0, float(matthews_corrcoef(labels, answers)))


def _accuracy(p: Floats, labels: Labels) -> float:
    answers, labels = _given(p, labels)
    return 0.0 if _third_class(answers) or not answers.size else float((answers == labels).mean())


def _given(p: Floats, labels: Labels) -> tuple[Floats, Labels]:
    """The rounded answers of a window, without those that were none, and their labels."""
    given = p != NO_ANSWER
    return np.round(p[given]), labels[given]


def _third_class(answers: Floats) -> bool:
    return not np.isin(answers, (0, 1)).all()


def expected_reward(tpr: float, tnr: float, histories: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Compute the mean reward of a miner with these rates, exactly, and the range of single rewards by simulation.

    A history has 100 independent answers. Half of the labels are 1 on average.

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
    from natix_hf.subnet.expectation import mean_reward

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
    return float(mean_reward(tpr, tnr)), float(low), float(high)
