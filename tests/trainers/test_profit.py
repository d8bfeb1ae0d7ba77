"""PROFIT against a slow loop in float64; its starts, its refusals, resume, accumulation and several ranks."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_RECIPE, write_recipe
from ranks import launch
from refusals import refused
from safetensors.torch import load_file, save_file
from stages import QUICK, killed_after, save_in, striped_data
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from natix_hf.bundle.policy import read_policy
from natix_hf.data.asked import ask
from natix_hf.data.config import AugmentConfig
from natix_hf.data.rows import ImageData
from natix_hf.data.sampler import EpochSampler
from natix_hf.errors import RecipeError, UsageError
from natix_hf.estimate.work import rows_a_step, steps_of
from natix_hf.labels import stored_names
from natix_hf.models.adapters import ADAPTERS, add_adapter
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.pipeline import run_recipe
from natix_hf.preflight import check_trainings
from natix_hf.provenance.files import file_sha256, read_json
from natix_hf.recipe import parse_recipe
from natix_hf.resources import resource_folder
from natix_hf.runs.graph import PHASES
from natix_hf.trainers import profit
from natix_hf.trainers.converged import start_of_training
from natix_hf.trainers.profit import divide_batches
from natix_hf.trainers.profit_config import START_ELSEWHERE
from natix_hf.trainers.roadwork import RoadworkTrainer
from natix_hf.trainers.supervised import train_classifier

MODEL = ModelConfig(config=TINY["vit"] | {"initializer_range": 0.2}, image_size=28)


def trained(config: ModelConfig = MODEL) -> Any:
    """A classifier whose head is no fresh one."""
    model = build_classifier(config, seed=0)
    torch.nn.init.normal_(model.classifier.bias, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained classifier."""
    folder = tmp_path_factory.mktemp("start") / "model"
    trained().save_pretrained(folder)
    return folder


