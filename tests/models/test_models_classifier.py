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
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedModel

from natix_hf.errors import NatixError, RecipeError, UsageError, VerificationError
from natix_hf.models.classifier import (
    ARCHITECTURES,
    build_classifier,
    head_of,
    load_classifier,
    load_strictly,
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


def saved_base(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    model = AutoModel.from_config(AutoConfig.for_model(**(TINY[name] | {"image_size": SIZE}))).to(dtype)
    for tensor in model.state_dict().values():  # no tensor may stand at the value that a fresh one would have
        tensor.add_(torch.randn_like(tensor) * 0.05)
    model.save_pretrained(folder)
    return {key: value for key, value in model.state_dict().items() if not key.startswith("pooler.")}


def saved_classifier(name: str, folder: Path, labels: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    config = AutoConfig.for_model(**(TINY[name] | {"image_size": SIZE, "num_labels": labels}))
    model = AutoModelForImageClassification.from_config(config)
    for tensor in model.state_dict().values():
        tensor.add_(torch.randn_like(tensor) * 0.05)
    model.save_pretrained(folder)
    prefix = model.base_model_prefix + "."
    return {k.removeprefix(prefix): v for k, v in model.state_dict().items() if not k.startswith("classifier.")}


@every_architecture
@pytest.mark.parametrize("kind", ["base", "2 labels", "5 labels"])
def test_every_tensor_of_a_saved_backbone_arrives_and_the_head_is_fresh(name: str, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    saved = saved_base(name, folder) if kind == "base" else saved_classifier(name, folder, int(kind[0]))
    config = ModelConfig(backbone=str(folder), image_size=SIZE)
    model = build_classifier(config, seed=1)
    head = head_of(model)
    prefix = model.base_model_prefix + "."
    loaded = {k.removeprefix(prefix): v for k, v in model.state_dict().items() if not k.startswith("classifier.")}
    assert equal_tensors(loaded, saved)
    assert model.config.id2label == {0: "None", 1: "Roadwork"} and head.out_features == 2
    assert not head.bias.any() and 0.01 < head.weight.std() < 0.03, "a trained head is no start for another question"
    assert torch.equal(head.weight, head_of(build_classifier(config, seed=1)).weight)
    assert not torch.equal(head.weight, head_of(build_classifier(config, seed=2)).weight)
    model.save_pretrained(tmp_path / "candidate")
    assert equal_tensors(load_classifier(tmp_path / "candidate").state_dict(), model.state_dict())


def test_a_half_precision_backbone_becomes_float32(tmp_path: Path) -> None:
    saved = saved_base("dinov2", tmp_path, torch.bfloat16)
    model = build_classifier(ModelConfig(backbone=str(tmp_path), image_size=SIZE), 0)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and model.config.dtype == torch.float32
    key = "embeddings.cls_token"
    assert torch.equal(model.state_dict()["dinov2." + key], saved[key].float())


@every_architecture
def test_a_backbone_serves_another_image_size_where_its_positions_allow_it(name: str, tmp_path: Path) -> None:
    saved_base(name, tmp_path)
    config = ModelConfig(backbone=str(tmp_path), image_size=2 * SIZE)
    if name == "vit":
        with pytest.raises(RecipeError, match=r"model\.image_size 56: this vit is fixed to 28"):
            build_classifier(config, 0)
    else:
        logits = build_classifier(config, 0)(pixel_values=torch.zeros(1, 3, 2 * SIZE, 2 * SIZE)).logits
        assert logits.shape == (1, 2)


def test_fields_of_the_config_reach_a_backbone(tmp_path: Path) -> None:
    saved_base("dinov2", tmp_path)
    config = {"model_type": "dinov2", "drop_path_rate": 0.25}
    model = build_classifier(ModelConfig(backbone=str(tmp_path), config=config, image_size=SIZE), 0)
    assert model.config.drop_path_rate == 0.25


def _incomplete(folder: Path) -> str:
    saved_base("dinov2", folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["embeddings.cls_token"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def _cut_off(folder: Path) -> str:
    saved_base("dinov2", folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    return str(folder)


def _without_weights(folder: Path) -> str:
    saved_base("dinov2", folder)
    (folder / "model.safetensors").unlink()
    return str(folder)


def _damaged_config(folder: Path) -> str:
    saved_base("dinov2", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    return str(folder)


def _resnet(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "resnet"}')
    return str(folder)


def _base(folder: Path) -> str:
    saved_base("dinov2", folder)
    return str(folder)


WRONG: dict[str, tuple[Callable[[Path], str] | None, dict[str, Any], int, type[NatixError], str]] = {
    "image size": (None, TINY["vit"], 30, RecipeError, "30 is not a multiple of the patch size 14: use 28 or 42"),
    "tiny image": (None, TINY["vit"], 13, RecipeError, "13 is not a multiple of the patch size 14: use 14"),
    "vit size": (None, TINY["vit"] | {"image_size": 42}, 28, RecipeError, "this vit is fixed to 42"),
    "field": (None, TINY["vit"] | {"hiden_size": 8}, 28, RecipeError, "hiden_size for a vit.*'hidden_size'"),
    "model type": (None, {"model_type": "vitt"}, 28, RecipeError, "model_type is 'vitt': supported is vit | dinov2"),
    "value": (None, TINY["vit"] | {"hidden_size": "wide"}, 28, RecipeError, "model.config: .*hidden_size"),
    "activation": (None, TINY["vit"] | {"hidden_act": "nope"}, 28, RecipeError, "model.config: .*nope"),
    "patch list": (None, TINY["vit"] | {"patch_size": [14, 14]}, 28, RecipeError, r"patch_size is \[14, 14\]"),
    "patch 0": (None, TINY["vit"] | {"patch_size": 0}, 28, RecipeError, "patch_size is 0"),
    "labels": (None, TINY["vit"] | {"id2label": {0: "a", 1: "b"}}, 28, RecipeError, "model.config.id2label"),
    "no folder": (lambda f: str(f), {}, 28, UsageError, "model.backbone: .*backbone is neither"),
    "no Hub": (lambda f: "nobody/nothing", {}, 28, UsageError, "model.backbone: nobody/nothing is neither"),
    "empty folder": (lambda f: (f.mkdir(), str(f))[1], {}, 28, UsageError, "model.backbone: "),
    "no packaged": (lambda f: "packaged:nothing", {}, 28, RecipeError, "no packaged backbone 'nothing'"),
    "incomplete": (_incomplete, {}, 28, UsageError, "lacks 1 tensors .*dinov2.embeddings.cls_token"),
    "cut off": (_cut_off, {}, 28, UsageError, "model.backbone: .* cannot be loaded"),
    "no weights": (_without_weights, {}, 28, UsageError, "model.backbone: .* cannot be loaded"),
    "bad config": (_damaged_config, {}, 28, UsageError, "model.backbone: "),
    "resnet": (_resnet, {}, 28, RecipeError, "model.backbone is a resnet: supported is vit"),
    "more layers": (_base, {"num_hidden_layers": 3}, 28, UsageError, "lacks .* tensors"),
    "other width": (_base, {"hidden_size": 64}, 28, UsageError, "lacks .* tensors"),
    "other type": (_base, {"model_type": "vit"}, 28, RecipeError, "model_type is 'vit': the backbone is a dinov2"),
    "backbone field": (_base, {"drop_path": 0.1}, 28, RecipeError, "model.config.drop_path .*'drop_path_rate'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_built_is_one_line(case: str, tmp_path: Path) -> None:
    make, fields, size, error, expected = WRONG[case]
    backbone = make(tmp_path / "backbone") if make else None
    with pytest.raises(error, match=expected) as caught:
        build_classifier(ModelConfig(backbone=backbone, config=fields, image_size=size), 0)
    assert "\n" not in str(caught.value)


def test_nothing_to_start_from_is_an_error() -> None:
    with pytest.raises(RecipeError, match="name a backbone"):
        ModelConfig(config={"hidden_size": 8})


def _edit(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def _leftover_adapter(folder: Path) -> None:
    """What `from_pretrained` would attach on top of the merged weights."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]}))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (_edit(lambda t: t.pop("classifier.bias")), "1 missing keys, as classifier.bias"),
    "extra": (_edit(lambda t: t.update(more=torch.zeros(1))), "1 unexpected keys, as more"),
    "misshapen": (_edit(lambda t: t.update({"classifier.bias": torch.zeros(3)})), "model"),
    "half the file": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40), "cannot be loaded"),
    "no file": (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded"),
    "no config": (lambda f: (f / "config.json").unlink(), "cannot be loaded"),
    "half a config": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
    "leftover adapter": (_leftover_adapter, "adapter_config.json beside a merged model"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["dinov2", "dinov3_vit"])
def test_a_folder_that_does_not_fit_is_refused(name: str, damage: str, tmp_path: Path) -> None:
    tiny(name).save_pretrained(tmp_path / "model")
    change, expected = DAMAGE[damage]
    change(tmp_path / "model")
    with pytest.raises(VerificationError, match=expected) as caught:
        load_classifier(tmp_path / "model")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@every_architecture
def test_loading_with_the_models_own_class_and_with_auto(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    model.save_pretrained(tmp_path)
    assert equal_tensors(load_strictly(type(model), tmp_path).state_dict(), model.state_dict())
    auto = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(auto) is type(model) and auto.dtype == torch.float32
    assert equal_tensors(auto.state_dict(), model.state_dict())


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
