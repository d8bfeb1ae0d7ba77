"""DoRAN against its formula, row by row and in float64; where it starts; what it does not take."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from peft import PeftModel
from refusals import refused
from torch.func import functional_call
from torch.nn.functional import cross_entropy, dropout, linear

from natix_hf.errors import RecipeError, UsageError
from natix_hf.models.adapters import adapter_config, add_adapter
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.tuner import count_trainable

TAU = 0.3
IMAGES = torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1] * 3)


def _classifier() -> Any:
    return build_classifier(ModelConfig(config=TINY["dinov2"] | {"initializer_range": 0.2}, image_size=28), seed=0)


def _adapted(**options: Any) -> Any:
    return add_adapter(_classifier(), "doran", {"r": 3, "lora_alpha": 6, "tau": TAU} | options, total_steps=9, seed=0)


def _stirred(model: PeftModel) -> Any:
    """Every trained tensor somewhere else than at its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def _layers(model: Any) -> dict[str, Any]:
    return {name: part for name, part in model.get_base_model().named_modules() if hasattr(part, "lora_A")}


def _tensors(layer: Any) -> list[torch.Tensor]:
    """A, B, m and the logarithm of what τ has grown by."""
    magnitude = layer.lora_magnitude_vector["default"]
    return [layer.lora_A["default"].weight, layer.lora_B["default"].weight, magnitude.weight, magnitude.log_tau_change]


def _weight(base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, m: torch.Tensor, grown: torch.Tensor) -> Any:
    """m (W0 + s BA) / (norm + τ), one row at a time."""
    tau, rows = TAU * grown[0].exp(), []
    for i in range(len(base)):
        row = base[i] + 2 * sum(b[i, k] * a[k] for k in range(len(a)))  # lora_alpha / r
        rows.append(m[i] * row / (row.pow(2).sum().sqrt() + tau))
    return torch.stack(rows)


def test_it_is_its_formula_and_has_its_gradient() -> None:
    stock = _classifier().double()
    model = _stirred(_adapted()).double()
    layers = _layers(model)
    given = {name: [t.detach().clone().requires_grad_() for t in _tensors(layer)] for name, layer in layers.items()}
    weights = {f"{name}.weight": _weight(stock.get_submodule(name).weight, *given[name]) for name in layers}
    head = {f"classifier.{n}": p for n, p in model.get_base_model().classifier.named_parameters()}
    wanted = functional_call(stock, weights | head, kwargs={"pixel_values": IMAGES.double()}).logits
    found = model(pixel_values=IMAGES.double()).logits
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    cross_entropy(wanted, LABELS).backward()
    model.zero_grad()
    cross_entropy(found, LABELS).backward()
    assert len(layers) == 4
    for name, layer in layers.items():
        for tensor, reference in zip(_tensors(layer), given[name], strict=True):
            assert tensor.requires_grad and float(reference.grad.abs().max()) > 1e-6
            torch.testing.assert_close(tensor.grad, reference.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_starts_at_a_base_of_half_precision(dtype: torch.dtype) -> None:
    """PEFT trains its own parameters in float32: m may not keep the digits of the base."""
    stock = _classifier().to(dtype)
    wanted = stock(pixel_values=IMAGES.to(dtype)).logits
    model = add_adapter(stock, "doran", {}, total_steps=9, seed=0)
    assert {p.dtype for name, p in model.named_parameters() if "lora" in name} == {torch.float32}
    assert torch.equal(model(pixel_values=IMAGES.to(dtype)).logits, wanted)


def test_it_starts_at_the_very_base_and_costs_one_number_a_layer_more_than_dora() -> None:
    stock = _classifier()
    wanted = stock(pixel_values=IMAGES).logits
    for dropped in (0.0, 0.5):
        model = _adapted(lora_dropout=dropped).train()
        assert torch.equal(model(pixel_values=IMAGES).logits, wanted)
    dora = add_adapter(copy.deepcopy(stock), "dora", {"r": 3, "lora_alpha": 6}, total_steps=9, seed=0)
    assert count_trainable(_adapted()) == count_trainable(dora) + len(_layers(dora)) == count_trainable(dora) + 4


def test_dropout_acts_on_the_input_of_a_alone() -> None:
    layer = next(iter(_layers(_stirred(_adapted(lora_dropout=0.5))).values())).train()
    a, b, m, grown = _tensors(layer)
    base = layer.get_base_layer()
    direction = base.weight + 2 * b @ a
    factor = m / (direction.norm(dim=1) + TAU * grown.exp())
    x = torch.randn(50, base.in_features)
    torch.manual_seed(5)
    found = layer(x)
    torch.manual_seed(5)
    wanted = factor * (linear(x, base.weight) + 2 * linear(linear(dropout(x, 0.5), a), b)) + base.bias
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, layer.eval()(x), atol=1e-2)


