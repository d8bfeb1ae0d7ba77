"""What makes a training faster or smaller on a GPU leaves the mathematics as it is. Proven on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config as inductor
from conftest import TINY, tiny_backbone
from refusals import refused
from safetensors.torch import load_file
from stages import killed_after, save_in, striped_data, train_stage

from natix_hf.data.config import AugmentConfig
from natix_hf.data.rows import ImageData
from natix_hf.errors import RecipeError, UsageError
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.pipeline import run_recipe
from natix_hf.recipe import parse_recipe
from natix_hf.ssl.dinov2 import DinoV2Objective
from natix_hf.ssl.explora import block_list
from natix_hf.trainers import arguments, self_supervised
from natix_hf.trainers.explora import ExploraTrainer
from natix_hf.trainers.roadwork import RoadworkTrainer

FIELDS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 7}
MODEL = ModelConfig(config={"model_type": "dinov2", "initializer_range": 0.2, **FIELDS}, image_size=28)
# Graphs as torch.compile makes them, run without inductor's C++, which would take a minute.
COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}

# Five steps without a score; the last weights are kept.
LAST = {"eval_strategy": "no", "load_best_model_at_end": False, "metric_for_best_model": None, "max_steps": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return striped_data(tmp_path_factory)


def supervised(data: ImageData, folder: Path, adapter: str, **training: Any) -> dict[str, torch.Tensor]:
    """The weights after a training of phase 1."""
    phase1 = {"num_train_epochs": 1, "learning_rate": 1e-4, "per_device_train_batch_size": 16, "logging_steps": 1}
    section = phase1 | {"dataloader_num_workers": 0} | training
    train_stage(data, folder, MODEL, adapter, **section)
    return load_file(folder / "model" / "model.safetensors")


def adapted(data: ImageData, folder: Path, objective: str, trainable: str, **training: Any) -> dict[str, torch.Tensor]:
    """The backbone after a training of phase 4."""
    section = {
        "objective": objective, "trainable": trainable, "rank": 4, "max_steps": 4, "probe_steps": 0,
        "learning_rate": 1e-4, "per_device_train_batch_size": 16, "dataloader_num_workers": 0, "logging_steps": 1,
        "mae": {"decoder_width": 16, "decoder_heads": 2, "decoder_layers": 1},
        "dinov2": {"n_prototypes": 32, "head_hidden": 32, "bottleneck": 16}, "crops": {"local_crops": 2},
    }  # fmt: skip
    self_supervised.pretrain_backbone(
        tiny_backbone("dinov2"), make_processor(MODEL), data.role("train"), None,
        parse_recipe({"phase4": section | training}).phase4, AugmentConfig(), save_in(folder / "backbone"),
        folder / "checkpoints", None,
    )  # fmt: skip
    return load_file(folder / "backbone" / "model.safetensors")


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def moved(weights: dict[str, torch.Tensor], folder: Path) -> bool:
    """Whether the backbone is no longer what it was."""
    build_classifier(MODEL, seed=0).save_pretrained(folder / "fresh")
    fresh = load_file(folder / "fresh" / "model.safetensors")
    return any(float((weights[name] - fresh[name]).abs().max()) > 1e-4 for name in weights if "layer.1" in name)


@pytest.mark.parametrize("adapter", ["full", "lora", "doran"])
def test_activation_checkpointing_in_phase_1(adapter: str, data: ImageData, tmp_path: Path) -> None:
    """To the last bit: a CPU computes the same again."""
    plain = supervised(data, tmp_path / "plain", adapter)
    again = supervised(data, tmp_path / "again", adapter, activation_checkpointing=True)
    assert largest_difference(plain, again) == 0


@pytest.mark.parametrize("trainable", ["explora", "all"])
@pytest.mark.parametrize("objective", ["mae", "dinov2"])
def test_activation_checkpointing_in_phase_4(objective: str, trainable: str, data: ImageData, tmp_path: Path) -> None:
    plain = adapted(data, tmp_path / "plain", objective, trainable)
    again = adapted(data, tmp_path / "again", objective, trainable, activation_checkpointing=True)
    assert largest_difference(plain, again) == 0


def test_fused_adamw_is_adamw(data: ImageData, tmp_path: Path) -> None:
    """It is the default, on the CPU too. 20 steps of at most 1e-4 differ by rounding; in the key biases, whose true
    gradient is zero, AdamW makes steps of that rounding."""
    assert arguments.training_arguments({}, tmp_path).optim == "adamw_torch_fused"
    fused = supervised(data, tmp_path / "fused", "full", max_steps=20)
    plain = supervised(data, tmp_path / "plain", "full", max_steps=20, optim="adamw_torch")
    for weights in (fused, plain):
        for name in [name for name in weights if name.endswith("key.bias")]:
            assert float(weights.pop(name).abs().max()) < 20 * 1e-4
    assert moved(fused, tmp_path) and largest_difference(fused, plain) < 2e-6


def test_how_batches_travel_changes_nothing(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = supervised(data, tmp_path / "plain", "full")
    travel = {"accelerator_config": {"non_blocking": True}, "dataloader_num_workers": 2}
    travel |= {"dataloader_prefetch_factor": 4, "dataloader_persistent_workers": True}
    assert largest_difference(plain, supervised(data, tmp_path / "other", "full", **travel)) == 0
    given = arguments.training_arguments({}, tmp_path)
    assert (given.dataloader_pin_memory, given.accelerator_config.non_blocking) == (False, False), "as ever on a CPU"
    monkeypatch.setattr(arguments, "runs_on_cpu", lambda: False)
    given = arguments.training_arguments({"accelerator_config": {"even_batches": False}}, tmp_path)
    assert (given.dataloader_pin_memory, given.accelerator_config.non_blocking) == (True, True)
    assert given.accelerator_config.even_batches is False
    blocking = arguments.training_arguments({"accelerator_config": {"non_blocking": False}}, tmp_path)
    assert blocking.accelerator_config.non_blocking is False


@pytest.mark.parametrize("adapter", ["full", "lora", "doran"])
def test_a_compiled_training_is_the_same_and_keeps_its_names(adapter: str, data: ImageData, tmp_path: Path) -> None:
    """Keys and values, of the merged model too. What is compiled rounds otherwise: 5 steps of at most 1e-4."""
    eager = supervised(data, tmp_path / "eager", adapter, **LAST)
    compiled = supervised(data, tmp_path / "compiled", adapter, **LAST, **COMPILED)
    assert moved(compiled, tmp_path) and largest_difference(eager, compiled) < 2e-6
    for weights in (tmp_path / "compiled").rglob("*.safetensors"):
        assert not any("_orig_mod" in name for name in load_file(weights)), weights
    assert len(list((tmp_path / "compiled").rglob("*.safetensors"))) >= 2


def test_a_compiled_run_leaves_a_bundle_with_plain_names(
    tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[torch.nn.Module] = []
    compile_it = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: blocks.append(self) or compile_it(self, **how))
    overrides = ["phase1.num_train_epochs=1", *(f"phase1.{key}={value}" for key, value in COMPILED.items())]
    run = run_recipe(str(tiny_recipe_file), [1, 2, 6], tmp_path / "run", overrides=overrides)
    assert len(blocks) == TINY["dinov2"]["num_hidden_layers"]
    bundle = run / "phase6_export" / "bundle"
    plain = load_file(run / "phase1_baseline" / "model" / "model.safetensors").keys()
    assert load_file(bundle / "model.safetensors").keys() == plain
    found = [path for path in run.rglob("*") if path.is_file()]
    assert len(found) > 10 and not [path for path in found if b"_orig_mod" in path.read_bytes()]


def test_a_compiled_student_and_teacher(data: ImageData, tmp_path: Path) -> None:
    eager = adapted(data, tmp_path / "eager", "dinov2", "explora")
    compiled = adapted(data, tmp_path / "compiled", "dinov2", "explora", **COMPILED)
    assert largest_difference(eager, compiled) < 2e-6


def test_what_is_compiled(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of student and teacher; neither heads nor the whole. Without a backbone it is refused."""
    found: list[torch.nn.Module] = []
    compile_it = torch.nn.Module.compile
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "compile", lambda self, **how: found.append(self) or compile_it(self, **how))
        adapted(data, tmp_path, "dinov2", "explora", **COMPILED, max_steps=1)
    assert len(found) == 6 and {type(module).__name__ for module in found} == {"Dinov2Layer"}
    refused(RecipeError, lambda: parse_recipe({"phase1": {"adapter": "none", "torch_compile": True}}),
            "phase1.torch_compile", "adapter none")  # fmt: skip
    refused(RecipeError, lambda: parse_recipe({"phase3": {"torch_compile": True}}), "phase3.torch_compile")
    rows = torch.utils.data.TensorDataset(torch.zeros(4, 3))
    refused(UsageError, lambda: RoadworkTrainer(
        torch.nn.Linear(3, 2), {"output_dir": str(tmp_path / "own"), **COMPILED}, rows), "torch_compile")  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("mode", [None, "fastest"])
