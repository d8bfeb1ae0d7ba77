"""The proof of a merge: it passes what is sound and catches every planted fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY, tiny_backbone
from peft import PeftModel
from safetensors.torch import load_file, save_file

from natix_hf.callbacks.merge_validation import UNMERGED, MergeValidationCallback
from natix_hf.errors import MergeMismatchError
from natix_hf.models.adapters import ADAPTERS, add_adapter
from natix_hf.models.classifier import build_classifier, load_backbone, load_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.ssl import apply_explora

IMAGES = torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _stir(model: Any) -> Any:
    """As after training: everything trainable is somewhere else."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def _classifier() -> Any:
    return build_classifier(ModelConfig(config=TINY["dinov2"] | {"initializer_range": 0.2}, image_size=28), 0)


def _lora() -> PeftModel:
    adapted: PeftModel = _stir(add_adapter(_classifier(), "lora", {}, total_steps=1, seed=0))
    return adapted


def _prove(
    adapted: Any, folder: Path, load: Any = load_classifier, spoil: Callable[[Any], None] = lambda merged: None,
    spoil_folder: Callable[[Path], None] = lambda folder: None,
) -> Any:  # fmt: skip
    def save(merged: Any) -> Path:
        with torch.no_grad():
            spoil(merged)
        merged.save_pretrained(folder / "model")
        spoil_folder(folder / "model")
        return folder / "model"

    callback = MergeValidationCallback(adapted, lambda: IMAGES, save, load)
    arguments, state = SimpleNamespace(output_dir=str(folder)), SimpleNamespace(is_world_process_zero=True)
    try:
        callback.on_train_end(arguments, state, None)  # type: ignore[arg-type]
    except MergeMismatchError as error:
        assert callback.proof is None and (folder / UNMERGED).is_file()
        assert "\n" not in str(error)
        raise
    return callback.proof


def test_a_sound_merge_is_proven(tmp_path: Path) -> None:
    proof = _prove(_lora(), tmp_path)
    assert proof["max_difference"] <= 1e-5 and proof["adapter_effect"] > 0.1
    assert proof["merged_layers"] == 4 and proof["images"] == 6
    assert not (tmp_path / UNMERGED).exists()


@pytest.mark.parametrize("model_type", ["vit", "dinov2", "dinov2_with_registers"])
def test_an_explora_backbone_is_proven_whole(model_type: str, tmp_path: Path) -> None:
    """LoRA merged; the unfrozen block, norms and cls token, which PEFT's own saving would lose, are there."""
    stock = {k: v.clone() for k, v in tiny_backbone(model_type).state_dict().items()}
    proof = _prove(_stir(apply_explora(tiny_backbone(model_type), rank=4)), tmp_path, load_backbone)
    assert proof["max_difference"] <= 1e-4 and proof["merged_layers"] == 4
    stored = load_backbone(tmp_path / "model").state_dict()
    moved = {name for name in stored if not torch.equal(stored[name], stock[name])}
    assert "embeddings.cls_token" in moved and "layernorm.weight" in moved
    assert any("q_proj" in name for name in moved) and any(".2.mlp.fc1" in name for name in moved)
    assert not any(".0.mlp" in name for name in moved)


def test_a_plain_model_is_proven_too(tmp_path: Path) -> None:
    assert _prove(tiny_backbone("dinov2"), tmp_path, load_backbone)["merged_layers"] == 0


def _scaled(merged: Any) -> None:
    merged.get_submodule("dinov2.encoder.layer.0.attention.v_proj").weight.mul_(1.01)


def _lost_norm(merged: Any) -> None:
    merged.dinov2.layernorm.weight.fill_(1.0).add_(1e-6)


def _dropped_head(merged: Any) -> None:
    torch.nn.init.normal_(merged.classifier.weight)


def _dropped_bias(merged: Any) -> None:
    merged.classifier.bias.zero_()


def _lost_scale(merged: Any) -> None:
    merged.dinov2.encoder.layer[1].layer_scale1.lambda1.add_(1e-6)


def _nan(merged: Any) -> None:
    merged.dinov2.encoder.layer[1].mlp.fc1.weight[0, 0] = float("nan")


def _left_file(folder: Path) -> None:
    save_file({"lora_A": torch.zeros(1)}, folder / "adapter_model.safetensors")


def _edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _head_not_saved(folder: Path) -> None:
    _edit(folder, lambda state: (state.pop("classifier.weight"), state.pop("classifier.bias")))


def _plain_file_differs(folder: Path) -> None:
    _edit(folder, lambda state: state["layernorm.weight"].add_(1e-6))


