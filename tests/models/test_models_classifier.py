"""A classifier from nothing or from a saved backbone, and back from disk: every tensor of it, or one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from refusals import refused
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedModel

from natix_hf.errors import NatixError, RecipeError, UsageError, VerificationError
from natix_hf.models.architectures import has_fixed_size
from natix_hf.models.classifier import (
    ARCHITECTURES,
    build_classifier,
    head_of,
    load_classifier,
    logit_difference,
)
from natix_hf.models.config import ModelConfig
from natix_hf.models.dinov3 import DINOv3ViTForImageClassification

SIZE = 28
every_architecture = pytest.mark.parametrize("name", TINY)


def tiny(name: str, seed: int = 0, **fields: Any) -> PreTrainedModel:
    return build_classifier(ModelConfig(config=TINY[name] | fields, image_size=SIZE), seed)


def equal_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_tiny_models_are_all_that_is_supported() -> None:
    assert set(TINY) == set(ARCHITECTURES)


@every_architecture
def test_from_random_weights(name: str) -> None:
    model = tiny(name)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.id2label == {0: "None", 1: "Roadwork"}
    assert model.config.label2id == {"None": 0, "Roadwork": 1}
    with torch.inference_mode():
        assert model.eval()(pixel_values=torch.zeros(3, 3, SIZE, SIZE)).logits.shape == (3, 2)
    torch.manual_seed(99)
    assert equal_tensors(model.state_dict(), tiny(name).state_dict()), "the seed decides, not the global generator"
    assert not equal_tensors(model.state_dict(), tiny(name, seed=1).state_dict())


def saved(auto: Any, name: str, folder: Path, **fields: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    model = auto.from_config(AutoConfig.for_model(**(TINY[name] | {"image_size": SIZE} | fields)))
    for tensor in model.state_dict().values():  # no tensor may stand at the value that a fresh one would have
        tensor.add_(torch.randn_like(tensor) * 0.05)
    model.save_pretrained(folder)
    prefix = f"{model.base_model_prefix}." if auto is AutoModelForImageClassification else ""
    state = model.state_dict().items()
    return {k.removeprefix(prefix): v for k, v in state if not k.startswith(("pooler.", "classifier."))}


def saved_base(name: str, folder: Path) -> dict[str, torch.Tensor]:
    return saved(AutoModel, name, folder)


@every_architecture
@pytest.mark.parametrize("kind", ["base", "2 labels", "5 labels"])
def test_every_tensor_of_a_saved_backbone_arrives_and_the_head_is_fresh(name: str, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    labels = {} if kind == "base" else {"num_labels": int(kind[0])}
    tensors = saved(AutoModelForImageClassification if labels else AutoModel, name, folder, **labels)
    config = ModelConfig(backbone=str(folder), image_size=SIZE)
    model = build_classifier(config, seed=1)
    head = head_of(model)
    prefix = model.base_model_prefix + "."
    loaded = {k.removeprefix(prefix): v for k, v in model.state_dict().items() if not k.startswith("classifier.")}
    assert equal_tensors(loaded, tensors)
    assert model.config.id2label == {0: "None", 1: "Roadwork"} and head.out_features == 2
    assert not head.bias.any() and 0.01 < head.weight.std() < 0.03, "a trained head is no start for another question"
    assert torch.equal(head.weight, head_of(build_classifier(config, seed=1)).weight)
    assert not torch.equal(head.weight, head_of(build_classifier(config, seed=2)).weight)
    model.save_pretrained(tmp_path / "candidate")
    assert equal_tensors(load_classifier(tmp_path / "candidate").state_dict(), model.state_dict())


def test_a_half_precision_backbone_becomes_float32(tmp_path: Path) -> None:
    saved_base("dinov2", tmp_path)
    half = AutoModel.from_pretrained(tmp_path).to(torch.bfloat16)
    half.save_pretrained(tmp_path)
    model = build_classifier(ModelConfig(backbone=str(tmp_path), image_size=SIZE), 0)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and model.config.dtype == torch.float32
    assert torch.equal(model.dinov2.embeddings.cls_token, half.embeddings.cls_token.float())


@every_architecture
def test_a_backbone_serves_another_image_size_where_its_positions_allow_it(name: str, tmp_path: Path) -> None:
    saved_base(name, tmp_path)
    config = ModelConfig(backbone=str(tmp_path), image_size=2 * SIZE)
    if has_fixed_size(name):
        refused(RecipeError, lambda: build_classifier(config, 0), "model.image_size", 56, 28)
    else:
        logits = build_classifier(config, 0)(pixel_values=torch.zeros(1, 3, 2 * SIZE, 2 * SIZE)).logits
        assert logits.shape == (1, 2)


def test_fields_of_the_config_reach_a_backbone(tmp_path: Path) -> None:
    saved_base("dinov2", tmp_path)
    config = {"model_type": "dinov2", "drop_path_rate": 0.25}
    model = build_classifier(ModelConfig(backbone=str(tmp_path), config=config, image_size=SIZE), 0)
    assert model.config.drop_path_rate == 0.25


def _edit(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def _base(damage: Callable[[Path], object] = lambda folder: None) -> Callable[[Path], str]:
    """A backbone in a folder, damaged."""

    def make(folder: Path) -> str:
        saved_base("dinov2", folder)
        damage(folder)
        return str(folder)

    return make


def _wide(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))


_TENSORS, _CONFIG = "model.safetensors", "config.json"
_CUT = lambda f: (f / _TENSORS).write_bytes((f / _TENSORS).read_bytes()[:-50])  # noqa: E731
_RESNET = lambda f: (f / _CONFIG).write_text('{"model_type": "resnet"}')  # noqa: E731
_PATCH = "model.config.patch_size"
WRONG: dict[str, tuple[Callable[[Path], str] | None, dict[str, Any], int, type[NatixError], list[object]]] = {
    "image size": (None, TINY["vit"], 30, RecipeError, ["model.image_size", 30, 14, "28 or 42"]),
    "tiny image": (None, TINY["vit"], 13, RecipeError, ["model.image_size", 13, "use 14"]),
    "vit size": (None, TINY["vit"] | {"image_size": 42}, 28, RecipeError, ["model.image_size", 28, 42]),
    "field": (None, TINY["vit"] | {"hiden_size": 8}, 28, RecipeError, ["model.config.hiden_size", "'hidden_size'"]),
    "model type": (None, {"model_type": "vitt"}, 28, RecipeError, ["model.config.model_type", "vitt", *ARCHITECTURES]),
    "value": (None, TINY["vit"] | {"hidden_size": "wide"}, 28, RecipeError, ["model.config", "hidden_size"]),
    "activation": (None, TINY["vit"] | {"hidden_act": "nope"}, 28, RecipeError, ["model.config", "nope"]),
    "patch list": (None, TINY["vit"] | {"patch_size": [14, 14]}, 28, RecipeError, [_PATCH, [14, 14]]),
    "patch 0": (None, TINY["vit"] | {"patch_size": 0}, 28, RecipeError, [_PATCH, 0]),
    "labels": (None, TINY["vit"] | {"id2label": {0: "a", 1: "b"}}, 28, RecipeError, ["model.config.id2label"]),
    "no folder": (str, {}, 28, UsageError, ["model.backbone", "backbone"]),
    "no Hub": (lambda f: "nobody/nothing", {}, 28, UsageError, ["model.backbone", "nobody/nothing"]),
    "empty folder": (lambda f: (f.mkdir(), str(f))[1], {}, 28, UsageError, ["model.backbone"]),
    "no packaged": (lambda f: "packaged:nothing", {}, 28, RecipeError, ["model.backbone", "nothing"]),
    "incomplete": (_base(_edit(lambda t: t.pop("embeddings.cls_token"))), {}, 28, UsageError, [1, "cls_token"]),
    "cut off": (_base(_CUT), {}, 28, UsageError, ["model.backbone"]),
    "no weights": (_base(lambda f: (f / _TENSORS).unlink()), {}, 28, UsageError, ["model.backbone"]),
    "bad config": (_base(_wide), {}, 28, UsageError, ["model.backbone"]),
    "resnet": (_base(_RESNET), {}, 28, RecipeError, ["model.backbone", "resnet", "vit", "dinov2"]),
    "more layers": (_base(), {"num_hidden_layers": 3}, 28, UsageError, ["model.backbone", "tensors"]),
    "other width": (_base(), {"hidden_size": 64}, 28, UsageError, ["model.backbone", "tensors"]),
    "other type": (_base(), {"model_type": "vit"}, 28, RecipeError, ["model.config.model_type", "'vit'", "dinov2"]),
    "backbone field": (_base(), {"drop_path": 0.1}, 28, RecipeError, ["config.drop_path", "'drop_path_rate'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_built_is_one_line(case: str, tmp_path: Path) -> None:
    make, fields, size, error, facts = WRONG[case]
    config = ModelConfig(backbone=make(tmp_path / "backbone") if make else None, config=fields, image_size=size)
    refused(error, lambda: build_classifier(config, 0), *facts)
    refused(RecipeError, lambda: ModelConfig(config={"hidden_size": 8}), "backbone", "model.config", "model_type")


def _leftover_adapter(folder: Path) -> None:
    """What `from_pretrained` would attach on top of the merged weights."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]}))


