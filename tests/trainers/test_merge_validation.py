"""The proof of a merge: it passes what is sound and catches every planted fault."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY, tiny_backbone
from facts import tells
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file, save_file

from natix_hf.errors import MergeMismatchError
from natix_hf.models.adapters import ADAPTERS, add_adapter
from natix_hf.models.classifier import build_classifier, load_backbone, load_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.ssl import apply_explora
from natix_hf.trainers.merge_validation import UNMERGED, MergeValidationCallback

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

    callback = MergeValidationCallback(model=adapted, images=lambda: IMAGES, save=save, load=load)
    arguments, state = SimpleNamespace(output_dir=str(folder)), SimpleNamespace(is_world_process_zero=True)
    try:
        callback.on_train_end(arguments, state, None)  # type: ignore[arg-type]
    except MergeMismatchError as error:
        assert callback.proof is None and (folder / UNMERGED).is_file()
        assert tells(error)
        raise
    return callback.proof


def _refusal(*args: Any, **kwargs: Any) -> MergeMismatchError:
    with pytest.raises(MergeMismatchError) as refused:
        _prove(*args, **kwargs)
    return refused.value


def test_a_sound_merge_is_proven(tmp_path: Path) -> None:
    proof = _prove(_lora(), tmp_path)
    assert proof["max_difference"] <= 1e-5 and proof["adapter_effect"] > 0.1
    assert proof["merged_layers"] == proof["weights_recomputed"] == 4 and proof["images"] == 6
    assert 0 <= proof["max_weight_difference"] <= 1e-6 and proof["rows_from"] == "given"
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
    [(_scaled, "v_proj.weight"), (_lost_norm, "layernorm.weight"), (_dropped_head, "classifier.weight"),
     (_dropped_bias, "classifier.bias"), (_lost_scale, "layer_scale1.lambda1"), (_nan, "fc1.weight holds NaN")],
)  # fmt: skip
def test_faults_in_the_merged_model(fault: Callable[[Any], None], says: str, tmp_path: Path) -> None:
    adapted = _lora()
    trained = {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}
    assert tells(_refusal(adapted, tmp_path, spoil=fault), says, tmp_path / "model", "max_difference", "tolerance")
    kept = load_file(tmp_path / UNMERGED)  # the unmerged weights are not lost
    assert kept.keys() == trained.keys() and all(torch.equal(kept[n], trained[n]) for n in kept)
    assert all(torch.equal(p, trained[n]) for n, p in adapted.named_parameters() if p.requires_grad)


def test_one_entry_that_no_output_shows(tmp_path: Path) -> None:
    """Off by 0.001 in a weight whose input is always 0: every output stays the same."""
    adapted = _lora()
    norm = adapted.get_base_model().get_submodule("dinov2.encoder.layer.1.norm1")
    with torch.no_grad():
        norm.weight[5] = norm.bias[5] = 0.0

    def fault(merged: Any) -> None:
        merged.get_submodule("dinov2.encoder.layer.1.attention.q_proj").weight[3, 5] += 1e-3

    error = _refusal(adapted, tmp_path, spoil=fault)
    assert tells(error, "layer.1.attention.q_proj.weight", "differs by 0.001")
    told = dict(part.rsplit(" ", 1) for part in str(error).rpartition("(")[2].rstrip(")").split(", "))
    assert float(told["max_difference"]) < 1e-5 and float(told["max_weight_difference"]) == pytest.approx(
        1e-3, rel=1e-2
    )


def test_equal_weights_under_another_config(tmp_path: Path) -> None:
    def fault(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"layer_norm_eps": 0.5}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    assert tells(_refusal(_lora(), tmp_path, spoil_folder=fault), "outputs differ", "max_weight_difference 0")


@pytest.mark.parametrize("lost", ["encoder.layer.0.norm1.weight", "encoder.layer.2.mlp.fc1.weight",
                                  "encoder.layer.2.attention.q_proj.bias", "embeddings.cls_token"])  # fmt: skip
def test_what_a_backbone_would_lose_without_a_word(lost: str, tmp_path: Path) -> None:
    """The norms, the unfrozen block and the cls token go back to the stock ones, as PEFT's own saving leaves them."""
    stock = tiny_backbone("dinov2").state_dict()[lost]

    def fault(merged: Any) -> None:
        merged.get_parameter(lost).copy_(stock)

    adapted = _stir(apply_explora(tiny_backbone("dinov2"), rank=4))
    assert tells(_refusal(adapted, tmp_path, load_backbone, spoil=fault), lost, "no adapter touches")


def test_an_adapter_file_beside_the_model(tmp_path: Path) -> None:
    assert tells(_refusal(_lora(), tmp_path, spoil_folder=_left_file), "adapter_model.safetensors", tmp_path / "model")


