"""Conformal risk training: cut, loss and gradient against slow references, and what a gate learns by it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from facts import tells
from refusals import refused
from scipy.stats import binomtest
from torch.nn.functional import sigmoid

from natix_hf.calibration import fit_risk_control, losses_for
from natix_hf.errors import RecipeError, RunError
from natix_hf.metrics.at_fnr import figures_at_fnr
from natix_hf.models.gate import Gate, gate_inputs
from natix_hf.recipe import parse_recipe
from natix_hf.trainers.conformal import (
    BalancedSampler,
    ConformalTrainer,
    calibrated_cut,
    conformal_codes,
    conformal_loss,
    set_scale,
    soft_figures,
    start_at_margin,
)
from natix_hf.trainers.gate import cross_fit, gate_targets, too_few_rows, train_gate
from natix_hf.trainers.gate_config import GateConfig, least_positives


def _config(**given: Any) -> GateConfig:
    section = {"method": "conformal", "hidden": 16, "learning_rate": 1e-2, "per_device_train_batch_size": 256}
    return parse_recipe({"phase3": section | {"num_train_epochs": 25, "folds": 2} | given}).phase3


# The cut.


def slow_cut(scores: list[float], wrong: list[bool], alpha: float, nearest: bool) -> float:
    """The largest score that the loosest good set of accepted positives leaves out; sets are {score > cut}."""
    rates = {}
    for cut in [-math.inf, *scores]:
        taken = [w for s, w in zip(scores, wrong, strict=True) if s > cut]
        if taken:
            rates[cut] = (sum(taken) + 1) / (len(taken) + 1)
    limit = max(alpha, min(rates.values())) if nearest else alpha
    return min((cut for cut, rate in rates.items() if rate <= limit + 1e-9), default=math.inf)


@pytest.mark.parametrize("nearest", [True, False])
def test_the_cut_is_the_smallest_that_reaches_alpha(nearest: bool) -> None:
    rng, seen = np.random.default_rng(1), set()
    for _ in range(300):
        n = int(rng.integers(1, 70))
        scores = rng.normal(size=n).round(int(rng.integers(0, 3))).astype(np.float32)  # often tied
        wrong = rng.random(n) < rng.choice([0.0, 0.03, 0.1, 0.5])
        alpha = float(rng.choice([0.05, 0.1, 0.29]))
        given = torch.tensor(scores, requires_grad=True)
        cut = calibrated_cut(given, torch.tensor(wrong), alpha, nearest)
        assert cut.item() == slow_cut(scores.tolist(), wrong.tolist(), alpha, nearest)
        if math.isfinite(cut.item()):  # the gradient goes to one row of that score, and one of those there is missed
            [gradient] = torch.autograd.grad(cut, given)
            assert gradient.sum() == 1 and scores[int(gradient.argmax())] == cut.item()
            assert any(wrong[scores == cut.item()])
        seen.add(cut.item() if math.isinf(cut.item()) else 0.0)
    assert seen == {0.0, -math.inf} | (set() if nearest else {math.inf})


@pytest.mark.parametrize("alpha", [0.01, 0.02, 0.05, 0.07, 0.1, 0.29, 0.5, 0.9])
def test_fewer_positives_than_the_least_reach_no_alpha(alpha: float) -> None:
    least = least_positives(alpha)
    for number, reached in ((least, True), (least - 1, False)):
        if number:
            cut = calibrated_cut(torch.arange(float(number)), torch.zeros(number, dtype=torch.bool), alpha, False)
            assert (float(cut) == -math.inf) == reached


# The loss.


def slow_figures(
    scores: list[float], codes: list[int], alpha: float, softness: float, nearest: bool
) -> tuple[float, float]:
    calibrating = [i for i, code in enumerate(codes) if code >= 2][::2]
    scored = [i for i in range(len(codes)) if i not in calibrating]
    cut = slow_cut([scores[i] for i in calibrating], [codes[i] == 3 for i in calibrating], alpha, nearest)
    mean = sum(scores[i] for i in scored) / len(scored)
    spread = math.sqrt(sum((scores[i] - mean) ** 2 for i in scored) / (len(scored) - 1)) + 1e-6
    soft = {i: _sigmoid((scores[i] - cut) / (softness * spread)) for i in scored}
    negatives, positives = ([soft[i] for i in scored if (codes[i] >= 2) == side] for side in (False, True))
    alarms = sum(soft[i] for i in scored if codes[i] == 1)
    return alarms / max(sum(negatives), 1e-6), (sum(positives) / len(positives) + sum(negatives) / len(negatives)) / 2


def _sigmoid(x: float) -> float:
    return 0.0 if x < -700 else 1 / (1 + math.exp(-x))


def _batch(rng: np.random.Generator, half: int, wrong: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes = torch.tensor(np.tile([2, 0], half) + (rng.random(2 * half) < wrong), dtype=torch.float32)
    scores, margins = (torch.tensor(rng.normal(size=2 * half), dtype=torch.float64) for _ in range(2))
    return scores, margins.abs() - 0.7 * (codes % 2), codes


@pytest.mark.parametrize("wrong", [0.0, 0.03, 0.15, 0.6])
def test_the_loss_is_that_of_the_formula(wrong: float) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        scores, margins, codes = _batch(rng, 50, wrong)
        fpr, cover = slow_figures(scores.tolist(), codes.int().tolist(), 0.1, 0.3, True)
        fpr_before, cover_before = slow_figures(margins.tolist(), codes.int().tolist(), 0.1, 0.3, False)
        expected = fpr + 0.4 * (1 - cover)
        if cover_before > 0:
            expected += 5 * (max(fpr - fpr_before, 0) + max(cover_before - cover, 0))
        assert float(conformal_loss(scores, margins, codes, 0.1, 0.4, 0.3)) == pytest.approx(expected, abs=1e-9)


def test_the_gradient_flows_through_the_row_that_sets_the_cut() -> None:
    """Against the same loss written out with that row's score in it, and only that row of those that calibrate."""
    scores, margins, codes = _batch(np.random.default_rng(4), 60, 0.15)
    scores.requires_grad_()
    [gradient] = torch.autograd.grad(conformal_loss(scores, -margins, codes, 0.1, 0.4, 0.3), scores)
    positive = codes >= 2
    calibrating = torch.nonzero(positive).ravel()[::2]
    cut = slow_cut(scores[calibrating].tolist(), (codes[calibrating] == 3).tolist(), 0.1, True)
    [setter] = [int(i) for i in calibrating if scores[i].item() == cut]
    scored = torch.tensor([i not in calibrating for i in range(len(codes))])
    soft = sigmoid((scores - scores[setter]) / (0.3 * (scores[scored].detach().std() + 1e-6)))
    fpr = soft[~positive & (codes == 1)].sum() / soft[~positive].sum()
    cover = (soft[scored & positive].mean() + soft[~positive].mean()) / 2
    fpr_before, cover_before = soft_figures(-margins, codes, 0.1, 0.3, nearest=False)
    loss = fpr + 0.4 * (1 - cover)
    if cover_before > 0:
        loss = loss + 5 * ((fpr - fpr_before).clamp_min(0) + (cover_before - cover).clamp_min(0))
    [expected] = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, expected)
    moved = set(torch.nonzero(gradient).ravel().tolist()) & set(calibrating.tolist())
    assert moved == {setter} and codes[setter] == 3 and gradient[setter] > 0  # it goes down: the cut loosens


