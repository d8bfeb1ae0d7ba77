"""Marks of an exam: the rates at each level and the expected reward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from natix_hf.metrics import rates_from_counts, select_threshold
from natix_hf.subnet.challenge import LEVELS
from natix_hf.subnet.rewards import expected_reward


@dataclass(frozen=True)
class LevelRates:
    """Rates of the answers at one level of the exam. The MCC assumes a prior of 0.5."""

    tpr: float
    tnr: float
    mcc: float


@dataclass(frozen=True)
class Paid:
    """Reward for a pair of rates: the mean, and the range that holds 95% of the single rewards."""

    tpr: float
    tnr: float
    expected: float
    range: tuple[float, float]


@dataclass(frozen=True)
class ExamMarks:
    """Results of a model in the exam.

    Args:
        rows, positives (`int`): Number of pictures, and of pictures with label 1.
        views (`int`): Number of answers.
        levels (`dict[str, LevelRates]`): Rates of levels "0" to "3" and of "all".
        rewards (`dict[str, Paid]`): Reward for each way to decide. `fitted` uses the given threshold. `half` cuts the
            model's probability at 0.5. `best` uses the threshold that is best on these views; it is not known in
            advance.
    """

    rows: int
    positives: int
    views: int
    levels: dict[str, LevelRates]
    rewards: dict[str, Paid]


def mark_exam(
    logits: np.ndarray, labels: np.ndarray, levels: np.ndarray, views: int, threshold_logit: float
) -> ExamMarks:
    """Mark the answers to exam views. The answer is "roadwork" if the logit is above the threshold.

    Args:
        logits (`np.ndarray` of float, shape `(n,)`): One logit per view.
        labels (`np.ndarray` of shape `(n,)`): 0 or 1; both must occur.
        levels (`np.ndarray` of shape `(n,)`): Level of each view, 0 to 3.
        views (`int`): Number of views per picture.
        threshold_logit (`float`): Decision threshold, as a logit.

    Returns:
        [`ExamMarks`]: Rates by level and rewards.
    """
    best = select_threshold(logits, labels, target_prior=0.5).threshold
    ways = {"fitted": threshold_logit, "half": 0.0, "best": best}
    of = {str(level): levels == level for level in LEVELS} | {"all": np.ones_like(levels, dtype=bool)}
    return ExamMarks(
        rows=len(labels) // views,
        positives=int(labels.sum()) // views,
        views=len(labels),
        levels={name: _rates(logits[at] > threshold_logit, labels[at]) for name, at in of.items()},
        rewards={name: _paid(logits > cut, labels) for name, cut in ways.items()},
    )


def _rates(answers: np.ndarray, labels: np.ndarray) -> LevelRates:
    positive = labels == 1
    tpr, tnr = float(answers[positive].mean()), float((~answers[~positive]).mean())
    mcc = rates_from_counts(*(np.asarray(cell) for cell in (tpr, 1 - tnr, tnr, 1 - tpr)))["mcc"]
    return LevelRates(tpr, tnr, float(mcc))


def _paid(answers: np.ndarray, labels: np.ndarray) -> Paid:
    rates = _rates(answers, labels)
    mean, low, high = expected_reward(rates.tpr, rates.tnr)
    return Paid(rates.tpr, rates.tnr, mean, (low, high))