@pytest.mark.parametrize(("fault", "says"), [(_head_not_saved, "classifier.bias"),
                                             (_nothing_saved, "cannot be loaded")])  # fmt: skip
def test_a_folder_that_does_not_load(fault: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    assert tells(_refusal(_lora(), tmp_path, spoil_folder=fault), says)


def test_a_plain_model_whose_file_differs(tmp_path: Path) -> None:
    refused = _refusal(tiny_backbone("dinov2"), tmp_path, load_backbone, spoil_folder=_plain_file_differs)
    assert tells(refused, "layernorm.weight", "no adapter touches")


@pytest.mark.parametrize(
    ("module", "says"), [("v_proj", "NaN or infinity before"), ("q_proj", "q_proj.weight holds NaN")]
)
def test_a_training_that_ended_in_nan(module: str, says: str, tmp_path: Path) -> None:
    """Attention on a CPU swallows a NaN among the queries: the outputs are finite, the weights are looked at too."""
    adapted = _lora()
    with torch.no_grad():
        next(p for n, p in adapted.named_parameters() if f"{module}.lora_B" in n)[0, 0] = float("nan")
    assert tells(_refusal(adapted, tmp_path), says)


@pytest.fixture(scope="module")
def classifier() -> Any:
    return _classifier()


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_is_merged_as_it_computed(name: str, classifier: Any, tmp_path: Path) -> None:
    adapted = _stir(add_adapter(copy.deepcopy(classifier), name, {}, total_steps=10, seed=0))
    proof = _prove(adapted, tmp_path)
    assert proof["adapter_effect"] > 1e-3 and proof["max_difference"] <= 1e-4
    # A norm is no linear map: there PEFT's own result is compared with the file.
    assert proof["weights_recomputed"] == (0 if name == "ln_tuning" else proof["merged_layers"])
    assert proof["merged_layers"] >= 4 and proof["max_weight_difference"] <= 1e-5


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_unmerged_weights_of_every_adapter_are_kept(name: str, classifier: Any, tmp_path: Path) -> None:
    adapted = add_adapter(copy.deepcopy(classifier), name, {}, total_steps=10, seed=0)
    trained = {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}
    assert tells(_refusal(adapted, tmp_path, spoil=_dropped_head), "classifier.weight")
    kept = load_file(tmp_path / UNMERGED)
    assert kept.keys() == trained.keys() and all(torch.equal(kept[n], trained[n]) for n in kept)


def test_a_merge_that_changed_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    assert tells(_refusal(_lora(), tmp_path), "layer.0.attention.q_proj.weight", "max_weight_difference")


@pytest.mark.parametrize("factor", [0.5, 1.001])
def test_a_merge_by_a_wrong_scale(factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = LoraLinear.get_delta_weight
    monkeypatch.setattr(LoraLinear, "get_delta_weight", lambda self, adapter: factor * right(self, adapter))
    assert tells(_refusal(_lora(), tmp_path), "layer.0.attention.q_proj.weight", "max_weight_difference")


def test_a_norm_that_is_saved_wrongly(classifier: Any, tmp_path: Path) -> None:
    """What no linear map tells is compared with the model in memory."""
    adapted = _stir(add_adapter(copy.deepcopy(classifier), "ln_tuning", {}, total_steps=10, seed=0))
    norm = "dinov2.encoder.layer.0.norm1.weight"
    spoilt = _refusal(adapted, tmp_path, spoil_folder=lambda f: _edit(f, lambda state: state[norm].add_(1e-6)))
    assert tells(spoilt, norm, "read back")


def test_an_adapter_that_peft_cannot_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> Any:
        raise NotImplementedError("merging is not implemented")

    monkeypatch.setattr(PeftModel, "merge_and_unload", refuse, raising=False)
    assert tells(_refusal(_lora(), tmp_path), "PEFT cannot merge LORA", "merging is not implemented")


def test_a_layer_of_peft_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def merge_in_place(self: Any) -> Any:
        self.merge_adapter()
        return self.get_base_model()

    monkeypatch.setattr(PeftModel, "merge_and_unload", merge_in_place, raising=False)
    assert tells(_refusal(_lora(), tmp_path), "Linear of PEFT")


def test_the_other_ranks_write_nothing(tmp_path: Path) -> None:
    callback = MergeValidationCallback(
        model=_lora(), images=lambda: IMAGES, save=lambda merged: tmp_path, load=load_classifier
    )
    state = SimpleNamespace(is_world_process_zero=False)
    callback.on_train_end(SimpleNamespace(output_dir=str(tmp_path)), state, None)  # type: ignore[arg-type]
    assert callback.proof is None and list(tmp_path.iterdir()) == []
