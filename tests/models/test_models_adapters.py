"""Every adapter of the table: it trains, leaves the base alone, merges, and reads back equal."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from peft import LoraConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForImageClassification

from natix_hf.errors import RecipeError
from natix_hf.models.adapters import _OWN_OPTIONS, ADAPTERS, REFUSED, adapted_modules, add_adapter, check_adapter
from natix_hf.models.classifier import build_classifier, load_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.tuner import count_trainable
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


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_trains_and_merges(name: str, tmp_path: Path) -> None:
    _check(name, "dinov2", tmp_path)


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


@pytest.mark.parametrize("model_type", ["vit", "dinov2_with_registers", "dinov3_vit"])
@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "ln_tuning"])
def test_names_are_those_of_the_live_model(name: str, model_type: str, tmp_path: Path) -> None:
    _check(name, model_type, tmp_path)


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
}


@pytest.mark.parametrize(("model_type", "name"), RESOLVED)
def test_the_modules_of_each_architecture(model_type: str, name: str) -> None:
    start, ends = RESOLVED[model_type, name]
    found = adapted_modules(add_adapter(_classifier(model_type), name, {}, total_steps=10, seed=0))
    assert {module.rpartition(".")[2] for module in found} == ends
    assert len(found) == 2 * len(ends) and all(module.startswith(start) for module in found)  # of both blocks


def test_the_count_of_the_paper() -> None:
    config = AutoConfig.for_model(
        "dinov2", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14, image_size=224
    )
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
        head = sum(p.numel() for p in model.classifier.parameters())
        adapted = add_adapter(model, "lora", {"r": 8}, total_steps=1, seed=0)
        assert count_trainable(adapted) - head == 786_432


def test_every_tuner_of_the_installed_peft_is_known() -> None:
    """A new PEFT shows up here: try whether its tuner merges, then add it to one of the two."""
    names = {kind.value.lower(): cls.__name__ for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    used = {kind.config for kind in ADAPTERS.values()}
    assert {name for name, config in names.items() if config not in used and name not in REFUSED} == set()
    assert used <= set(names.values()) and REFUSED.keys() <= names.keys(), "gone from PEFT"
    assert not any(names[name] in used for name in REFUSED), "one of the two"


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_one_says_why(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_adapter(name, {}, "phase1")
    assert str(caught.value) == f"phase1.adapter is {name!r}, which is refused: {REFUSED[name]}"
    assert "\n" not in str(caught.value)


def test_an_unknown_one_is_told_what_there_is() -> None:
    with pytest.raises(RecipeError) as caught:
        check_adapter("zzz", {}, "phase1")
    told = str(caught.value)
    assert "\n" not in told and "did you mean" not in told
    assert told.endswith(f"allowed is none | full | auto | {' | '.join(ADAPTERS)}")


@pytest.mark.parametrize("option", _OWN_OPTIONS)
def test_options_that_are_not_the_users(option: str) -> None:
    with pytest.raises(RecipeError, match=rf"^phase1\.adapter_options\.{option} is refused: "):
        check_adapter("lora", {option: None}, "phase1")


@pytest.mark.parametrize("option", sorted({f.name for f in dataclasses.fields(LoraConfig)} - _OWN_OPTIONS.keys()))
def test_a_strange_value_of_lora_is_refused_or_works(option: str) -> None:
    """Never a traceback of PEFT, and never a model that trains but cannot be merged."""
    for value in ("many", -1, 4.5, [1], {"a": 1}, True, None):
        try:
            model = add_adapter(_classifier(), "lora", {option: value}, total_steps=10, seed=0)
        except RecipeError as error:
            assert "phase1.adapter_options" in str(error) and "\n" not in str(error)
            continue
        _train(model)
        with torch.no_grad():
            answers = model(pixel_values=_images()).logits
            merged: Any = model.merge_and_unload()
            assert torch.allclose(merged(pixel_values=_images()).logits, answers, atol=1e-4), value


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"adapter": "lorra"}, "did you mean 'lora'"),
        ({"adapter": "xlora"}, "refused: it mixes adapters"),
        ({"adapter": "prompt_tuning"}, "language model"),
        ({"adapter": "full", "adapter_options": {"r": 4}}, "for an adapter of PEFT"),
        ({"adapter": "lora", "adapter_options": {"modules_to_save": ["classifier"]}}, "trained beside the adapter"),
        ({"adapter": "adalora", "adapter_options": {"total_step": 5}}, "length of the training"),
    ],
)
def test_refused_in_the_recipe(section: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse_recipe({"phase1": section})
    with pytest.raises(RecipeError, match=r"^phase4\.supervised\.adapter"):
        parse_recipe({"phase4": {"supervised": section}})


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("lora", {"rank": 4}, "unknown key phase1.adapter_options.rank of LoraConfig"),
        ("lora", {"lora_alfa": 4}, "did you mean 'lora_alpha'"),
        ("lora", {"target_modules": ["classifier"]}, "the classifier layer is trained as it is"),
        ("lora", {"target_modules": ["query"]}, "no module ends in query, there is .*q_proj"),
        ("lora", {"target_modules": "all"}, "expected a list"),
        ("c3a", {"block_size": 7}, "PEFT refuses them for c3a"),
        ("lora", {"r": 0}, "PEFT refuses them for lora"),
        ("lora", {"zzz": 0}, "zzz of LoraConfig: allowed is .*lora_alpha, .*target_modules"),
        ("psoft", {"r": 64}, "phase1.adapter_options: PEFT refuses them for psoft"),
        ("miss", {"r": 64}, "phase1.adapter_options: PEFT refuses them for miss"),
        ("gralora", {"r": 7}, "phase1.adapter_options: PEFT refuses them for gralora"),
        ("fourierft", {"n_frequency": 10**6}, "phase1.adapter_options: PEFT refuses them for fourierft"),
        ("boft", {"boft_block_size": 5}, "phase1.adapter_options: PEFT refuses them for boft"),
        ("adalora", {"tinit": 20}, "phase1.adapter_options: PEFT refuses them for adalora"),
        ("adalora", {"tfinal": 9}, "budget needs 2 steps before tfinal: there are 10 steps and .*tfinal is 9"),
        ("lora", {"init_lora_weights": "eva"}, r"^phase1\.adapter_options\.init_lora_weights is 'eva', "),
        ("dora", {"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga', which is refused"),
        ("ia3", {"feedforward_modules": 5}, "feedforward_modules is 5: expected a list"),
        ("ia3", {"feedforward_modules": [1]}, "feedforward_modules is .1.: expected a list"),
    ],
)
def test_refused_by_the_model(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        add_adapter(_classifier(), name, options, total_steps=10, seed=0)


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