class Keyed(Dataset[Any]):
    """27 noisy rows, by (epoch, row) as the sampler asks for them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.labels = torch.arange(27) % 2
        self.pictures = torch.randn(27, 3, 28, 28, generator=generator) + self.labels[:, None, None, None]

    def __len__(self) -> int:
        return 27

    def __getitem__(self, key: Any) -> dict[str, Any]:
        row = key[1] if isinstance(key, tuple) else key
        return {"pixel_values": self.pictures[row], "labels": int(self.labels[row])}


def by_hand(
    model: Any,
    rows: Keyed,
    steps: int,
    accumulated: int,
    reference_steps: int,
    rates: tuple[float, float],
    sign: int = 1,
) -> tuple[dict[str, Any], int]:
    """The weights after so many steps of PROFIT around SGD with a linear schedule and clipping, all in float64, and
    in how many of them a part of the gradient was left out."""
    model = copy.deepcopy(model).double().train()
    sampler, projected, done, epoch = EpochSampler(rows.labels.numpy(), seed=7), 0, 0, 0

    def gradient(weights: dict[str, Any], batch: list[int]) -> dict[str, Any]:
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        out = torch.func.functional_call(model, leaves, kwargs={"pixel_values": rows.pictures[batch].double()})
        found = torch.autograd.grad(cross_entropy(out.logits, rows.labels[batch]), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    while done < steps:
        sampler.set_epoch(epoch)
        order = [row for _, row in sampler]
        batches = [order[at : at + 4] for at in range(0, 27, 4)]
        group = accumulated * (reference_steps + 1)
        for at in range(0, len(batches), group):
            chunk = batches[at : at + group]
            own, before = chunk[-accumulated:], chunk[:-accumulated]
            parts = []
            while before:
                parts.insert(0, before[-accumulated:])
                before = before[:-accumulated]
            moved = dict(weights)
            for part in parts:
                gradients = [gradient(moved, batch) for batch in part]
                for name in moved:
                    moved[name] = moved[name] - rates[1] * sum(g[name] for g in gradients) / len(gradients)
            delta = {name: sign * (moved[name] - weights[name]) for name in moved}
            gradients = [gradient(moved, batch) for batch in own]
            g = {name: sum(one[name] for one in gradients) / len(gradients) for name in moved}
            dot = sum(float((delta[name] * g[name]).sum()) for name in g)
            if dot < 0:
                projected += 1
                square = sum(float((value**2).sum()) for value in delta.values())
                g = {name: value - dot / square * delta[name] for name, value in g.items()}
            norm = sum(float((value**2).sum()) for value in g.values()) ** 0.5
            rate = rates[0] * (1 - done / steps) * min(1.0, 0.5 / (norm + 1e-6))
            weights = {name: value - rate * g[name] for name, value in weights.items()}
            done += 1
            if done == steps:
                break
        epoch += 1
    return weights, projected


@pytest.mark.parametrize(("accumulated", "reference_steps"), [(1, 1), (1, 2), (2, 1)])
def test_twenty_steps_are_those_of_the_slow_loop(accumulated: int, reference_steps: int, tmp_path: Path) -> None:
    """Epochs of 7 batches, so that the last step of each lacks reference steps, or some of their batches."""
    rows, model = Keyed(), trained()
    rates = (0.05, 0.005)
    expected, projected = by_hand(model, rows, 20, accumulated, reference_steps, rates)
    other, _ = by_hand(model, rows, 20, accumulated, reference_steps, rates, sign=-1)
    args = {
        "output_dir": str(tmp_path), "optim": "sgd", "learning_rate": rates[0], "lr_scheduler_type": "linear",
        "warmup_steps": 0, "weight_decay": 0, "max_grad_norm": 0.5, "max_steps": 20, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": accumulated, "dataloader_num_workers": 0, "logging_steps": 1,
    }  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    read = [row for _, row in EpochSampler(rows.labels.numpy(), seed=7)][: 4 * accumulated * (reference_steps + 1)]
    with torch.no_grad():
        first_loss = float(cross_entropy(model(pixel_values=rows.pictures[read]).logits, rows.labels[read]))
    trainer = RoadworkTrainer(
        model, args, rows, profit={"reference_steps": reference_steps, "reference_learning_rate": rates[1]},
        train_sampler=EpochSampler(rows.labels.numpy(), seed=7), quiet=True,
    )  # fmt: skip
    trainer.train()
    assert trainer.projected == projected and 10 <= projected
    assert trainer.state.global_step == 20
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach().double(), expected[name], rtol=1e-4, atol=2e-5, msg=name)
    for reference in (other, before):
        far = max(float((reference[name] - expected[name]).abs().max()) for name in before)
        assert far > 5e-4, "with the other sign it would be another training"
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 20 and losses[0] == pytest.approx(first_loss, rel=0.02), "the mean over all batches"


def test_the_parts_of_a_step() -> None:
    assert divide_batches(4, 2) == [2, 2] and divide_batches(3, 2) == [1, 2] and divide_batches(2, 2) == [2]
    assert divide_batches(1, 2) == [1] and divide_batches(3, 1) == [1, 1, 1]


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_an_adapter_that_is_allowed_begins_at_the_model(adapter: str) -> None:
    model = build_classifier(ModelConfig(config=TINY["dinov2"] | {"initializer_range": 0.2}, image_size=28), 0).eval()
    pictures = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    before = model(pixel_values=pictures).logits.detach()
    after = add_adapter(model, adapter, {}, 10, 0).eval()(pixel_values=pictures).logits.detach()
    assert (float((after - before).abs().max()) < 1e-5) == (adapter not in START_ELSEWHERE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return striped_data(tmp_path_factory)


def stage(data: ImageData, start: Path, folder: Path, adapter: str, **section: Any) -> dict[str, Any]:
    """Phase 1's training with PROFIT from a trained classifier. Leaves `folder/model`."""
    model = ModelConfig(backbone=str(start), image_size=28)
    given = QUICK | {"adapter": adapter, "profit": {}, "per_device_train_batch_size": 8} | section
    return train_classifier(
        build_classifier(model, seed=0, keep_head=True), make_processor(model), data.role("train"),
        ask(data.role("val_select")), parse_recipe({"phase1": given}).phase1, AugmentConfig(), None,
        folder / "checkpoints", save_in(folder / "model"),
    )  # fmt: skip


