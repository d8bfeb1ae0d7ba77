"""Scores of 0 and 1 hide how large a logit was: a policy that must know it refuses them, and no other policy does."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused
from scipy.special import expit

from natix_hf import SelectiveClassifier
from natix_hf.bundle.policy import Policy, write_policy
from natix_hf.calibration import Calibration, Promise
from natix_hf.errors import DataError

CALIBRATIONS = [
    Calibration("none"), Calibration("temperature", 1 / 3), Calibration("temperature", 5.0),
    Calibration("temperature", 100.0), Calibration("platt", 0.7, -1.3), Calibration("platt", 3.0, 20.0),
]  # fmt: skip
CUTS = {"None": 0.5, "Roadwork": 1.25}
FOLDS: list[Any] = ["none", "calibration", "decision"]


def loaded(folder: Path, policy: Policy) -> SelectiveClassifier:
    write_policy(folder / "policy.json", policy)
    return SelectiveClassifier.load(folder, probabilities=True)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=str)
@pytest.mark.parametrize("feasible", [True, False])
def test_each_score_gives_the_bundles_answer_or_is_refused(
    fold: Any, calibration: Calibration, feasible: bool, tmp_path: Path
) -> None:
    """Row by row. A row is refused only where a logit further out, with the same score, is answered differently."""
    promise = Promise(True, "x", CUTS, "error", 0.05, 0.1, True) if feasible else Promise()
    kept = 0
    for threshold in (0.0, 0.3, -2.1):
        policy = Policy(threshold, "a" * 64, "b" * 64, calibration, fold, promise=promise)
        classifier = loaded(tmp_path, policy)
        z = np.random.default_rng(0).normal(0, 3, 100)
        folded = policy.folded_slope * z - policy.folded_shift
        with np.errstate(over="ignore"):
            scores = expit(folded)
        whole = classifier.predict(folded, probabilities=False)
        for row, score in enumerate(scores):
            try:
                got = classifier.predict([score])
            except DataError as error:
                clipped = min(score, 1 - score) < 1e-7
                further = np.sign(folded[row]) * np.geomspace(np.log(1e7), 1e5, 2000)
                found = classifier.predict(further, probabilities=False)
                several = len(set(found.decision)) > 1 or np.ptp(found.probability) > 0.9e-3
                assert clipped and several and "probabilities=False" in str(error)
                continue
            kept += 1
            assert got.decision[0] == whole.decision[row] and got.answer[0] == whole.answer[row]
            assert got.probability[0] == pytest.approx(whole.probability[row], abs=1.1e-3)
    assert kept > 10


@pytest.mark.parametrize(
    ("policy", "z", "fact"),
    [
        (Policy(3.0, "a", "b", Calibration("temperature", 8.0), "calibration"), 6.0, "answer"),
        (Policy(0.0, "a", "b", Calibration("temperature", 8.0), promise=Promise(
            True, "x", {"None": 2.5, "Roadwork": 2.5}, "error", 0.05, 0.1, False)), -5.0, "acceptance"),
        (Policy(-2.1, "a", "b", Calibration("temperature", 5.0)), 4.0, "probability"),
    ],
    ids=["answer", "acceptance", "probability"],
)  # fmt: skip
def test_the_line_tells_what_depends_and_where(policy: Policy, z: float, fact: str, tmp_path: Path) -> None:
    hidden = expit(policy.folded_slope * z - policy.folded_shift)
    clear = expit(0.5)
    classifier = loaded(tmp_path, policy)
    for scores in ([clear, hidden], np.c_[[1 - clear, 1 - hidden], [clear, hidden]]):
        refused(DataError, lambda: classifier.predict(scores), "position 1", fact, "probabilities=False")  # noqa: B023
    assert classifier.predict([clear]).answer.size == 1


def test_a_policy_of_ones_own_counts_certain_scores_as_its_fit_did() -> None:
    """With probabilities epsilon is part of what was certified. With logits it is not."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 600)
    z = rng.normal(40 * (2 * y - 1), 25)
    found = SelectiveClassifier.fit(expit(z), y, probabilities=True, alpha=0.02)
    assert found.evidence is not None and found.evidence.raised > 300
    assert np.array_equal(found.predict(expit(z)).answer, found.predict(np.round(expit(z), 9)).answer)
    of_logits = SelectiveClassifier.fit(z, y, alpha=0.02)
    promise = of_logits.policy.promise
    assert promise.accept_above is not None and min(promise.accept_above.values()) > 17
    refused(DataError, lambda: of_logits.predict([0.5, 1.0], probabilities=True), "position 1", "logits")


def test_float32_pairs_of_a_pipeline_are_answered_wherever_the_policy_is_ordinary(tmp_path: Path) -> None:
    promise = Promise(True, "x", CUTS, "error", 0.05, 0.1, True)
    for fold, threshold in itertools.product(FOLDS, (-1.0, 0.7)):
        policy = Policy(threshold, "a", "b", Calibration("temperature", 1 / 1.7), fold, promise=promise)
        z = np.linspace(-200, 200, 4001)
        half = ((policy.folded_slope * z - policy.folded_shift) / 2).astype(np.float32)
        powers = np.exp(np.stack([-half, half], 1) - np.abs(half)[:, None])
        got = loaded(tmp_path, policy).predict(powers / powers.sum(1, keepdims=True))
        accepted = policy.accepts(z, np.abs(z - threshold))
        assert ((got.accepted != accepted).sum(), (got.answer != policy.decide(z)).sum()) <= (2, 2)
