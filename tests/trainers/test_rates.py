"""Rates by depth, against a table of names of this file, on every architecture; and what may not change them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import TINY
from refusals import refused
from safetensors.torch import load_file
from stages import killed_after, striped_data, train_stage
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForImageClassification

from natix_hf.data.rows import ImageData
from natix_hf.errors import RecipeError, UsageError
from natix_hf.models.adapters import add_adapter
from natix_hf.models.config import ModelConfig
from natix_hf.models.tuner import Adapted
from natix_hf.recipe import parse_recipe
from natix_hf.trainers.config import Schedule
from natix_hf.trainers.rates import RatedTrainer, set_rates
from natix_hf.trainers.roadwork import RoadworkTrainer

RATE, DECAY, HEAD = 0.02, 0.5, 0.3
# In transformers blocks stand in one list, or in stages, with what leads to the next stage in front of it or behind.
STAGED: dict[str, dict[str, Any]] = {
    "convnextv2": {"hidden_sizes": [8, 8, 16], "depths": [1, 2, 1], "num_stages": 3},
    "swinv2": {"embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 2], "window_size": 2, "patch_size": 2,
               "drop_path_rate": 0.0},
}  # fmt: skip
MODELS = {name: STAGED.get(name, fields) for name, fields in (TINY | STAGED).items()}
QUICK = {"learning_rate": RATE, "per_device_train_batch_size": 1, "max_steps": 1, "warmup_steps": 0, "weight_decay": 0,
         "lr_scheduler_type": "constant", "max_grad_norm": 0, "dataloader_num_workers": 0}  # fmt: skip


def classifier(model_type: str) -> Any:
    fields = {key: value for key, value in MODELS[model_type].items() if key != "model_type"}
    if model_type == "dinov3_vit":
        fields["pos_embed_rescale"] = None  # drawn from the global generator in each step
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, image_size=28, num_labels=2, **fields)
    return AutoModelForImageClassification.from_config(config, dtype=torch.float32)


def expected_rate(name: str, config: Any) -> float:
    """The rate of a tensor by its name, without a look at the model."""
    depths = getattr(config, "depths", None) or [config.num_hidden_layers]
    blocks = sum(depths)
    if name.startswith("classifier"):
        return HEAD
    if ".embeddings." in name:
        return RATE * DECAY ** (blocks + 1)
    if config.model_type == "convnextv2":
        found = re.search(r"stages\.(\d+)\.(?:layers\.(\d+)|downsampling_layer)", name)
        number = found and sum(depths[: int(found[1])]) + int(found[2] or 0) + 1
    elif config.model_type == "swinv2":
        found = re.search(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)", name)
        number = found and (
            sum(depths[: int(found[1])]) + int(found[2]) + 1 if found[2] else sum(depths[: int(found[1]) + 1]) + 1
        )
    else:
        found = re.search(r"\.layers?\.(\d+)\.", name)
        number = found and int(found[1]) + 1
    return RATE * DECAY ** (blocks + 1 - number) if number else RATE


BOTH = {"layer_decay": DECAY, "head_learning_rate": HEAD}
ROWS = [{"pixel_values": torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(1)), "labels": 1}]


def trainer_of(
    model: Any, folder: Path, args: dict[str, Any] | None = None, rates: dict[str, Any] = BOTH, **given: Any
) -> RoadworkTrainer:
    args = QUICK | {"output_dir": str(folder)} | (args or {})
    return RoadworkTrainer(model, args, ROWS, quiet=True, **rates, **given)


def rates_of(trainer: Any) -> dict[str, float]:
    """The rate of every trained tensor by its name. Each stands in one group."""
    found = [(id(p), group["lr"]) for group in trainer.create_optimizer().param_groups for p in group["params"]]
    assert len(found) == len(dict(found))
    return {name: dict(found)[id(p)] for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("model_type", MODELS)
def test_one_step_moves_every_tensor_by_its_rate_times_its_gradient(model_type: str, tmp_path: Path) -> None:
    model = classifier(model_type)
    before = copy.deepcopy(model).train()
    trainer = trainer_of(model, tmp_path, args={"optim": "sgd"})
    row = trainer.train_dataset[0]
    cross_entropy(before(pixel_values=row["pixel_values"][None]).logits, torch.tensor([1])).backward()
    rates = rates_of(trainer)
    trainer.train()
    assert len({*rates.values()}) == sum(getattr(model.config, "depths", [2])) + 3
    moved = 0
    for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        if old.grad is None:
            assert torch.equal(old, new)
            continue
        rate = expected_rate(name, model.config)
        assert rates[name] == pytest.approx(rate, rel=1e-12), name
        assert torch.equal(new, old.detach().add(old.grad, alpha=-rates[name])), name
        moved += int(not torch.equal(old, new))
    assert moved > 20


@pytest.mark.parametrize("adapter", ["lora", "dora", "adalora", "ln_tuning", "vera", "vblora"])
@pytest.mark.parametrize("model_type", ["dinov2", "dinov3_vit"])
def test_an_adapter_has_the_rate_of_its_block(adapter: str, model_type: str, tmp_path: Path) -> None:
    """VB-LoRA keeps one bank of vectors for all blocks: it has the whole rate."""
    model = add_adapter(classifier(model_type), adapter, {}, 10, 0)
    rates = rates_of(trainer_of(Adapted(model), tmp_path))
    assert len({*rates.values()}) == 3 + (adapter == "vblora")
    for name, rate in rates.items():
        own = expected_rate(name.removeprefix("model.base_model.model."), model.config)
        assert rate == pytest.approx(RATE if "vector_bank" in name else own), name


def test_only_the_rates_of_the_groups_change(tmp_path: Path) -> None:
    """Which tensors decay, and all other settings, stay; one of the two keys alone serves too."""
    def settings(**given: Any) -> dict[str, Any]:
        trainer = trainer_of(classifier("vit"), tmp_path, {"weight_decay": 0.05, "adam_beta2": 0.95}, given)
        groups = trainer.create_optimizer().param_groups
        own = {id(p): {k: v for k, v in group.items() if k != "params"} for group in groups for p in group["params"]}
        return {name: own[id(p)] for name, p in trainer.model.named_parameters()}

    plain, decayed, head = settings(), settings(layer_decay=DECAY), settings(head_learning_rate=HEAD)
    assert {rule["weight_decay"] for rule in plain.values()} == {0, 0.05}
    for name, rule in plain.items():
        own = "classifier" in name
        rate = RATE if own else expected_rate(name, classifier("vit").config)
        assert decayed[name] == rule | {"lr": pytest.approx(rate), "lr_scale": pytest.approx(rate / RATE)}
        assert head[name] == rule | ({"lr": HEAD, "lr_scale": HEAD / RATE} if own else {"lr_scale": 1.0})


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_every_schedule_keeps_the_proportions_and_logs_the_base_rate(schedule: str, tmp_path: Path) -> None:
    """`reduce_lr_on_plateau` and `greedy` move within bounds. With LoRA no group has the base rate."""
    bounds = {"reduce_lr_on_plateau": {"min_lr": 0.004, "patience": 0}, "greedy": {"min_lr": 0.004, "patience": 1},
              "cosine_with_min_lr": {"min_lr": 0.004}, "cosine_warmup_with_min_lr": {"min_lr": 0.004},
              "warmup_stable_decay": {"num_decay_steps": 4}}  # fmt: skip
    args = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": bounds.get(schedule, {}), "warmup_steps": 2}
    args |= {"eval_strategy": "epoch"}
    seen = {}
    for rates in ({}, BOTH):
        model = Adapted(add_adapter(classifier("dinov2"), "lora", {}, 10, 0))
        trainer: Any = trainer_of(model, tmp_path, args, rates, eval_dataset=ROWS)
        groups = trainer.create_optimizer().param_groups
        trainer.create_scheduler(12)
        peaks, logged = [group.get("initial_lr", group["lr"]) for group in groups], []
        for step in range(12):
            trainer.optimizer.step()
            trainer.lr_scheduler.step(*([1.0 + step] if schedule in ("reduce_lr_on_plateau", "greedy") else []))
            shares = [group["lr"] / peak for group, peak in zip(groups, peaks, strict=True)]
            assert shares == pytest.approx([shares[0]] * len(shares))
            logged.append(trainer._get_learning_rate())
        seen[len(groups)] = logged
    assert len(seen) == 2 and seen[2] == pytest.approx(seen[max(seen)])
    assert schedule == "constant" or len({*seen[2]}) > 1


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop"])
def test_every_optimizer_has_the_rates(optim: str, tmp_path: Path) -> None:
    trainer = trainer_of(classifier("vit"), tmp_path, args={"optim": optim})
    for name, rate in rates_of(trainer).items():
        assert rate == pytest.approx(expected_rate(name, trainer.model.config)), name
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return striped_data(tmp_path_factory)


@pytest.mark.parametrize("adapter", ["full", "adalora"])
def test_a_resumed_training_is_bit_equal(
    adapter: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average of the weights, too. tests/invariant has two ranks and accumulation."""
    section = {"layer_decay": DECAY, "head_learning_rate": 1e-2, "ema_decay": 0.9, "load_best_model_at_end": False,
               "save_strategy": "steps", "save_steps": 3, "max_steps": 8}  # fmt: skip
    model = ModelConfig(config=TINY["dinov2"] | {"initializer_range": 0.2}, image_size=28)
    whole = train_stage(data, tmp_path / "whole", model, adapter, **section)
    with killed_after(5, monkeypatch):
        train_stage(data, tmp_path / "cut", model, adapter, **section)
    resumed = train_stage(data, tmp_path / "cut", model, adapter, **section)
    plain = train_stage(data, tmp_path / "plain", model, adapter, **section | {"layer_decay": None})
    assert (whole["resumed_from"], resumed["resumed_from"]) == (None, "checkpoint-3")
    rates = [[row["learning_rate"] for row in facts["history"] if "loss" in row] for facts in (whole, resumed, plain)]
    assert rates[0] == rates[1] == pytest.approx(rates[2]), "the base rate is logged"
    one, other, third = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut", "plain")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], third[name]) for name in one)
    assert whole["card"]["settings"]["layer decay"] == "0.5" and "layer decay" not in plain["card"]["settings"]
    assert whole["card"]["settings"]["learning rate of the classifier layer"] == "0.01"


