"""Memory and operations from shapes alone, against trainings that really run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from natix_hf.data.crops_config import CropConfig
from natix_hf.estimate.shapes import answer_footprint, step_footprint
from natix_hf.models.adapters import add_adapter
from natix_hf.models.tuner import Adapted
from natix_hf.ssl.diet_config import DietConfig
from natix_hf.ssl.dinov2_config import DinoV2Config
from natix_hf.ssl.mae_config import MaeConfig
from natix_hf.trainers.arguments import training_arguments
from natix_hf.trainers.explora_config import ExploraConfig
from natix_hf.trainers.pretraining import make_objective

SIZE, PATCH, BATCH = 56, 14, 12
SHAPE = TINY["dinov2"] | {"hidden_size": 64, "num_hidden_layers": 3, "image_size": SIZE}
PATCHES = (SIZE // PATCH) ** 2


class Living(TorchDispatchMode):
    """An independent count: the bytes of every storage that an operation has made and that still lives."""

    def __init__(self, before: list[torch.Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: dict[int, Any] = {}
        for tensor in before:
            self.add(tensor)

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.seen:
            self.seen[key] = weakref.finalize(storage, self.drop, key, storage.nbytes())
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def drop(self, key: int, size: int) -> None:
        self.live -= size
        self.seen.pop(key, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return made


def classifier() -> Any:
    return AutoModelForImageClassification.from_config(AutoConfig.for_model(**SHAPE), dtype=torch.float32)


def adapted(name: str) -> Any:
    return Adapted(add_adapter(classifier(), name, {}, 100, 0, "phase1"))


def objective(name: str) -> Any:
    backbone = AutoModel.from_config(AutoConfig.for_model(**SHAPE), dtype=torch.float32)
    sections: dict[str, dict[str, Any]] = {
        "mae": {"mae": MaeConfig(decoder_width=32, decoder_heads=2, decoder_layers=1)},
        "dinov2": {"dinov2": DinoV2Config(n_prototypes=64, head_hidden=64, bottleneck=16), "crops": CropConfig()},
    }
    sections["diet"] = {"diet": DietConfig()}
    return make_objective(backbone, ExploraConfig(objective=name, rank=4), SIZE, 0, None, 1000, sections[name])


def views(name: str) -> dict[str, torch.Tensor]:
    if name == "mae":
        return {"pixel_values": torch.randn(3, SIZE, SIZE), "noise": torch.rand(PATCHES)}
    if name == "diet":
        return {"pixel_values": torch.randn(3, SIZE, SIZE), "row": torch.zeros((), dtype=torch.int64)}
    if name == "dinov2":
        masks = torch.zeros(2, PATCHES, dtype=torch.bool)
        masks[0, :5] = True
        crops = {"global_crops": torch.randn(2, 3, SIZE, SIZE), "local_crops": torch.randn(8, 3, 28, 28)}
        return crops | {"masks": masks}
    return {"pixel_values": torch.randn(3, SIZE, SIZE), "labels": torch.zeros((), dtype=torch.int64)}


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    if "labels" not in batch:
        return model(**batch)["loss"]  # type: ignore[no-any-return]
    return cross_entropy(model(pixel_values=batch["pixel_values"])["logits"].float(), batch["labels"])


def run(
    model: Any, item: dict[str, torch.Tensor], arguments: Any, autocast: bool, watch: Callable[..., Any]
) -> Any:
    """A real optimizer step under `watch`, which is made once everything that a step finds is there."""
    model.train()
    if arguments.activation_checkpointing:
        model.activation_checkpointing_enable()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    with watch(model, optimizer) as watcher:
        for _ in range(arguments.gradient_accumulation_steps):
            batch = {name: torch.stack([value] * BATCH) for name, value in item.items()}
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                value = loss(model, batch)
            value.backward()
            del batch, value
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return watcher


def living(model: nn.Module, optimizer: torch.optim.Optimizer) -> Living:
    state = [value for of_one in optimizer.state.values() for value in of_one.values()]
    return Living([*model.parameters(), *model.buffers(), *state])


CASES: dict[str, tuple[Callable[[], Any], str, dict[str, Any], bool]] = {
    "full": (classifier, "pixels", {}, False),
    "full in bfloat16": (classifier, "pixels", {}, True),
    "full, accumulated": (classifier, "pixels", {"gradient_accumulation_steps": 2}, False),
    "full, checkpointed": (classifier, "pixels", {"activation_checkpointing": True}, False),
    "lora": (lambda: adapted("lora"), "pixels", {}, False),
    "dora": (lambda: adapted("dora"), "pixels", {}, False),
    "mae": (lambda: objective("mae"), "mae", {}, False),
    "dinov2": (lambda: objective("dinov2"), "dinov2", {}, False),
    "diet": (lambda: objective("diet"), "diet", {}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_needs_what_its_shapes_say(case: str, tmp_path: Path) -> None:
    make, kind, changes, autocast = CASES[case]
    arguments = training_arguments({"per_device_train_batch_size": BATCH, **changes}, tmp_path)
    item = views(kind)
    found = step_footprint(make, item, loss, arguments, torch.bfloat16 if autocast else None)
    measured = run(make(), item, arguments, autocast, living)
    assert found.peak == pytest.approx(measured.peak, rel=0.05)
    counted = run(make(), item, arguments, autocast, lambda *_: FlopCounterMode(display=False))
    assert found.flops == counted.get_total_flops()


def test_the_kinds_are_those_of_torchs_own_tracker(tmp_path: Path) -> None:
    """On a real training without frozen weights, which MemTracker refuses."""
    item, arguments = views("pixels"), training_arguments({"per_device_train_batch_size": BATCH}, tmp_path)

    def tracked(model: nn.Module, optimizer: torch.optim.Optimizer) -> MemTracker:
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        return tracker

    tracker = run(classifier(), item, arguments, False, tracked)
    [real] = tracker.get_tracker_snapshot("peak").values()
    real = {str(getattr(kind, "name", kind)): size for kind, size in real.items()}
    found = step_footprint(classifier, item, loss, arguments, None).memory
    assert found["weights"] == real["PARAM"] + real["BUFFER"]
    assert found["optimizer"] == real["OPT"]
    assert sum(found.values()) == pytest.approx(real["Total"], rel=0.01)


def test_what_a_person_changes_changes_the_memory(tmp_path: Path) -> None:
    def peak(copies: int = 0, make: Callable[[], Any] = classifier, **changes: Any) -> int:
        fields = {"per_device_train_batch_size": BATCH} | changes
        return step_footprint(make, views("pixels"), loss, training_arguments(fields, tmp_path), None, copies).peak

    weights = sum(parameter.nbytes for parameter in classifier().parameters())
    usual = peak()
    assert peak(copies=1) == usual + weights  # a moving average
    assert peak(per_device_train_batch_size=2 * BATCH) > 1.3 * usual
    assert peak(make=lambda: adapted("lora")) < usual
    assert peak(activation_checkpointing=True) < 0.8 * usual
    assert peak(optim="sgd") < usual - weights


def test_an_answer_needs_no_gradients() -> None:
    found = answer_footprint(classifier, {"pixel_values": torch.zeros(3, SIZE, SIZE)}, BATCH)
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        classifier()(pixel_values=torch.zeros(BATCH, 3, SIZE, SIZE))
    assert found.flops == flops.get_total_flops()
    assert found.memory["gradients"] == found.memory["optimizer"] == 0