@pytest.mark.parametrize("adapter", ["full", "lora", "adalora"])
def test_a_resumed_training_is_bit_equal(
    adapter: str, data: ImageData, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section: dict[str, Any] = {
        "profit": {"reference_steps": 2}, "ema_decay": 0.9, "load_best_model_at_end": False, "layer_decay": 0.8,
        "save_strategy": "steps", "save_steps": 2, "max_steps": 7,
    }  # fmt: skip
    whole = stage(data, start, tmp_path / "whole", adapter, **section)
    with killed_after(5, monkeypatch):
        stage(data, start, tmp_path / "cut", adapter, **section)
    cut = stage(data, start, tmp_path / "cut", adapter, **section)
    plain = stage(data, start, tmp_path / "plain", adapter, **section | {"profit": None})
    assert (whole["resumed_from"], cut["resumed_from"]) == (None, "checkpoint-4")
    one, other, third = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut", "plain")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], third[name]) for name in one)
    logs = [[(row["step"], row["loss"]) for row in facts["history"] if "loss" in row] for facts in (whole, cut)]
    assert logs[0] == logs[1]
    assert "2 at 5e-05" in whole["card"]["settings"]["PROFIT"] and "PROFIT" not in plain["card"]["settings"]


def test_steps_epochs_and_estimates_count_the_batches_of_the_reference_steps(
    data: ImageData, start: Path, tmp_path: Path
) -> None:
    rows, section = len(data.role("train")), {"profit": {"reference_steps": 2}, "gradient_accumulation_steps": 2}
    facts = stage(data, start, tmp_path, "full", **section, num_train_epochs=2)
    config = parse_recipe({"phase1": QUICK | section | {"per_device_train_batch_size": 8}}).phase1
    assert rows == 72 and facts["steps"] == steps_of(config, rows, 1) == 4 and rows_a_step(config, 1) == 48
    assert facts["history"][-1]["epoch"] == 2 and facts["pace"]["rows_a_step"] == 48
    assert config.plain()["training"]["gradient_accumulation_steps"] == 2, "the manifest has what was asked for"
    assert parse_recipe({"phase1": config.mapping()}).phase1 == config


def test_an_epoch_shorter_than_a_step_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """27 rows. With one batch an epoch every step would be a plain one, with two it makes one reference step."""
    told: list[str] = []
    monkeypatch.setattr(profit, "tell", lambda line, hang=0: told.append(line))
    for rows, lines in ((27, ["1 batches", "0 of 3"]), (14, ["2 batches", "1 of 3"]), (7, [])):
        args = {"output_dir": str(tmp_path / str(rows)), "per_device_train_batch_size": rows, "max_steps": 2,
                "dataloader_num_workers": 0, "save_strategy": "no"}  # fmt: skip
        for quiet in (True, False):
            told.clear()
            RoadworkTrainer(trained(), args, Keyed(), profit={"reference_steps": 3}, quiet=quiet).train()
            assert len(told) == (bool(lines) and not quiet) and all(fact in told[0] for fact in lines if told)


def test_fp16_gradients_are_unscaled_and_an_overflow_moves_nothing(tmp_path: Path) -> None:
    trainer: Any = RoadworkTrainer(trained(), {"output_dir": str(tmp_path), "learning_rate": 0.1}, Keyed(), profit={})
    parameters = trainer._trained()
    trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: 64.0)
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.full_like(p, 64.0)
    parameters[0].grad = None
    trainer._reference_step()
    assert torch.equal(parameters[0], before[0]) and all(p.grad is None for p in parameters)
    assert all(torch.allclose(p, old - 0.001) for p, old in zip(parameters[1:], before[1:], strict=True))
    moved = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.full_like(p, torch.inf)
    trainer._reference_step()
    assert all(torch.equal(p, old) for p, old in zip(parameters, moved, strict=True))
    for p in parameters:
        p.grad = torch.full_like(p, 1.0)
    trainer._project()
    trainer._return()
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    assert trainer.projected == 1 and float(parameters[1].grad.abs().max()) < 1e-6