def _nothing_saved(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("fault", "says"),
    [(_scaled, "the answers differ"), (_lost_norm, "layernorm.weight"), (_dropped_head, "classifier.weight"),
     (_dropped_bias, "classifier.bias"), (_lost_scale, "layer_scale1.lambda1"), (_nan, "fc1.weight holds NaN")],
)  # fmt: skip
def test_faults_in_the_merged_model(fault: Callable[[Any], None], says: str, tmp_path: Path) -> None:
    adapted = _lora()
    trained = {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}
    with pytest.raises(MergeMismatchError, match=says):
        _prove(adapted, tmp_path, spoil=fault)
    kept = load_file(tmp_path / UNMERGED)  # the unmerged weights are not lost
    assert kept.keys() == trained.keys() and all(torch.equal(kept[n], trained[n]) for n in kept)


@pytest.mark.parametrize("lost", ["encoder.layer.0.norm1.weight", "encoder.layer.2.mlp.fc1.weight",
                                  "encoder.layer.2.attention.q_proj.bias", "embeddings.cls_token"])  # fmt: skip
def test_what_a_backbone_would_lose_without_a_word(lost: str, tmp_path: Path) -> None:
    """The norms, the unfrozen block and the cls token go back to the stock ones, as PEFT's own saving leaves them."""
    stock = tiny_backbone("dinov2").state_dict()[lost]

    def fault(merged: Any) -> None:
        merged.get_parameter(lost).copy_(stock)

    with pytest.raises(MergeMismatchError, match=rf"{lost}, which no adapter touches, changed"):
        _prove(_stir(apply_explora(tiny_backbone("dinov2"), rank=4)), tmp_path, load_backbone, spoil=fault)


def test_an_adapter_file_beside_the_model(tmp_path: Path) -> None:
    with pytest.raises(MergeMismatchError, match=r"adapter_model\.safetensors lies beside it"):
        _prove(_lora(), tmp_path, spoil_folder=_left_file)


@pytest.mark.parametrize(("fault", "says"), [(_head_not_saved, "missing keys, as classifier"),
                                             (_nothing_saved, "cannot be loaded")])  # fmt: skip
def test_a_folder_that_does_not_load(fault: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    with pytest.raises(MergeMismatchError, match=says):
        _prove(_lora(), tmp_path, spoil_folder=fault)


def test_a_plain_model_whose_file_differs(tmp_path: Path) -> None:
    with pytest.raises(MergeMismatchError, match=r"layernorm\.weight, which no adapter touches, changed"):
        _prove(tiny_backbone("dinov2"), tmp_path, load_backbone, spoil_folder=_plain_file_differs)


@pytest.mark.parametrize(
    ("module", "says"),
    [("v_proj", "it answered NaN or infinity before it was merged"), ("q_proj", r"q_proj\.weight holds NaN")],
)
def test_a_training_that_ended_in_nan(module: str, says: str, tmp_path: Path) -> None:
    """Attention on a CPU swallows a NaN among the queries: the answers are finite, the weights are looked at too."""
    adapted = _lora()
    with torch.no_grad():
        next(p for n, p in adapted.named_parameters() if f"{module}.lora_B" in n)[0, 0] = float("nan")
    with pytest.raises(MergeMismatchError, match=says):
        _prove(adapted, tmp_path)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_unmerged_weights_of_every_adapter_are_kept(name: str, tmp_path: Path) -> None:
    adapted = add_adapter(_classifier(), name, {}, total_steps=10, seed=0)
    trained = {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}
    with pytest.raises(MergeMismatchError, match=r"classifier\.weight"):
        _prove(adapted, tmp_path, spoil=_dropped_head)
    kept = load_file(tmp_path / UNMERGED)
    assert kept.keys() == trained.keys() and all(torch.equal(kept[n], trained[n]) for n in kept)


def test_a_merge_that_changed_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    with pytest.raises(MergeMismatchError, match="changed no weight, though the adapter has an effect"):
        _prove(_lora(), tmp_path)


def test_a_layer_of_peft_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def merge_in_place(self: Any) -> Any:
        self.merge_adapter()
        return self.get_base_model()

    monkeypatch.setattr(PeftModel, "merge_and_unload", merge_in_place, raising=False)
    with pytest.raises(MergeMismatchError, match="of PEFT is left in it"):
        _prove(_lora(), tmp_path, load=lambda folder: build_classifier(
            ModelConfig(config=TINY["dinov2"], image_size=28), 0
        ))  # fmt: skip


def test_the_other_ranks_do_nothing(tmp_path: Path) -> None:
    callback = MergeValidationCallback(_lora(), lambda: IMAGES, lambda merged: tmp_path, load_classifier)
    state = SimpleNamespace(is_world_process_zero=False)
    callback.on_train_end(SimpleNamespace(output_dir=str(tmp_path)), state, None)  # type: ignore[arg-type]
    assert callback.proof is None and list(tmp_path.iterdir()) == []
