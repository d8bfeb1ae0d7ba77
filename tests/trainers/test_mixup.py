"""Mixup against a slow reference, and that nothing but (seed, step, number of the batch) decides its draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors.torch import load_file
from stages import killed_after, striped_data, train_stage
from test_levers import MODEL, largest_difference
from torch import nn
from transformers import TrainingArguments

from natix_hf.data.rows import ImageData
from natix_hf.errors import RecipeError
from natix_hf.recipe import parse_recipe
from natix_hf.trainers.loss import draw_mixture
from natix_hf.trainers.roadwork import RoadworkTrainer


class Linear(nn.Module):
    """A model whose logits can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.layer(pixel_values), "penalty": torch.tensor(0.25)}


def linear_trainer(folder: Path, **given: Any) -> RoadworkTrainer:
    smoothing = given.pop("label_smoothing_factor", 0.0)
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, seed=7, label_smoothing_factor=smoothing)
    rows = [{"pixel_values": torch.zeros(5), "labels": 0}] * 4
    return RoadworkTrainer(Linear(), args, rows, None, quiet=True, **given)


@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0.0), ([0.4, 1.6], 0.2)])
def test_the_loss_against_a_slow_reference(weights: list[float] | None, smoothing: float, tmp_path: Path) -> None:
    """Two batches of a step: each with its own draw, from (seed, step, number of the batch)."""
    trainer = linear_trainer(tmp_path, mixup=0.4, class_weights=weights, label_smoothing_factor=smoothing)
    trainer.state.global_step, trainer._batch_of_step = 11, 0
    model = trainer.model
    assert isinstance(model, Linear)
    weight, bias = model.layer.weight.detach().double().numpy(), model.layer.bias.detach().double().numpy()
    rng = np.random.default_rng(1)
    for number in (0, 1):
        pixels, labels = rng.normal(size=(6, 5)), rng.integers(0, 2, 6)
        batch = {"pixel_values": torch.tensor(pixels, dtype=torch.float32), "labels": torch.tensor(labels)}
        model.train()
        loss = trainer.compute_loss(model, dict(batch)).item()
        drawn = np.random.default_rng([7, 11, number, 2])
        share, order = drawn.beta(0.4, 0.4), drawn.permutation(6)
        expected = 0.25
        for i in range(6):
            mixed = share * pixels[i] + (1 - share) * pixels[order[i]]
            logits = weight @ mixed + bias
            log_p = logits - np.log(np.exp(logits).sum())
            for part, label in ((share, labels[i]), (1 - share, labels[order[i]])):
                target = np.full(2, smoothing / 2)
                target[label] += 1 - smoothing
                expected += part * (weights[label] if weights else 1) * -(target @ log_p) / 6
        assert loss == pytest.approx(expected, rel=1e-5)
        plain = linear_trainer(tmp_path, class_weights=weights, label_smoothing_factor=smoothing)
        model.eval()
        assert float(trainer.compute_loss(model, dict(batch))) == float(plain.compute_loss(model, dict(batch)))


def test_the_draws_are_those_of_the_paper() -> None:
    """Shares from a symmetric Beta: mean 1/2 and variance 1 / (4 (2 alpha + 1)); partners are a permutation."""
    drawn = [draw_mixture(0.2, 8, (3, step, 0), torch.device("cpu")) for step in range(2000)]
    shares = np.array([one.share for one in drawn])
    assert abs(shares.mean() - 0.5) < 0.04 and abs(shares.var() / (1 / (4 * 1.4)) - 1) < 0.1
    assert all(sorted(one.order.tolist()) == list(range(8)) for one in drawn)
    assert len({tuple(one.order.tolist()) for one in drawn}) > 1500
    whole = torch.arange(8)
    assert drawn[0].of(whole) is whole, "numbers of rows are not mixed"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return striped_data(tmp_path_factory)


SECTION: dict[str, Any] = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
           "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": False,
           "mixup": 0.3}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "full": {"ema_decay": 0.5, "label_smoothing_factor": 0.1}, "none": {"feature_views": 2},
    "adalora": {"label_smoothing_factor": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("adapter", CASES)
def test_a_resumed_training_is_bit_equal_and_mixup_changes_it(
    adapter: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accumulation, an average, an adapter with a penalty, and on features. The global generators are disturbed
    on the way, so a draw from them would show."""
    section = SECTION | CASES[adapter]

    def weights(name: str, **changes: Any) -> dict[str, torch.Tensor]:
        train_stage(data, tmp_path / name, MODEL, adapter, **(section | changes))
        return load_file(tmp_path / name / "model" / "model.safetensors")

    whole = weights("whole")
    with killed_after(5, monkeypatch):
        weights("cut")
    np.random.seed(5)
    np.random.rand(3)
    assert largest_difference(whole, weights("cut")) == 0
    assert largest_difference(whole, weights("plain", mixup=None)) > 1e-5
    assert largest_difference(whole, weights("other", mixup=30.0)) > 1e-5


@pytest.mark.parametrize("value", [0, -1, 1e9, float("nan")])
def test_what_is_no_alpha_is_refused(value: float, tmp_path: Path) -> None:
    refused(RecipeError, lambda: linear_trainer(tmp_path, mixup=value), "RoadworkTrainer.mixup", value)


def test_a_row_is_not_mixed_with_itself(tmp_path: Path) -> None:
    """Batches of one row would train as without mixup."""
    alone, facts = {"mixup": 0.2, "per_device_train_batch_size": 1}, ("mixup", 0.2, "per_device_train_batch_size")
    for section in (alone, alone | {"gradient_accumulation_steps": 64}):
        refused(RecipeError, lambda section=section: parse_recipe({"phase1": section}), *facts)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=1)
    refused(RecipeError, lambda: RoadworkTrainer(Linear(), args, [], None, mixup=0.2), "RoadworkTrainer", *facts)
