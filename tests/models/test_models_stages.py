"""Models whose blocks stand in stages: what the table says of them, strange configs, and the files of public ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.config as limits
from conftest import STAGED, TINY, TINY_RECIPE, explora_recipe, tiny_backbone
from facts import tells
from refusals import refused
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, TrainingArguments

from natix_hf.errors import RecipeError, UsageError
from natix_hf.labels import SUBNET
from natix_hf.models.architectures import ARCHITECTURES, prefix_tokens, size_step
from natix_hf.models.classifier import build_classifier, head_of
from natix_hf.models.config import ModelConfig
from natix_hf.models.fits import weights_problems
from natix_hf.models.preprocess import exported_processor, make_processor
from natix_hf.models.resolved import resolved_config
from natix_hf.models.schema import config_faults, size_faults
from natix_hf.preflight import check_trainings
from natix_hf.recipe import parse_recipe
from natix_hf.runs.graph import PHASES
from natix_hf.trainers.compiled import compile_blocks
from natix_hf.trainers.start import start_classifier

every_one = pytest.mark.parametrize("name", STAGED)


def tiny(name: str, size: int = 28, **fields: Any) -> Any:
    return build_classifier(ModelConfig(config=TINY[name] | {"initializer_range": 0.3} | fields, image_size=size), 0)


def content_of(name: str, **fields: Any) -> dict[str, Any]:
    """The `config.json` of an export."""
    content: dict[str, Any] = json.loads(tiny(name, **fields).config.to_json_string())
    return content | {"architectures": ["XForImageClassification"], "transformers_version": "5"}


@every_one
def test_a_row_says_what_transformers_does(name: str) -> None:
    found, model = ARCHITECTURES[name], tiny(name).eval()
    assert found.stages and found.objective is None and found.known_to_the_miner
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    read: list[torch.Tensor] = []
    head_of(model).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.inference_mode():
        model(pixel_values=pixels)
        last = model.base_model(pixels).last_hidden_state
    places = (28 // size_step(TINY[name]["patch_size"], TINY[name]["depths"])) ** 2
    values = last.flatten(2).transpose(1, 2) if last.dim() == 4 else last
    assert values.shape == (2, places + prefix_tokens(model.config), head_of(model).in_features)
    norm = model.base_model.layernorm if last.dim() == 4 else nn.Identity()  # ConvNeXt V2 normalises the mean
    torch.testing.assert_close(read[0], norm(values.mean(1)))
    stock = AutoModel.from_config(model.config)  # a pooler, if there is one, has no weights
    assert set(stock.state_dict()) == set(model.base_model.state_dict())
    # Whether the config's image size changes what is computed.
    other = tiny(name, size=56, image_size=56, window_size=4) if found.positions == "fixed" else tiny(name, size=56)
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        same = torch.equal(other.eval()(pixel_values=pixels).logits, model(pixel_values=pixels).logits)
    assert same == (found.positions != "fixed")


@every_one
def test_the_image_size_is_a_multiple_of_what_the_stages_need(name: str) -> None:
    for size, told in ((30, "28 or 42"), (21, "14 or 28"), (7, "use 14")):
        given = ModelConfig(config=TINY[name], image_size=size)
        refused(RecipeError, lambda given=given: resolved_config(given, SUBNET), "model.image_size", size, 14, told)
    model, processor = start_classifier(tiny(name, size=56, image_size=56), None, None, 0, None, "here")
    assert processor.size["height"] == 56 and model.config.image_size == 56


FAULTS: list[tuple[str, dict[str, Any], list[object]]] = [
    *((name, {"depths": wrong}, ["depths"]) for name in STAGED for wrong in (
        [10**9, 1], [0, 2], [], "ab", [2], [1] * 9, [150, 100], [True, 2], [[1], [2]])),
    *((name, {"patch_size": wrong}, ["patch_size"]) for name in STAGED for wrong in (0, [7, 7], 10**6)),
    *((name, {"hidden_act": "evil"}, ["hidden_act"]) for name in STAGED),
    *((name, {"out_features": ["stage1"]}, ["out_features"]) for name in STAGED),
    *((name, {"stage_names": ["stem", "stage1"]}, ["stage_names"]) for name in STAGED),
    *((name, {"num_hidden_layers": 2}, ["num_hidden_layers"]) for name in STAGED),
    *(("convnextv2", {"hidden_sizes": wrong}, ["hidden_sizes"]) for wrong in ([16], [16, 10**30], [16, -1], 16)),
    ("convnextv2", {"num_stages": 3}, ["num_stages", 3]),
    ("convnextv2", {"num_stages": 10**9}, ["num_stages"]),
    ("swinv2", {"num_layers": 3}, ["num_layers", 3]),
    *(("swinv2", {"num_heads": wrong}, ["num_heads"]) for wrong in ([3, 4], [2], [2, 10**6], [0, 4])),
    *(("swinv2", {"window_size": wrong}, ["window_size"]) for wrong in (0, 10**6, [2, 2], None)),
    ("swinv2", {"pretrained_window_sizes": [0]}, ["pretrained_window_sizes"]),
    ("swinv2", {"pretrained_window_sizes": [0, 10**9]}, ["pretrained_window_sizes"]),
    ("swinv2", {"pretrained_window_sizes": [0, 1]}, ["pretrained_window_sizes", "from 2 to 32"]),  # divided by zero
    ("swinv2", {"hidden_size": 32}, ["hidden_size", 32, 64]),
    ("swinv2", {"embed_dim": 10**30}, ["embed_dim"]),
    ("swinv2", {"mlp_ratio": 1e9}, ["mlp_ratio"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "facts"), FAULTS, ids=lambda value: str(value)[:40])
def test_what_no_export_writes_is_refused(name: str, change: dict[str, Any], facts: list[object]) -> None:
    content = content_of(name)
    assert list(config_faults(content)) == []
    found = list(config_faults(content | change))
    assert found
    tells(found[0], *facts)


@every_one
def test_nothing_that_decides_is_left_to_the_defaults_of_whoever_loads(name: str) -> None:
    content = content_of(name)
    shape = {"hidden_sizes", "num_stages", "embed_dim", "num_heads", "window_size", "pretrained_window_sizes"}
    for key in {"depths", "layer_norm_eps", "image_size", "patch_size", "hidden_act", *(shape & set(content))}:
        left = {known: value for known, value in content.items() if known != key}
        assert [fault for fault in config_faults(left) if key in fault], key


def test_windows_that_would_take_gigabytes_are_refused() -> None:
    content = content_of("swinv2") | {"image_size": 512, "patch_size": 4, "window_size": 24, "num_heads": [8, 16]}
    size = {"height": 512, "width": 512}  # 128 x 128 patches, 576 a window, 8 heads: 0.3 GB
    assert list(size_faults(size, content)) == []
    [fault] = size_faults(size, content | {"window_size": 32, "num_heads": [32, 64]})  # 2 GB
    tells(fault, "window_size", 32)
    [fault] = size_faults({"height": 700, "width": 700}, content_of("convnextv2") | {"patch_size": 2})
    tells(fault, 700, "16,384")


@every_one
def test_weights_of_another_depth_do_not_fit(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    weights = tmp_path / "model.safetensors"
    assert weights_problems(weights, content, 2**30) == []
    [more] = weights_problems(weights, content | {"depths": [depth + 1 for depth in content["depths"]]}, 2**30)
    tells(more, weights, "do not belong together")
    [many] = weights_problems(weights, content | {"depths": [90, 90]}, 2**30)
    tells(many, weights, "180 layers")


# The files of microsoft/swinv2-tiny-patch4-window8-256 and facebook/convnextv2-tiny-22k-384, but for their labels.
PUBLIC: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "convnextv2": (
        {"architectures": ["ConvNextV2ForImageClassification"], "depths": [3, 3, 9, 3], "drop_path_rate": 0.0,
         "hidden_act": "gelu", "hidden_sizes": [96, 192, 384, 768], "image_size": 224, "initializer_range": 0.02,
         "layer_norm_eps": 1e-12, "model_type": "convnextv2", "num_channels": 3, "num_stages": 4, "patch_size": 4,
         "out_features": ["stage4"], "out_indices": [4], "torch_dtype": "float32",
         "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"], "transformers_version": "4.27.0.dev0"},
        {"crop_pct": 0.875, "do_normalize": True, "do_rescale": True, "do_resize": True,
         "image_mean": [0.485, 0.456, 0.406], "image_processor_type": "ConvNextImageProcessor",
         "image_std": [0.229, 0.224, 0.225], "resample": 3, "rescale_factor": 0.00392156862745098,
         "size": {"shortest_edge": 384}},
        384,
    ),
    "swinv2": (
        {"architectures": ["Swinv2ForImageClassification"], "attention_probs_dropout_prob": 0.0,
         "depths": [2, 2, 6, 2], "drop_path_rate": 0.1, "embed_dim": 96, "encoder_stride": 32, "hidden_act": "gelu",
         "hidden_dropout_prob": 0.0, "hidden_size": 768, "image_size": 256, "initializer_range": 0.02,
         "layer_norm_eps": 1e-05, "mlp_ratio": 4.0, "model_type": "swinv2", "num_channels": 3,
         "num_heads": [3, 6, 12, 24], "num_layers": 4, "patch_size": 4, "path_norm": True,
         "pretrained_window_sizes": [0, 0, 0, 0], "qkv_bias": True, "torch_dtype": "float32",
         "transformers_version": "4.22.0.dev0", "use_absolute_embeddings": False, "window_size": 8},
        {"do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor",
         "image_mean": [0.5, 0.45, 0.4], "image_std": [0.25, 0.22, 0.2], "resample": 3, "size": 256},
        256,
    ),
}  # fmt: skip


@every_one
def test_the_files_of_a_public_one_become_ours(name: str, tmp_path: Path) -> None:
    """Its own mean and deviation, at a square size: the miner's processor has no `crop_pct` and no shortest edge."""
    config, processor, size = PUBLIC[name]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    (tmp_path / "model.safetensors").touch()
    model = ModelConfig(backbone=str(tmp_path), image_size=size)
    architecture = resolved_config(model, SUBNET)
    assert architecture.depths == config["depths"] and architecture.id2label == {0: "None", 1: "Roadwork"}
    exported = exported_processor(make_processor(model))
    assert exported["size"] == {"height": size, "width": size} and "crop_pct" not in exported
    assert exported["image_processor_type"].startswith("ViTImageProcessor")
    assert (exported["image_mean"], exported["image_std"]) == (processor["image_mean"], processor["image_std"])
    if name == "swinv2":  # its windows are laid out for one size
        smaller = ModelConfig(backbone=str(tmp_path), image_size=224)
        refused(RecipeError, lambda: resolved_config(smaller, SUBNET), "model.image_size", 224, 256)
        laid_out = ModelConfig(backbone=str(tmp_path), config={"image_size": 224}, image_size=224)
        assert resolved_config(laid_out, SUBNET).image_size == 224


