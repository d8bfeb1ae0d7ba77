"""The learned gate: what it is taught, that it never judges a group it has seen, and that it finds what is there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from natix_hf.errors import RecipeError, RunError
from natix_hf.metrics import aurc, paired_selective_difference
from natix_hf.models.gate import gate_inputs
from natix_hf.recipe import parse_recipe
from natix_hf.trainers import gate as gate_trainer
from natix_hf.trainers.gate import cross_fit, gate_targets, train_gate
from natix_hf.trainers.gate_config import GateConfig

METHODS = ("correctness", "confidnet")


def _config(**given: Any) -> GateConfig:
    return parse_recipe({"phase3": {"hidden": 16, "num_train_epochs": 12, "learning_rate": 1e-2, **given}}).phase3


def _answers(signal: float, n: int = 600, seed: int = 0) -> dict[str, Any]:
    """A quarter of the answers is wrong, whatever their margin; of 6 features the first tells which, by `signal`."""
    rng = np.random.default_rng(seed)
    groups = np.array([f"v{i // 3}" for i in range(n)])
    wrong = (rng.random(n) < 0.25).astype(np.int64)
    logits = rng.choice([-1.0, 1.0], n) * rng.uniform(0.2, 4.0, n) + 0.5
    labels = np.where(wrong, logits <= 0.5, logits > 0.5).astype(np.int64)
    features = rng.normal(size=(n, 6)).astype(np.float32)
    features[:, 0] += np.float32(signal) * wrong
    return {"features": features, "logits": logits, "labels": labels, "groups": groups, "wrong": wrong}


def _fitted(answers: dict[str, Any], config: GateConfig) -> np.ndarray:
    logits, labels = answers["logits"], answers["labels"]
    inputs = gate_inputs(answers["features"], logits, 0.5)
    targets = gate_targets(config.method, logits, labels, 0.5)
    return cross_fit(inputs, targets, answers["wrong"], answers["groups"], config)


# What it is taught.


def test_targets_by_hand() -> None:
    """Above the threshold strictly is a positive answer; the probability of the true class is the model's own."""
    logits, labels = np.array([2.0, 2.0, 0.5, 0.5, -1.0, -1.0]), np.array([1, 0, 1, 0, 1, 0])
    right = gate_targets("correctness", logits, labels, threshold=0.5)
    assert right.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    true_class = gate_targets("confidnet", logits, labels, threshold=0.5)
    expected = [1 / (1 + math.exp(-z)) for z in (2.0, -2.0, 0.5, -0.5, -1.0, 1.0)]
    assert true_class.tolist() == pytest.approx(expected, abs=1e-7)
    assert right.dtype == true_class.dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_that_of_the_method(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of all rows at a learning rate of nearly 0, against the formulas; the gate's own logits are 0 or 1."""
    seen: list[float] = []
    real = gate_trainer.GateTrainer.compute_loss

    def watched(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        torch.nn.init.zeros_(model.layers[2].weight)
        torch.nn.init.constant_(model.layers[2].bias, 0.7)
        loss = real(self, model, inputs, *args, **kwargs)
        seen.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
        return loss

    monkeypatch.setattr(gate_trainer.GateTrainer, "compute_loss", watched)
    targets = np.array([1.0, 0.0, 0.25, 0.9], dtype=np.float32)
    inputs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    train_gate(inputs, targets, _config(method=method, num_train_epochs=1))
    p = 1 / (1 + math.exp(-0.7))
    cross_entropy = np.mean([-t * math.log(p) - (1 - t) * math.log(1 - p) for t in targets])
    squared = np.mean([(p - t) ** 2 for t in targets])
    assert seen == [pytest.approx(cross_entropy if method == "correctness" else squared, abs=1e-6)]


def test_inputs_are_standardised_by_the_rows_it_is_trained_on() -> None:
    inputs = (np.random.default_rng(0).normal(size=(50, 3)) * [1, 100, 1e-3] + [0, 500, 3]).astype(np.float32)
    gate = train_gate(inputs, np.ones(50, dtype=np.float32), _config(num_train_epochs=1))
    np.testing.assert_allclose(gate.mean.numpy(), inputs.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(gate.std.numpy(), inputs.std(axis=0), rtol=1e-2)
    assert not gate.training and next(gate.parameters()).device.type == "cpu"


# How it is judged.


def test_no_group_is_judged_by_a_gate_that_has_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = _answers(0.0, n=120)
    numbers = np.unique(answers["groups"], return_inverse=True)[1].astype(np.float32)
    inputs = np.column_stack([numbers, np.arange(120)]).astype(np.float32)
    judged: list[float] = []
    fits = 0

    class Spy:
        def __init__(self, seen: np.ndarray) -> None:
            self.seen = set(seen[:, 0].tolist())

        def confidence(self, held: np.ndarray) -> np.ndarray:
            assert not self.seen & set(held[:, 0].tolist())
            assert self.seen | set(held[:, 0].tolist()) == set(numbers.tolist())  # and no row is left out either
            judged.extend(held[:, 1].tolist())
            return held[:, 1].astype(np.float64)

    def train(seen: np.ndarray, targets: np.ndarray, config: GateConfig) -> Spy:
        nonlocal fits
        fits += 1
        assert targets.tolist() == seen[:, 1].tolist()  # rows and targets stay side by side
        return Spy(seen)

    monkeypatch.setattr(gate_trainer, "train_gate", train)
    targets = np.arange(120, dtype=np.float32)
    confidence = cross_fit(inputs, targets, answers["wrong"], answers["groups"], _config(folds=4))
    assert confidence.tolist() == list(range(120))  # each row gets its own answer back
    assert fits == 4 and sorted(judged) == list(range(120))


@pytest.mark.parametrize("method", METHODS)
def test_a_signal_beside_the_margin_is_found(method: str) -> None:
    answers = _answers(signal=3.0)
    if method == "confidnet":  # the probability of the true class is what its features must tell
        answers["logits"] = np.where(answers["logits"] > 0.5, 2.0, -2.0) + 0.01 * answers["logits"]
    learned = _fitted(answers, _config(method=method, folds=3))
    margin = np.abs(answers["logits"] - 0.5)
    found = paired_selective_difference(
        margin, learned, answers["wrong"], answers["labels"], answers["groups"], n_resamples=200
    )
    assert found["aurc"]["b"] < 0.5 * found["aurc"]["a"] and found["aurc"]["high"] < 0


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_no_signal(method: str) -> None:
    """Cross-fitted: a gate judged on the rows it was trained on would seem to beat the margin here."""
    answers = _answers(signal=0.0)
    config = _config(method=method, folds=3, num_train_epochs=40, hidden=64)
    learned = _fitted(answers, config)
    margin, wrong = np.abs(answers["logits"] - 0.5), answers["wrong"]
    found = paired_selective_difference(margin, learned, wrong, answers["labels"], answers["groups"], n_resamples=200)
    assert not found["aurc"]["high"] < 0
    if method == "correctness":
        inputs = gate_inputs(answers["features"], answers["logits"], 0.5)
        targets = gate_targets(method, answers["logits"], answers["labels"], 0.5)
        assert aurc(train_gate(inputs, targets, config).confidence(inputs), wrong) < 0.7 * found["aurc"]["a"]


# One seed, one gate.


def test_equal_seeds_make_equal_gates() -> None:
    answers = _answers(1.0, n=150)
    inputs = gate_inputs(answers["features"], answers["logits"], 0.5)
    targets = gate_targets("correctness", answers["logits"], answers["labels"], 0.5)

    def made(seed: int, burn: int = 0) -> dict[str, torch.Tensor]:
        torch.manual_seed(burn)  # the state of the global generator is nothing to it
        return train_gate(inputs, targets, _config(seed=seed, num_train_epochs=2)).state_dict()

    first, again, other = made(3), made(3, burn=9), made(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])
    fits = [_fitted(answers, _config(seed=3, num_train_epochs=2)) for _ in range(2)]
    assert np.array_equal(fits[0], fits[1])


# What cannot be.


def test_a_gate_that_diverges_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound, lifted in (("_ABOVE_0", ()), ("_OTHERS", 1e39)):  # so large a rate is refused
        monkeypatch.setattr(f"natix_hf.trainers.config.{bound}", lifted)
    inputs = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    with pytest.raises(RunError, match=r"lower phase3\.learning_rate \(now 1e\+38\)"):
        train_gate(inputs, np.ones(64, dtype=np.float32), _config(learning_rate=1e38, num_train_epochs=30))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden": 0}, r"phase3\.hidden is 0"), ({"folds": 1}, r"phase3\.folds is 1"),
        ({"n_resamples": 99}, r"phase3\.n_resamples is 99"), ({"method": "margin"}, r"phase3\.method is 'margin'"),
        ({"learning_rate": 0}, r"phase3\.learning_rate is 0"), ({"lr": 1}, r"unknown key phase3\.lr"),
        ({"eval_strategy": "epoch"}, r"phase3\.eval_strategy is"), ({"save_strategy": "no"}, r"phase3\.save_strategy"),
        ({"load_best_model_at_end": True}, r"phase3\.load_best_model_at_end"),
        ({"logging_steps": 5}, r"phase3\.logging_steps is"),
        ({"label_smoothing_factor": 0.1}, r"phase3\.label_smoothing_factor is 0\.1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"phase3": given})