def test_the_bake_off_trains_at_these_rates(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, make = [], RatedTrainer.create_optimizer

    def watched(self: Any, model: Any = None) -> Any:
        optimizer = make(self, model)
        seen.append(sorted({group["lr"] for group in optimizer.param_groups}))
        return optimizer

    monkeypatch.setattr(RatedTrainer, "create_optimizer", watched)
    model = ModelConfig(config=TINY["vit"], image_size=28)
    train_stage(data, tmp_path, model, "auto", layer_decay=DECAY, max_steps=8, eval_strategy="no",
                save_strategy="no", load_best_model_at_end=False, learning_rate=4e-3)  # fmt: skip
    assert len(seen) > 4 and all(rates == pytest.approx([1e-3, 2e-3, 4e-3]) for rates in seen)


def test_a_checkpoint_of_other_rates_is_refused(tmp_path: Path) -> None:
    """It holds its own, which a training with other ones would go on with."""
    args = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer_of(classifier("vit"), tmp_path, args).train()
    for changed in ({"layer_decay": 0.6}, {"head_learning_rate": 0.2}, {"head_learning_rate": None}):
        again = trainer_of(classifier("vit"), tmp_path, args | {"max_steps": 3}, BOTH | changed)
        refused(UsageError, lambda again=again: again.train(str(tmp_path / "checkpoint-2")), "checkpoint-2", *changed)
    trainer = trainer_of(classifier("vit"), tmp_path, args | {"max_steps": 3})
    trainer.train(str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 3


@pytest.mark.parametrize(("section", "facts"), [
    ({"layer_decay": 0}, ("phase1.layer_decay", "0")),
    ({"layer_decay": 1.5}, ("phase1.layer_decay", "1.5")),
    ({"layer_decay": float("nan")}, ("phase1.layer_decay", "nan")),
    ({"head_learning_rate": 0.0}, ("phase1.head_learning_rate", "0.0")),
    ({"head_learning_rate": 1e6}, ("phase1.head_learning_rate", "1000")),
    ({"adapter": "none", "layer_decay": 0.7}, ("phase1.layer_decay", "adapter none")),
    ({"adapter": "none", "head_learning_rate": 0.1}, ("phase1.head_learning_rate", "learning_rate", "adapter none")),
    ({"layer_decay": 0.7, "optim": "galore_adamw"}, ("phase1.optim", "galore_adamw", "layer_decay")),
    ({"head_learning_rate": 0.1, "optim": "lomo"}, ("phase1.optim", "lomo", "head_learning_rate")),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")  # fmt: skip
def test_what_cannot_be_is_refused(section: dict[str, Any], facts: tuple[str, ...]) -> None:
    refused(RecipeError, lambda: parse_recipe({"phase1": section}), *facts)


def test_what_a_trainer_refuses(tmp_path: Path) -> None:
    model = classifier("vit")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    refused(UsageError, lambda: trainer_of(model, tmp_path, optimizers=(optimizer, None)), "layer_decay", "optimizers")
    refused(RecipeError, lambda: trainer_of(model, tmp_path, args={"optim": "galore_adamw"}),
            "RoadworkTrainer.optim", "galore_adamw")  # fmt: skip
    trainer = trainer_of(torch.nn.Linear(3, 2), tmp_path)
    refused(UsageError, trainer.create_optimizer, "layer_decay", "Linear")
    of_others = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    refused(UsageError, lambda: set_rates(of_others, model, 0.1, 0.5, None), "layer_decay", "FSDP")
    low = trainer_of(model, tmp_path, rates={"layer_decay": 1e-150, "head_learning_rate": 0.1})
    refused(UsageError, low.create_optimizer, "layer_decay", "1e-150", "lowest rate is 0")
    whole = classifier("vit")
    whole.vit.layers = torch.nn.Sequential(*whole.vit.layers)
    refused(UsageError, trainer_of(whole, tmp_path, rates={"layer_decay": 0.5}).create_optimizer, "no blocks")
    for key, value in (("layer_decay", -1), ("head_learning_rate", 0)):
        refused(RecipeError, lambda key=key, value=value: trainer_of(model, tmp_path, rates={key: value}),
                f"RoadworkTrainer.{key}", value)  # fmt: skip
