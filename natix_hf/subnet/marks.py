"""Marks of an exam: rates by level, and what they would pay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from natix_hf.metrics import rates_from_counts, select_threshold
from natix_hf.subnet.challenge import LEVELS
from natix_hf.subnet.rewards import expected_reward


@dataclass(frozen=True)
class LevelRates:
    """Rates of the answers at one level of the exam. The MCC is that at a prior of 0.5."""

    tpr: float
    tnr: float
    mcc: float


@dataclass(frozen=True)
class Paid:
    """What a pair of rates would pay: the mean reward, and the range of 95% of single rewards."""

    tpr: float
    tnr: float
    expected: float
    range: tuple[float, float]


@dataclass(frozen=True)
class ExamMarks:
    """How a model did in the exam.

    `rows` and `positives` count pictures, `views` all answers. `levels` has the rates of levels "0" to "3" and of
    "all". `rewards` has one entry for each way of deciding: `fitted`, by the threshold; `half`, without it, at
    probability 0.5 of the model; `best`, by the threshold that is best on these very views, which nobody knows
    beforehand.
    """

    rows: int
    positives: int
    views: int
    levels: dict[str, LevelRates]
    rewards: dict[str, Paid]


def mark_exam(
    logits: np.ndarray, labels: np.ndarray, levels: np.ndarray, views: int, threshold_logit: float
) -> ExamMarks:
    """Marks the answers to exam views. A model answers "roadwork" where its logit is above the threshold.

    Args:
        logits: float [n], one for each view. labels: 0 or 1, [n], both present. levels: of the views, 0 to 3, [n].
        views: of each picture.
        threshold_logit: a logit.
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