@pytest.mark.parametrize("named", ["run", "bundle"])
def test_a_finished_run_goes_on_with_its_own_head(
    named: str, finished_run: Path, parquet_source: Path, tmp_path: Path
) -> None:
    bundle = finished_run / PHASES[6].folder / "bundle"
    content = TINY_RECIPE | {
        "data": TINY_RECIPE["data"] | {"source": str(parquet_source)},
        "model": {"backbone": str(finished_run if named == "run" else bundle), "image_size": 28},
        "phase1": TINY_RECIPE["phase1"] | {"learning_rate": 1e-7, "max_steps": 2, "profit": {}},
    }
    run = run_recipe(str(write_recipe(tmp_path / "on.yaml", content)), [1], tmp_path / "run")
    policy = read_policy(bundle / "policy.json")
    assert abs(policy.folded_shift) > 1e-4, "the threshold is in the bundle's head"
    [candidate] = [folder for folder in finished_run.glob("phase*/model")
                   if file_sha256(folder / "model.safetensors") == policy.candidate_sha256]  # fmt: skip
    learned = run / "phase1_baseline" / "model"
    before, after = (load_file(folder / "model.safetensors") for folder in (candidate, learned))
    assert all(0 <= float((after[name] - before[name]).abs().max()) < 1e-6 for name in before)
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"]), "it was trained"
    manifest = read_json(run / "phase1_baseline" / "manifest.json")
    assert manifest["section"]["phase1"]["profit"] == {"reference_steps": 1, "reference_learning_rate": None}
    assert manifest["section"]["model"]["backbone"] == str(bundle), "a run stands for its bundle"