def test_only_the_order_and_the_shape_of_the_scores_count() -> None:
    """Scaling or shifting the scores changes nothing. A batch that may accept everything teaches nothing."""
    scores, margins, codes = _batch(np.random.default_rng(5), 60, 0.1)
    losses = [conformal_loss(s, margins, codes, 0.1, 0.5, 0.2) for s in (scores, 40 * scores - 7)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-4)
    scores.requires_grad_()
    right = torch.where(codes == 3, 2.0, codes)
    [gradient] = torch.autograd.grad(conformal_loss(scores, margins, right, 0.1, 0.5, 0.2), scores)
    assert not gradient.any() and gradient.isfinite().all()


# Its batches and its start.


@pytest.mark.parametrize(("n", "positives", "batch"), [(100, 50, 20), (101, 30, 60), (64, 40, 48), (5, 2, 4)])
def test_every_batch_is_balanced_and_repeats_no_row(n: int, positives: int, batch: int) -> None:
    labels = np.zeros(n, dtype=np.int64)
    labels[np.random.default_rng(0).permutation(n)[:positives]] = 1
    sampler, epochs = BalancedSampler(labels, 3, batch), []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(drawn) == len(sampler) == math.ceil(n / batch) * batch and {e for e, _ in drawn} == {epoch}
        for first in range(0, len(drawn), batch):
            rows = [row for _, row in drawn[first : first + batch]]
            assert len({*rows}) == batch and labels[rows].tolist() == [1, 0] * (batch // 2)
        epochs.append(drawn)
    assert epochs[0] == epochs[2] and [r for _, r in epochs[0]] != [r for _, r in epochs[1]]


def test_a_gate_begins_as_the_margin() -> None:
    """So nearly that the cuts of the first batch are the margin's."""
    inputs = gate_inputs(*_world(0, 500)[:2], 0.2)
    gate = Gate(inputs.shape[1], 32)
    gate.standardise(inputs)
    start_at_margin(gate)
    confidence, margin = gate.confidence(inputs), inputs[:, -1]
    assert np.corrcoef(confidence, margin)[0, 1] > 0.98
    torch.nn.init.zeros_(gate.layers[2].weight[0, 1:])
    exact = gate.confidence(inputs) - gate.layers[2].bias.item()
    np.testing.assert_allclose(exact, margin / inputs[:, -1].std(), rtol=1e-4, atol=1e-4)


# What it learns.


def _world(seed: int, n: int, hint: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, logits and labels of two Gaussians; by `hint` the first feature tells which answers are wrong."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.5).astype(np.int64)
    score = rng.normal(size=n) + np.where(labels == 1, 1.0, -1.0)
    features = rng.normal(size=(n, 4))
    features[:, 0] += hint * ((score > 0) != (labels == 1))
    return features.astype(np.float32), 2 * score, labels


def test_a_hint_beside_the_margin_is_learned_and_certified() -> None:
    """A lower cost on fresh rows than the margin's. Certified as phase 5 does, the share of missed positives among the
    accepted stays within alpha as often as delta says."""
    config = _config(learning_rate=3e-3, num_train_epochs=50)
    features, logits, labels = _world(1, 1200, hint=2.0)
    inputs, wrong = gate_inputs(features, logits, 0.0), ((logits > 0) != (labels == 1)).astype(np.int64)
    targets = gate_targets("conformal", logits, labels, 0.0)
    crossed = cross_fit(inputs, targets, wrong, np.arange(1200), config)
    gate = train_gate(inputs, targets, config)
    fresh, fresh_logits, fresh_labels = _world(2, 40_000, hint=2.0)
    fresh_inputs = gate_inputs(fresh, fresh_logits, 0.0)
    missed = (fresh_logits > 0) != (fresh_labels == 1)
    learned, margin = gate.confidence(fresh_inputs), np.abs(fresh_logits)
    a, b = (figures_at_fnr(confidence, missed, fresh_labels, config.alpha) for confidence in (margin, learned))
    assert b.cost[0] < 0.8 * a.cost[0] and b.abstained[0] < a.abstained[0] - 0.1, (a, b)

    seen, counted = losses_for("fnr", (logits > 0).astype(np.int8), labels)
    broken = certified = 0
    for draw in range(40):
        rows = np.random.default_rng(draw).permutation(20_000)[:1000]
        losses, eligible = losses_for("fnr", (fresh_logits[rows] > 0).astype(np.int8), fresh_labels[rows])
        select = (crossed, seen, counted.astype(float))
        found = fit_risk_control(learned[rows], losses, 0.05, 0.1, eligible, select=select)
        certified += found.feasible
        if found.feasible:
            accepted = (learned[20_000:] > found.threshold) & (fresh_labels[20_000:] == 1)
            broken += missed[20_000:][accepted].mean() > 0.05
    assert certified > 20 and binomtest(broken, 40, 0.1, alternative="greater").pvalue > 0.01


def test_the_gates_of_a_cross_fit_speak_one_scale() -> None:
    """Only the order is trained. Without a fixed median and spread confidences of two gates could not be pooled."""
    features, logits, labels = _world(3, 400)
    inputs, targets = gate_inputs(features, logits, 0.0), gate_targets("conformal", logits, labels, 0.0)
    gate = train_gate(inputs, targets, _config(num_train_epochs=2, per_device_train_batch_size=160))
    confidence = gate.confidence(inputs)
    np.testing.assert_allclose(np.quantile(confidence, 0.5), 0, atol=1e-5)
    np.testing.assert_allclose(np.subtract(*np.quantile(confidence, [0.75, 0.25])), 1, rtol=1e-4)
    with torch.no_grad():
        gate.layers[2].weight.mul_(7)
        gate.layers[2].bias.add_(3)
    set_scale(gate, inputs)
    np.testing.assert_allclose(gate.confidence(inputs), confidence, atol=1e-4)


def test_equal_seeds_make_equal_gates() -> None:
    features, logits, labels = _world(3, 400)
    inputs, targets = gate_inputs(features, logits, 0.0), gate_targets("conformal", logits, labels, 0.0)
    small = {"num_train_epochs": 2, "per_device_train_batch_size": 160}
    one, same, other = (train_gate(inputs, targets, _config(seed=seed, **small)).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


def test_label_and_error_come_back_from_the_code() -> None:
    labels, right = np.array([0, 0, 1, 1]), np.array([True, False, True, False])
    assert conformal_codes(labels, right).tolist() == [0, 1, 2, 3]
    logits = np.array([-1.0, 0.5, 0.6, 0.5])
    assert gate_targets("conformal", logits, labels, 0.5).tolist() == [0, 0, 2, 3]  # the answer at 0.5 itself is no
    assert gate_targets("conformal", logits, labels, 0.4).tolist() == [0, 1, 2, 2]


# What cannot be.


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ({"alpha": 0.0}, ("phase3.alpha", 0.0)), ({"alpha": 1.0}, ("phase3.alpha", 1.0)),
        ({"abstention_cost": 0.0}, ("phase3.abstention_cost", 0.0)), ({"softness": -1.0}, ("phase3.softness", -1.0)),
        ({"per_device_train_batch_size": 152}, ("phase3.per_device_train_batch_size", 152, 154, 39, 0.025)),
        ({"per_device_train_batch_size": 201}, ("phase3.per_device_train_batch_size", 201, "even")),
        ({"alpha": 0.02, "per_device_train_batch_size": 192}, ("phase3.per_device_train_batch_size", 192, 194, 49)),
        ({"method": "correctness", "alpha": 0.1}, ("phase3.alpha", 0.1, 0.025, "conformal")),
        ({"method": "confidnet", "softness": 0.5}, ("phase3.softness", 0.5, 0.2, "conformal")),
        ({"method": "correctness", "abstention_cost": 1.0}, ("phase3.abstention_cost", 1.0, 0.5, "conformal")),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], facts: tuple[Any, ...]) -> None:
    refused(RecipeError, lambda: _config(**given), *facts)


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1, 0.5, 0.9])
def test_the_least_batch_holds_the_least_positives(alpha: float) -> None:
    """The sampler's batches, of which every other positive calibrates."""
    least = next(size for size in range(2, 999, 2) if _accepts(alpha, size))
    config = _config(alpha=alpha, per_device_train_batch_size=least)
    rows = [row for _, row in BalancedSampler(np.tile([0, 1], 300), 0, least)][:least]
    assert config.calibrates == len([row for row in rows if row % 2 == 1][::2]) >= least_positives(alpha)
    assert least == 4 or least // 4 < least_positives(alpha)


def _accepts(alpha: float, batch: int) -> bool:
    try:
        _config(alpha=alpha, per_device_train_batch_size=batch)
    except RecipeError:
        return False
    return True


def test_a_batch_of_another_size_is_refused() -> None:
    """As accelerate makes them with split_batches on several devices, and Trainer where memory runs out."""
    batch = {"features": torch.zeros(128, 3), "labels": torch.zeros(128)}
    trainer: Any = SimpleNamespace(config=_config())
    refused(RunError, lambda: ConformalTrainer.compute_loss(trainer, Gate(3, 2), batch), 128, 256, "split_batches")


def test_too_few_rows_of_a_label_are_said() -> None:
    """Those outside a fold: each of the two folds leaves about half of the 200 positives."""
    labels = np.repeat([1, 0, 0], 200)
    wrong, groups = (np.arange(600) % 5 == 0).astype(np.int64), np.arange(600)
    reason = too_few_rows(labels, wrong, groups, _config())
    assert tells(reason, "label 1", 128, "phase3.per_device_train_batch_size", 256, "phase3.folds")
    assert too_few_rows(labels, wrong, groups, _config(per_device_train_batch_size=160)) == ""
    assert too_few_rows(labels, wrong, groups, _config(method="correctness")) == ""