DAMAGE: dict[str, tuple[Callable[[Path], Any], list[object]]] = {
    "missing": (_edit(lambda t: t.pop("classifier.bias")), ["missing", "classifier.bias"]),
    "extra": (_edit(lambda t: t.update(more=torch.zeros(1))), ["unexpected", "more"]),
    "misshapen": (_edit(lambda t: t.update({"classifier.bias": torch.zeros(3)})), []),
    "half the file": (lambda f: (f / _TENSORS).write_bytes(b"\0" * 40), []),
    "no file": (lambda f: (f / _TENSORS).unlink(), []),
    "no config": (lambda f: (f / _CONFIG).unlink(), []),
    "half a config": (lambda f: (f / _CONFIG).write_text("{"), []),
    "leftover adapter": (_leftover_adapter, ["adapter_config.json", "remove"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["dinov2", "dinov3_vit"])
def test_a_folder_that_does_not_fit_is_refused(name: str, damage: str, tmp_path: Path) -> None:
    tiny(name).save_pretrained(folder := tmp_path / "model")
    change, facts = DAMAGE[damage]
    change(folder)
    refused(VerificationError, lambda: load_classifier(folder), folder, *facts)


@pytest.mark.parametrize("registers", [0, 2, 4])
def test_the_dinov3_head_is_linear_on_cls_and_mean_patch(registers: int) -> None:
    model = tiny("dinov3_vit", num_register_tokens=registers).eval()
    assert isinstance(model, DINOv3ViTForImageClassification)
    pixels = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0, 1])
    with torch.inference_mode():
        tokens = model.dinov3_vit(pixels).last_hidden_state
        outputs = model(pixel_values=pixels, labels=labels)
        assert tokens.shape[1] == 1 + registers + 4, "2 x 2 patches"
        inputs = torch.cat([tokens[:, 0], tokens[:, -4:].sum(1) / 4], dim=1)
        expected = inputs @ model.classifier.weight.T + model.classifier.bias
        loss = -torch.log_softmax(expected, 1)[torch.arange(5), labels].mean()
    torch.testing.assert_close(outputs.logits, expected)
    torch.testing.assert_close(outputs.loss, loss)
    assert model(pixel_values=pixels).loss is None


def test_the_score_is_label_1_over_label_0_in_float64() -> None:
    score = logit_difference(np.array([[1.0, 3.0], [2.0, -1.0]], dtype=np.float32))
    assert score.tolist() == [2.0, -3.0] and score.dtype == np.float64
