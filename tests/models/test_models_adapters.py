"""Every adapter of the table: it trains, leaves the base alone, merges, and reads back equal."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import STAGED, TINY
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from refusals import refused
from torch.nn.functional import cross_entropy

from natix_hf.errors import RecipeError
from natix_hf.models.adapters import _OWN_OPTIONS, ADAPTERS, REFUSED, adapted_modules, add_adapter, check_adapter
from natix_hf.models.classifier import build_classifier, load_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.recipe import parse_recipe

# At injection, by its nature: it takes the largest singular vectors out. OSF decomposes a copy: its base stays too.
REWRITES_THE_BASE = ("pissa",)


def _classifier(model_type: str = "dinov2") -> Any:
    config = TINY[model_type] | {"initializer_range": 0.2}
    return build_classifier(ModelConfig(config=config, image_size=28), seed=0)


def _images() -> torch.Tensor:
    return torch.randn(16, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def _train(model: PeftModel, steps: int = 1) -> None:
    labels = torch.tensor([0, 1] * 8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    model.train()
    for _ in range(steps):
        cross_entropy(model(pixel_values=_images()).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _base_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """The frozen tensors that the stock model has too, under its names."""
    stock = set(_classifier(model.config.model_type).state_dict())
    plain = {
        key.removeprefix("base_model.model.").replace(".base_layer.", "."): value
        for key, value in model.named_parameters()
    }
    return {key: value for key, value in plain.items() if key in stock}


def _check(name: str, model_type: str, folder: Path) -> None:
    stock = _classifier(model_type)
    before = {key: value.clone() for key, value in stock.state_dict().items()}
    model = add_adapter(stock, name, {}, total_steps=10, seed=0)
    injected = {key: value.detach().clone() for key, value in _tensors(model).items()}
    rewritten = {key for key, value in _base_tensors(model).items() if not torch.equal(value, before[key])}
    assert bool(rewritten) == (name in REWRITES_THE_BASE), f"changed at injection: {rewritten}"
    assert all(key.rpartition(".")[0] in adapted_modules(model) for key in rewritten)
    _train(model)
    moved = {key for key, value in _tensors(model).items() if not torch.equal(value, injected[key])}
    trainable = {key for key, value in model.named_parameters() if value.requires_grad}
    assert moved <= trainable, "a frozen weight or a buffer moved"
    for key, value in _base_tensors(model).items():  # whatever is called trainable: the stock weights stay
        assert key in rewritten or key.startswith("classifier.") or torch.equal(value, before[key]), f"{key} moved"
    heads = {key for key in trainable if "classifier" in key}
    assert len(heads) == 2 and heads <= moved and moved - heads, "adapter and classifier layer both learn"
    with torch.no_grad():
        answers = model(pixel_values=_images()).logits
        with model.disable_adapter():
            effect = float((model(pixel_values=_images()).logits - answers).abs().max())
        merged: Any = model.merge_and_unload()
        merged.save_pretrained(folder)
        stored = load_classifier(folder)
        error = float((stored(pixel_values=_images()).logits - answers).abs().max())
    assert effect > 1e-4 and error <= 1e-5, (effect, error)
    trained_head = {key.rpartition(".")[2]: value for key, value in model.named_parameters() if key in heads}
    for part in ("weight", "bias"):
        kept = stored.classifier.get_parameter(part)
        assert torch.equal(kept, trained_head[part]) and not torch.equal(kept, before[f"classifier.{part}"])
    assert {type(module).__module__.split(".")[0] for module in merged.modules()}.isdisjoint({"peft"})


@pytest.mark.parametrize("model_type", ["dinov2", *STAGED])
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_trains_and_merges(name: str, model_type: str, tmp_path: Path) -> None:
    """Or is refused with the reason: without the refusal, PEFT fails."""
    kind = ADAPTERS[name]
    if model_type in kind.not_on:
        facts = ["phase1.adapter", name, model_type, kind.not_on[model_type]]
        refused(RecipeError, lambda: add_adapter(_classifier(model_type), name, {}, total_steps=10, seed=0), *facts)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ADAPTERS, name, dataclasses.replace(kind, not_on={}))
            with pytest.raises((RecipeError, RuntimeError, ValueError)):
                _check(name, model_type, tmp_path)
    else:
        _check(name, model_type, tmp_path)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_trained_tensors_alone_restore_it(name: str) -> None:
    """What a checkpoint holds: all else, shared random matrices too, follows from backbone and seed."""
    stock = _classifier()
    one = add_adapter(copy.deepcopy(stock), name, {}, total_steps=10, seed=3)
    torch.manual_seed(99)
    other = add_adapter(stock, name, {}, total_steps=10, seed=3)
    _train(one, steps=2)
    targets = dict(other.named_parameters())
    with torch.no_grad():
        for key, value in one.named_parameters():
            if value.requires_grad:
                targets[key].copy_(value)
        other.eval()
        assert torch.equal(one(pixel_values=_images()).logits, other(pixel_values=_images()).logits)


_ATTENTION = {"q_proj", "v_proj"}
_SCALED = {"k_proj", "v_proj"}
RESOLVED = {
    ("vit", "lora"): ("vit.layers.", _ATTENTION),
    ("vit", "ia3"): ("vit.layers.", _SCALED | {"fc2"}),
    ("vit", "ln_tuning"): ("vit.layers.", {"layernorm_before", "layernorm_after"}),
    ("dinov2", "lora"): ("dinov2.encoder.layer.", _ATTENTION),
    ("dinov2_with_registers", "ia3"): ("dinov2_with_registers.encoder.layer.", _SCALED | {"fc2"}),
    ("dinov3_vit", "lora"): ("dinov3_vit.model.layer.", _ATTENTION),
    ("dinov3_vit", "ia3"): ("dinov3_vit.model.layer.", _SCALED | {"down_proj"}),
    ("dinov3_vit", "ln_tuning"): ("dinov3_vit.model.layer.", {"norm1", "norm2"}),
    ("convnextv2", "lora"): ("convnextv2.encoder.stages.", {"pwconv1", "pwconv2"}),
    ("convnextv2", "ia3"): ("convnextv2.encoder.stages.", {"pwconv2"}),
    ("convnextv2", "ln_tuning"): ("convnextv2.encoder.stages.", {"layernorm"}),
    ("swinv2", "lora"): ("swinv2.encoder.layers.", {"query", "value"}),
    ("swinv2", "ia3"): ("swinv2.encoder.layers.", {"key", "value", "dense"}),
    ("swinv2", "ln_tuning"): ("swinv2.encoder.layers.", {"layernorm_before", "layernorm_after"}),
}


@pytest.mark.parametrize(("model_type", "name"), RESOLVED)
def test_the_modules_of_each_architecture(model_type: str, name: str, tmp_path: Path) -> None:
    start, ends = RESOLVED[model_type, name]
    found = adapted_modules(add_adapter(_classifier(model_type), name, {}, total_steps=10, seed=0))
    assert {module.rpartition(".")[2] for module in found} == ends
    blocks = sum(TINY[model_type].get("depths", [2]))
    assert len(found) == blocks * len(ends) and all(module.startswith(start) for module in found)
    _check(name, model_type, tmp_path)


def test_every_tuner_of_the_installed_peft_is_known() -> None:
    """A new PEFT shows up here: try whether its tuner merges, then add it to one of the two."""
    names = {kind.value.lower(): cls.__name__ for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    used = {kind.config for kind in ADAPTERS.values() if ":" not in kind.config}  # DoRAN's is not PEFT's
    assert {name for name, config in names.items() if config not in used and name not in REFUSED} == set()
    assert used <= set(names.values()) and REFUSED.keys() <= names.keys(), "gone from PEFT"
    assert not any(names[name] in used for name in REFUSED), "one of the two"


def test_a_refused_or_unknown_one_is_told_why() -> None:
    for name, why in REFUSED.items():
        refused(RecipeError, lambda name=name: check_adapter(name, {}, "phase1"), "phase1.adapter", name, why)
    for option, why in _OWN_OPTIONS.items():
        where = f"phase1.adapter_options.{option}"
        refused(RecipeError, lambda option=option: check_adapter("lora", {option: None}, "phase1"), where, why)
    refused(RecipeError, lambda: check_adapter("zzz", {}, "phase1"), "zzz", "none", "full", "auto", *ADAPTERS)


@pytest.mark.parametrize(
    ("section", "facts"),
    [
        ({"adapter": "lorra"}, ["lorra", "'lora'"]),
        ({"adapter": "xlora"}, ["xlora", REFUSED["xlora"]]),
        ({"adapter": "full", "adapter_options": {"r": 4}}, ["adapter_options", "full"]),
        ({"adapter": "lora", "adapter_options": {"modules_to_save": ["classifier"]}}, ["modules_to_save"]),
    ],
)
def test_refused_in_the_recipe(section: dict[str, Any], facts: list[str]) -> None:
    refused(RecipeError, lambda: parse_recipe({"phase1": section}), "phase1.adapter", *facts)
    whole = {"phase4": {"supervised": section}}
    refused(RecipeError, lambda: parse_recipe(whole), "phase4.supervised.adapter", *facts)


@pytest.mark.parametrize(
    ("name", "options", "facts"),
    [
        ("lora", {"rank": 4}, ["rank", "LoraConfig"]), ("lora", {"lora_alfa": 4}, ["lora_alfa", "'lora_alpha'"]),
        ("lora", {"zzz": 0}, ["zzz", "LoraConfig", "lora_alpha", "target_modules"]),
        ("lora", {"target_modules": ["classifier"]}, ["target_modules", "classifier"]),
        ("lora", {"target_modules": ["query"]}, ["target_modules", "query", "q_proj"]),
        ("lora", {"target_modules": "all"}, ["target_modules", "'all'"]),
        ("adalora", {"tfinal": 9}, ["adalora", "10 steps", "adapter_options.tfinal", "9"]),
        ("lora", {"init_lora_weights": "eva"}, ["adapter_options.init_lora_weights", "'eva'"]),
        ("dora", {"init_lora_weights": "lora_ga"}, ["adapter_options.init_lora_weights", "'lora_ga'"]),
        ("ia3", {"feedforward_modules": 5}, ["feedforward_modules", 5]),
        ("ia3", {"feedforward_modules": [1]}, ["feedforward_modules", [1]]),
        ("road", {"target_modules": ["norm1"]}, ["PEFT", "road"]),
        # What PEFT refuses, or trips over, in each of its ways.
        *((name, options, ["PEFT", name]) for name, options in (
            ("c3a", {"block_size": 7}), ("lora", {"r": 0}), ("psoft", {"r": 64}), ("miss", {"r": 64}),
            ("gralora", {"r": 7}), ("fourierft", {"n_frequency": 10**6}), ("boft", {"boft_block_size": 5}),
            ("adalora", {"tinit": 20}), ("lora", {"r": "many"}), ("lora", {"lora_alpha": [1]}),
            ("lora", {"rank_pattern": [1]}), ("lora", {"lora_dropout": {"a": 1}}),
        )),
    ],
)  # fmt: skip
def test_refused_by_the_model(name: str, options: dict[str, Any], facts: list[object]) -> None:
    def call() -> object:
        return add_adapter(_classifier(), name, options, total_steps=10, seed=0)

    refused(RecipeError, call, "phase1.adapter", *facts)


def test_one_layer_alone_is_named_in_target_modules() -> None:
    """What to do instead of layers_to_transform, which PEFT would pass over beside whole names."""
    wanted = {"target_modules": ["layer.1.attention.q_proj"]}
    adapted = add_adapter(_classifier(), "lora", wanted, total_steps=10, seed=0)
    assert adapted_modules(adapted) == ["dinov2.encoder.layer.1.attention.q_proj"]


def test_the_seed_decides_the_first_weights() -> None:
    def weights(seed: int, other: int) -> list[torch.Tensor]:
        torch.manual_seed(other)
        model = add_adapter(_classifier(), "lora", {}, total_steps=10, seed=seed)
        return [p.detach() for n, p in model.named_parameters() if "lora_A" in n]

    assert all(torch.equal(a, b) for a, b in zip(weights(1, 0), weights(1, 5), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights(1, 0), weights(2, 0), strict=True))