def test_a_policy_of_other_weights_is_no_start(finished_run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(finished_run / PHASES[6].folder / "bundle", bundle)
    weights = load_file(bundle / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, bundle / "model.safetensors", metadata={"format": "pt"})
    config, labels = ModelConfig(backbone=str(bundle), image_size=28), stored_names(bundle)
    refused(UsageError, lambda: start_of_training(config, 0, labels, keep_head=True), "other weights", bundle)
    (bundle / "policy.json").unlink()
    assert start_of_training(config, 0, labels, keep_head=True), "a plain classifier"


@pytest.mark.xdist_group("ranks")  # which are forked from one process
def test_two_ranks_and_small_batches_are_one_training(start: Path, parquet_source: Path, tmp_path: Path) -> None:
    training = {"learning_rate": 1e-4, "max_steps": 6, "logging_steps": 1, "profit": {"reference_steps": 2}}
    training |= {"dataloader_drop_last": True}
    content = TINY_RECIPE | {
        "data": TINY_RECIPE["data"] | {"source": str(parquet_source)},
        "model": {"backbone": str(start), "image_size": 28},
        "phase1": TINY_RECIPE["phase1"] | training,
    }
    recipe = write_recipe(tmp_path / "ranks.yaml", content)
    runs = {}
    for name, size, accumulated in (("whole", 8, 1), ("small", 2, 4)):
        settings = [f"phase1.per_device_train_batch_size={size}", f"phase1.gradient_accumulation_steps={accumulated}"]
        runs[name] = run_recipe(str(recipe), [1], tmp_path / name, overrides=settings)
    settings = ["--recipe", str(recipe), "--run-dir", str(tmp_path / "two"), "phase1.per_device_train_batch_size=4"]
    done = launch("cpu_2proc.yaml", resource_folder("recipes") / "phase1.py", tmp_path, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    runs["two"] = tmp_path / "two"
    found = {}
    for name, run in runs.items():
        losses = [row["loss"] for row in read_json(run / "phase1_baseline" / "history.json") if "loss" in row]
        weights = load_file(run / "phase1_baseline" / "model" / "model.safetensors")
        found[name] = np.array(losses), {key: value for key, value in weights.items() if "key" not in key}
    assert read_json(runs["two"] / "phase1_baseline" / "manifest.json")["metrics"]["world_size"] == 2
    for name in ("small", "two"):
        assert len(found[name][0]) == 6
        np.testing.assert_allclose(found[name][0], found["whole"][0], atol=1e-5)
        for key, value in found["whole"][1].items():
            torch.testing.assert_close(found[name][1][key], value, rtol=0, atol=2e-5, msg=f"{name} {key}")


@pytest.mark.parametrize(("section", "facts"), [
    ({"profit": {"reference_steps": 0}}, ("phase1.profit.reference_steps", "0")),
    ({"profit": {"reference_learning_rate": 1e-3}},
     ("phase1.profit.reference_learning_rate", "0.001", "5e-08", "5e-05")),
    ({"profit": {"reference_learning_rate": 1e-9}}, ("phase1.profit.reference_learning_rate", "1e-09")),
    ({"profit": {"steps": 1}}, ("phase1.profit.steps",)),
    ({"profit": True}, ("phase1.profit",)),
    ({"profit": {}, "adapter": "none"}, ("phase1.profit", "adapter none")),
    ({"profit": {}, "adapter": "auto"}, ("phase1.profit", "name an adapter")),
    ({"profit": {}, "adapter": "vblora"}, ("phase1.profit", "vblora", "begins")),
    ({"profit": {}, "adapter": "lora", "adapter_options": {"init_lora_weights": False}},
     ("phase1.profit", "init_lora_weights")),
    ({"profit": {}, "folds": 3}, ("phase1.profit", "folds")),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")  # fmt: skip
def test_what_cannot_be_is_refused(section: dict[str, Any], facts: tuple[str, ...]) -> None:
    refused(RecipeError, lambda: parse_recipe({"phase1": {"learning_rate": 5e-4} | section}), *facts)


def test_only_a_trained_classifier_is_continued(start: Path, pretrained: Path, tmp_path: Path) -> None:
    """Before any work where the files say it, and from Python."""
    def check(phases: list[int], model: dict[str, Any], **content: Any) -> Any:
        recipe = parse_recipe({"model": {"image_size": 28} | model, "phase1": {"profit": {}}} | content)
        return lambda: check_trainings(recipe, [PHASES[number] for number in phases], None)

    def trainer(model: Any, **given: Any) -> Any:
        args = given.pop("args", {"output_dir": str(tmp_path), "dataloader_num_workers": 0})
        return lambda: RoadworkTrainer(model, args, Keyed(), profit={}, **given)

    check([1], {"backbone": str(start)})()
    check([2], {"backbone": str(pretrained)})()
    refused(UsageError, check([1], {"backbone": str(pretrained)}), "profit", pretrained, "finished run")
    refused(UsageError, check([1], {"config": TINY["vit"]}), "profit", "model.backbone is null")
    labels = {"labels": {"no": "Roadwork", "yes": "None"}}
    refused(UsageError, check([1], {"backbone": str(start)}, data=labels), "data.labels", "None and Roadwork")
    refused(RecipeError, check([4], {"backbone": str(start)}), "phase1.profit", "phase4.supervised")
    check([4], {"backbone": str(start)}, phase4={"supervised": {}})()
    refused(RecipeError, lambda: parse_recipe({"phase4": {"supervised": {"profit": {}}}}), "phase4.supervised.profit")

    build_classifier(MODEL, seed=0).save_pretrained(tmp_path / "fresh")
    refused(UsageError, trainer(str(tmp_path / "fresh")), "profit", "initialised")
    refused(UsageError, trainer(build_classifier(MODEL, seed=0)), "profit", "initialised")
    refused(UsageError, trainer(str(pretrained)), "profit", pretrained)
    from transformers import TrainingArguments

    own = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    refused(UsageError, trainer(trained(), args=own), "gradient_accumulation_steps is 1", "multiple of 2")
    kept = trainer(str(start))()
    assert torch.equal(kept.model.classifier.weight, trained().classifier.weight)
    assert kept.model.config.id2label == {0: "None", 1: "Roadwork"}
    assert kept.args.gradient_accumulation_steps == 2
