"""The supervised stage with an adapter: resumed it is what it would have been; the average is what is merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Killed, kill_at
from safetensors.torch import load_file, save_file
from stages import striped_data, train_stage
from transformers import AutoModelForImageClassification, TrainerCallback
from transformers.models.dinov2.modeling_dinov2 import Dinov2MLP

from natix_hf.data.asked import ask
from natix_hf.data.rows import ImageData
from natix_hf.data.views import AskedViews
from natix_hf.errors import MergeMismatchError
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.trainers import stage
from natix_hf.trainers.adalora import _MEMORY as MEMORY
from natix_hf.trainers.adalora import ALLOCATOR
from natix_hf.trainers.merge_validation import UNMERGED
from natix_hf.trainers.roadwork import RoadworkTrainer

MODEL = ModelConfig(config=TINY["dinov2"] | {"initializer_range": 0.2}, image_size=28)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return striped_data(tmp_path_factory)


def _train(data: ImageData, folder: Path, adapter: str, save: Any = None, **section: Any) -> dict[str, Any]:
    return train_stage(data, folder, MODEL, adapter, save, **section)


def _with(monkeypatch: pytest.MonkeyPatch, callback: TrainerCallback) -> None:
    original = RoadworkTrainer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.add_callback(callback)

    monkeypatch.setattr(RoadworkTrainer, "__init__", init)


@pytest.mark.parametrize(
    ("adapter", "section"),
    [("lora", {}), ("dora", {}), ("adalora", {}), ("vera", {}), ("adalora", {"ema_decay": 0.9}),
     ("adalora", {"adapter_options": {"tfinal": 5}}), ("doran", {"ema_decay": 0.9})],
)  # fmt: skip
def test_resumed_equals_uninterrupted_bit_by_bit(
    adapter: str, section: dict[str, Any], data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second epoch, while AdaLoRA's budget falls; with tfinal, after it has stopped falling."""
    section = section | {"load_best_model_at_end": False}  # else both could keep an epoch from before the kill
    whole = _train(data, tmp_path / "whole", adapter, **section)
    assert whole["merge"]["max_difference"] <= 1e-4 and whole["merge"]["adapter_effect"] > 0
    assert whole["adapted_modules"][0] == "dinov2.encoder.layer.0.attention.q_proj"
    with monkeypatch.context() as patch:
        _with(patch, kill_at(8))
        with pytest.raises(Killed):
            _train(data, tmp_path / "cut", adapter, **section)
    [checkpoint] = (tmp_path / "cut" / "checkpoints").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-5" and whole["steps"] == 10
    assert (checkpoint / ALLOCATOR).exists() == (adapter == "adalora")
    if adapter == "adalora":  # after the budget has fallen PEFT forgets its averages
        kinds = {key.partition(":")[0] for key in load_file(checkpoint / ALLOCATOR)}
        assert kinds == {"rank_pattern"} | (set() if "adapter_options" in section else {*MEMORY})
    assert all("lora" in n or "vera" in n or "classifier" in n for n in load_file(checkpoint / "model.safetensors"))
    resumed = _train(data, tmp_path / "cut", adapter, **section)
    assert resumed["resumed_from"] == checkpoint.name
    assert _numbers(resumed) == _numbers(whole)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    AutoModelForImageClassification.from_pretrained(tmp_path / "whole" / "model")