def test_a_row_of_zeros_starts_as_one_and_is_trained() -> None:
    """Where DoRA divides by nothing."""
    stock = _classifier()
    with torch.no_grad():
        stock.dinov2.encoder.layer[0].attention.v_proj.weight[3] = 0
    model = add_adapter(stock, "doran", {"tau": TAU}, total_steps=9, seed=0)
    cross_entropy(model(pixel_values=IMAGES).logits, LABELS).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    layer = model.get_base_model().dinov2.encoder.layer[0].attention.v_proj
    assert layer.lora_B["default"].weight.grad[3].any()
    merged = copy.deepcopy(model).merge_and_unload().dinov2.encoder.layer[0].attention.v_proj.weight
    assert not merged[3].any() and bool(merged.isfinite().all())


@pytest.mark.parametrize("safe", [False, True])
def test_what_is_merged_is_unmerged_to_the_bit(safe: bool) -> None:
    model = _stirred(_adapted()).eval()
    layers = _layers(model)
    before = {name: layer.get_base_layer().weight.clone() for name, layer in layers.items()}
    answers = model(pixel_values=IMAGES).logits
    wanted = {name: _weight(before[name], *_tensors(layer)) for name, layer in layers.items()}
    model.merge_adapter(safe_merge=safe)
    for name, layer in layers.items():
        torch.testing.assert_close(layer.get_base_layer().weight, wanted[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(pixel_values=IMAGES).logits, answers, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(layer.get_base_layer().weight, before[name]) for name, layer in layers.items())
    assert torch.equal(model(pixel_values=IMAGES).logits, answers)


def test_under_bf16_the_factors_keep_their_digits() -> None:
    model = _stirred(_adapted()).eval()
    seen: list[torch.Tensor] = []
    for layer in _layers(model).values():
        layer.lora_magnitude_vector["default"].register_forward_hook(lambda _m, _i, factor: seen.append(factor))
    plain = model(pixel_values=IMAGES).logits
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        rough = model(pixel_values=IMAGES).logits
    assert len(seen) == 8 and all(torch.equal(a, b) for a, b in zip(seen[:4], seen[4:], strict=True))
    assert 0 < float((rough - plain).detach().abs().max()) < 0.1


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        *(({"tau": tau}, ["adapter_options.tau", tau]) for tau in (0, -1, 1e-7, 1001, float("nan"), True, "0.1")),
        ({"rank": 4}, ["rank", "DoranConfig", "lora_alpha", "tau"]),
        ({"lora_dropuot": 0.1}, ["lora_dropuot", "'lora_dropout'"]),
        # Fields of LoraConfig that would make another method of it, or leave its start.
        *(({key: value}, [key, "DoranConfig"]) for key, value in {
            "use_dora": True, "lora_bias": True, "init_lora_weights": "pissa", "layer_replication": [[0, 2]]}.items()),
        ({"r": 0}, ["doran", "r"]),
        ({"target_modules": ["projection"]}, ["doran", "Conv2d"]),
    ],
)  # fmt: skip
def test_what_it_does_not_take(options: dict[str, Any], facts: list[object]) -> None:
    def call() -> object:
        return add_adapter(_classifier(), "doran", options, total_steps=9, seed=0)

    refused(RecipeError, call, "phase1.adapter_options", *facts)


def test_no_second_adapter_and_no_file_that_peft_would_misread(tmp_path: Path) -> None:
    model = _adapted()
    config = adapter_config(_classifier(), "doran", {}, total_steps=9)
    refused(ValueError, lambda: model.add_adapter("other", config), "one DoRAN adapter")
    refused(UsageError, lambda: _adapted().save_pretrained(tmp_path), "merge")
    assert not (tmp_path / "adapter_config.json").exists()