# What a training may be given.


def test_activation_checkpointing_where_transformers_has_none(tmp_path: Path, parquet_source: Path) -> None:
    def recipe(name: str, adapter: str) -> Any:
        phase1 = TINY_RECIPE["phase1"] | {"adapter": adapter, "activation_checkpointing": True}
        return parse_recipe({"model": {"config": TINY[name], "image_size": 28}, "phase1": phase1})

    for adapter in ("full", "lora"):
        check_trainings(recipe("swinv2", adapter), [PHASES[1]], None)
        asked = recipe("convnextv2", adapter)
        refused(UsageError, lambda asked=asked: check_trainings(asked, [PHASES[1]], None),
                "phase1.activation_checkpointing", "convnextv2")  # fmt: skip


@every_one
def test_the_blocks_of_every_stage_are_compiled_and_answer_equally(name: str, tmp_path: Path) -> None:
    model, pixels = tiny(name), torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    names, labels = list(model.state_dict()), torch.tensor([0, 1, 0, 1])

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        cross_entropy(model.train()(pixel_values=pixels).logits, labels).backward()
        return {key: weights.grad.clone() for key, weights in model.named_parameters() if weights.grad is not None}

    eager = gradients()
    compile_blocks(model, TrainingArguments(str(tmp_path), torch_compile_backend="aot_eager", use_cpu=True))
    compiled = [part for part in model.modules() if part._compiled_call_impl is not None]
    assert len(compiled) == sum(TINY[name]["depths"]) and len({type(part) for part in compiled}) == 1
    for key, gradient in gradients().items():
        torch.testing.assert_close(gradient, eager[key], atol=1e-6, rtol=1e-4, msg=key)
    assert list(model.state_dict()) == names