def _numbers(report: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("step", "loss", "grad_norm", "learning_rate", "eval_mcc", "eval_auroc", "eval_nll")
    return [{key: row[key] for key in keys if key in row} for row in report["history"]]


def test_a_checkpoint_holds_what_is_trained_and_no_more(data: ImageData, tmp_path: Path) -> None:
    report = _train(data, tmp_path, "lora", num_train_epochs=1)
    [checkpoint] = (tmp_path / "checkpoints").glob("checkpoint-*")
    stored = load_file(checkpoint / "model.safetensors")
    assert sum(value.numel() for value in stored.values()) == report["trainable_parameters"]
    # r 8 on q and v of two blocks, width 32, and the layer that sees cls token and mean patch
    assert report["trainable_parameters"] == 2 * 2 * 2 * 8 * 32 + (2 * 32 * 2 + 2)
    assert {name.partition("classifier.")[2] for name in stored if "lora_" not in name} == {"weight", "bias"}
    assert not list(checkpoint.glob("adapter_*"))


@pytest.mark.parametrize("adapter", ["lora", "dora", "adalora", "doran"])
def test_what_it_leaves_is_a_plain_model(adapter: str, data: ImageData, tmp_path: Path) -> None:
    report = _train(data, tmp_path, adapter)
    assert report["merge"]["max_difference"] <= 1e-4 and report["merge"]["adapter_effect"] > 1e-4
    assert report["merge"]["merged_layers"] == len(report["adapted_modules"]) == 4
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    stored, info = AutoModelForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(stored).__name__ == "Dinov2ForImageClassification" and not any(info.values())
    start = build_classifier(MODEL, seed=0).state_dict()
    moved = {name for name, value in stored.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {f"{name}.weight" for name in report["adapted_modules"]} | {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    "section",
    [{"gradient_accumulation_steps": 3}, {"num_train_epochs": 1.5}, {"max_steps": 7},
     {"dataloader_drop_last": True, "per_device_train_batch_size": 20, "gradient_accumulation_steps": 2}],
)  # fmt: skip
def test_the_budget_follows_the_steps_that_are_taken(
    section: dict[str, Any], data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []
    add = stage.add_adapter

    def look(model: Any, name: str, options: Any, total_steps: int, *rest: Any) -> Any:
        planned.append(total_steps)
        return add(model, name, options, total_steps, *rest)

    monkeypatch.setattr(stage, "add_adapter", look)
    assert [_train(data, tmp_path, "adalora", **section)["steps"]] == planned


def test_a_failed_proof_fails_the_training_and_keeps_the_weights(data: ImageData, tmp_path: Path) -> None:
    def save(merged: Any) -> Path:
        merged.save_pretrained(tmp_path / "model")
        state = load_file(tmp_path / "model" / "model.safetensors")
        state["classifier.weight"].neg_()
        save_file(state, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
        return tmp_path / "model"

    with pytest.raises(MergeMismatchError, match=r"classifier\.weight"):
        _train(data, tmp_path, "lora", save=save, num_train_epochs=1)
    [checkpoint] = (tmp_path / "checkpoints").glob("checkpoint-*")
    kept, trained = load_file(tmp_path / "checkpoints" / UNMERGED), load_file(checkpoint / "model.safetensors")
    assert {f"model.{name}" for name in kept} == trained.keys()
    assert all(torch.equal(kept[name], trained[f"model.{name}"]) for name in kept)  # of the one, best epoch


def test_the_budget_of_adalora_falls_and_its_penalty_counts(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks: list[int] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            factors = [p for n, p in kwargs["model"].named_parameters() if "lora_E" in n]
            ranks.append(sum(int((p != 0).sum()) for p in factors))

    with monkeypatch.context() as patch:
        _with(patch, Look())
        with_penalty = _train(data, tmp_path / "a", "adalora")
    assert ranks[-1] == 4 * 8 < max(ranks) <= 4 * 12  # q and v of two blocks, from init_r 12 to target_r 8
    without = _train(data, tmp_path / "b", "adalora", adapter_options={"orth_reg_weight": 1e-9})
    losses = [next(row["loss"] for row in report["history"] if "loss" in row) for report in (with_penalty, without)]
    assert losses[0] > losses[1] + 0.1


def test_the_average_of_the_weights_is_what_is_merged(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averages: list[dict[str, torch.Tensor]] = []

    class Look(TrainerCallback):  # added before the proof, after the average
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            averages.append({n: p.detach().clone() for n, p in kwargs["model"].named_parameters()})

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            averages[:] = [{n: p.detach().clone() for n, p in kwargs["model"].named_parameters()}]

    _with(monkeypatch, Look())
    _train(data, tmp_path, "lora", ema_decay=0.99, load_best_model_at_end=False)
    last_step, average = averages
    stored = AutoModelForImageClassification.from_pretrained(tmp_path / "model").classifier.weight
    name = "model.base_model.model.classifier.weight"
    assert torch.equal(stored, average[name]) and not torch.equal(stored, last_step[name])


def test_the_proof_sees_rows_of_both_classes(data: ImageData) -> None:
    """Rows are sorted by class: the first ones would all be of one."""
    rows = data.role("val_select")
    assert list(rows.labels) == sorted(rows.labels) and len(set(rows.labels[:2])) == 1
    views = AskedViews(ask(rows), Preprocess(make_processor(MODEL)))
    first, last = stage.first_images(views, most=2)
    assert torch.equal(first, views[0]["pixel_values"])
    assert torch.equal(last, views[len(rows) - 1]["pixel_values"])
    assert len(stage.first_images(views)) == min(32, len(rows))


def test_activation_checkpointing_changes_no_number(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is really on: what is inside a block runs again. To replace the block's own forward would switch it off."""
    losses, runs = [], [0, 0]
    forward = Dinov2MLP.forward

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs[len(losses)] += self.training
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Dinov2MLP, "forward", count)
    for on in (False, True):
        report = _train(data, tmp_path / str(on), "lora", activation_checkpointing=on, num_train_epochs=1)
        losses.append([row["loss"] for row in report["history"] if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert runs[1] == 2 * runs[0] > 0
