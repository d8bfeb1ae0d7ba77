"""Marks of an exam: rates by level, and what they would pay."""

from __future__ import annotations

from typing import Any

import numpy as np

from natix_hf.metrics import rates_from_counts, select_threshold
from natix_hf.subnet.challenge import LEVELS
from natix_hf.subnet.rewards import expected_reward


def mark_exam(logits: np.ndarray, labels: np.ndarray, levels: np.ndarray, threshold: float) -> dict[str, Any]:
    """How a model did in the exam: it answers "roadwork" where its logit is above the threshold.

    Args:
        logits: float [n], one for each view. labels: 0 or 1, [n], both present. levels: of the views, 0 to 3, [n].
        threshold: a logit.

    Returns:
        `levels`, for each level and `"all"` the `tpr`, `tnr` and `mcc` at a prior of .5; `rewards`, by the way of
        deciding, with `tpr`, `tnr`, and what `expected_reward` says of them (`expected`, `range`): `fitted`, the
        threshold; `half`, without it, probability .5 of the model; `best`, the threshold that would have been best on
        these very views, which nobody knows beforehand.
    """
    best = select_threshold(logits, labels, target_prior=0.5).threshold
    ways = {"fitted": threshold, "half": 0.0, "best": best}
    of = {str(level): levels == level for level in LEVELS} | {"all": np.ones_like(levels, dtype=bool)}
    return {
        "levels": {name: _rates(logits[at] > threshold, labels[at]) for name, at in of.items()},
        "rewards": {name: _paid(logits > cut, labels) for name, cut in ways.items()},
    }


def _rates(answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    positive = labels == 1
    tpr, tnr = float(answers[positive].mean()), float((~answers[~positive]).mean())
    mcc = rates_from_counts(*(np.asarray(cell) for cell in (tpr, 1 - tnr, tnr, 1 - tpr)))["mcc"]
    return {"tpr": tpr, "tnr": tnr, "mcc": float(mcc)}


def _paid(answers: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    rates = _rates(answers, labels)
    mean, low, high = expected_reward(rates["tpr"], rates["tnr"])
    return {"tpr": rates["tpr"], "tnr": rates["tnr"], "expected": mean, "range": [low, high]}
