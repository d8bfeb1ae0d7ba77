"""`natix-hf reward`: a bundle in the subnet's exam, on labelled pictures: rates by level, and what they would pay."""

from __future__ import annotations

from typing import Any

import numpy as np

from natix_hf.bundle.load import Bundle
from natix_hf.data.config import DataConfig
from natix_hf.data.exam import ExamViews
from natix_hf.data.sources import load_source
from natix_hf.errors import DataError
from natix_hf.metrics import rates_from_counts, select_threshold
from natix_hf.subnet.challenge import LEVELS
from natix_hf.subnet.rewards import expected_reward


def examine(bundle: Bundle, config: DataConfig, seed: int = 0) -> dict[str, Any]:
    """Sends every picture of a source through each level of the exam, and asks the bundle.

    Real pictures only: the synthetic half of what the validator sends is not here. The rows are those of the source's
    test split, all of them if it has none; the label rule of `config` holds.

    Returns:
        `rows`, `positives`; `levels`, for each level and `"all"` the `tpr`, `tnr` and `mcc` of the bundle's decisions
        at a prior of .5; `rewards`, by the way of deciding, with `tpr`, `tnr`, and what `expected_reward` says of them
        (`expected`, `range`): `fitted`, the bundle's threshold; `half`, without it, probability .5 of the model;
        `best`, the threshold that would have been best on these very views, which nobody knows beforehand.

    Raises:
        DataError: the source cannot be read, or all its rows are of one class.
    """
    source = load_source(config)
    kept = np.array([row_id not in source.left_out for row_id in source.ids])
    kept &= source.official_test if source.official_test.any() else True
    at = np.flatnonzero(kept)
    labels = source.labels[at]
    if len(np.unique(labels)) < 2:
        raise DataError(f"{config.source} has rows of one class only where both are needed: {len(labels)} to be asked")
    cells = source.dataset.select(at)[config.image_column]
    views = ExamViews(cells, [source.ids[i] for i in at], bundle.preprocess, seed)
    z = bundle.logits_of(views, label="exam").reshape(len(at), len(LEVELS))
    decided = bundle.policy.decide(z)
    names = {str(level): (decided[:, [level]], labels[:, None]) for level in LEVELS}
    names["all"] = (decided, np.repeat(labels[:, None], len(LEVELS), axis=1))
    every = names["all"][1].ravel()
    best = select_threshold(z.ravel(), every, target_prior=0.5).threshold
    ways = {"fitted": bundle.policy.threshold_logit, "half": 0.0, "best": best}
    return {
        "rows": len(at),
        "positives": int(labels.sum()),
        "levels": {name: _rates(answers, truth) for name, (answers, truth) in names.items()},
        "rewards": {name: _paid(z.ravel() > threshold, every) for name, threshold in ways.items()},
    }


def _rates(answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    positive = labels.ravel() == 1
    tpr, tnr = float(answers.ravel()[positive].mean()), float((~answers.ravel()[~positive]).mean())
    mcc = rates_from_counts(*(np.asarray(cell) for cell in (tpr, 1 - tnr, tnr, 1 - tpr)))["mcc"]
    return {"tpr": tpr, "tnr": tnr, "mcc": float(mcc)}


def _paid(answers: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    rates = _rates(answers, labels)
    mean, low, high = expected_reward(rates["tpr"], rates["tnr"])
    return {"tpr": rates["tpr"], "tnr": rates["tnr"], "expected": mean, "range": [low, high]}