def test_what_cannot_be_compiled_is_refused_before_any_work(
    mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a box without a C++ compiler, and in a mode that PyTorch does not know."""
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)  # what other runs have compiled
    torch.compiler.reset()
    given = {"torch_compile": True, "torch_compile_mode": mode}
    refused(UsageError, lambda: arguments.check_training(given, tmp_path, "phase4"),
            "phase4.torch_compile", "inductor", mode or "C++")  # fmt: skip


def test_a_compiled_training_resumes(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training: dict[str, Any] = {**COMPILED, **LAST, "save_strategy": "steps", "save_steps": 2}
    whole = supervised(data, tmp_path / "whole", "full", **training)
    with killed_after(4, monkeypatch):
        supervised(data, tmp_path / "cut", "full", **training)
    assert (tmp_path / "cut" / "checkpoints" / "checkpoint-2").is_dir()
    assert largest_difference(whole, supervised(data, tmp_path / "cut", "full", **training)) == 0


def test_the_teacher_computes_in_bf16_where_the_student_does(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forward pass lies under the same autocast. Its weights, its average and the targets stay float32."""
    seen: dict[str, set[torch.dtype]] = {"student": set(), "teacher": set()}
    init = ExploraTrainer.__init__

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for name, kinds in seen.items():
            for block in block_list(getattr(self.objective, name))[1]:
                block.mlp.register_forward_hook(
                    lambda _m, _i, out, kinds=kinds: kinds.add(out.dtype) if inside else None
                )

    inside, targets = [], set()
    make, forward = DinoV2Objective._targets, DinoV2Objective.forward

    def stepping(self: Any, **crops: Any) -> Any:
        inside.append(True)
        try:
            return forward(self, **crops)
        finally:
            inside.clear()

    with monkeypatch.context() as patch:
        patch.setattr(ExploraTrainer, "__init__", watched)
        patch.setattr(DinoV2Objective, "forward", stepping)
        patch.setattr(DinoV2Objective, "_targets",
                      lambda *given: (found := make(*given), targets.add(found.dtype))[0])  # fmt: skip
        weights = adapted(data, tmp_path, "dinov2", "explora", bf16=True)
    assert seen == {"student": {torch.bfloat16}, "teacher": {torch.bfloat16}}
    assert targets == {torch.float32} == {value.dtype for value in weights.values()}
    assert all(np.isfinite(value.numpy()).all() for value in weights.values())