def test_no_block_is_left_uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block has its own rate of drop path, and so its own graph: PyTorch would stop at 8."""
    model = tiny("convnextv2", hidden_sizes=[8, 16], depths=[4, 5], num_stages=2, drop_path_rate=0.1)
    torch.compiler.reset()
    monkeypatch.setattr(limits, "recompile_limit", 8)
    monkeypatch.setattr(limits, "fail_on_recompile_limit_hit", True)
    compile_blocks(model, TrainingArguments(str(tmp_path), torch_compile_backend="aot_eager", use_cpu=True))
    model.train()(pixel_values=torch.randn(4, 3, 28, 28)).logits.sum().backward()
    assert all(weights.grad is not None for weights in model.parameters())


@every_one
def test_a_whole_run(name: str, tmp_path: Path, parquet_source: Path) -> None:
    """Training with LoRA, threshold, a gate on the classifier's inputs, export, and what verifies it."""
    from natix_hf import load_bundle
    from natix_hf.pipeline import run_recipe
    from natix_hf.runs.verify import find_problems

    tiny_backbone(name).save_pretrained(tmp_path / "backbone")
    recipe = explora_recipe(tmp_path, parquet_source, tmp_path / "backbone")
    run = run_recipe(recipe, [1, 2, 3, 5, 6], tmp_path / "run", overrides=["phase1.adapter=lora"])
    assert find_problems(str(run)) == []
    bundle = run / "phase6_export" / "bundle"
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert f"A {name} image classifier" in card and "4.45.2" not in card
    assert load_bundle(bundle, device="cpu").logits([]).shape == (0,)
