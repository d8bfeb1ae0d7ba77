"""Cached features are the input of the classifier layer, computed once for a model and its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from transformers import PreTrainedModel

from natix_hf.models.classifier import build_classifier, head_of, load_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.features import Head, cache_folder, cached_features, weights_sha256

SIZE = 28
CPU = torch.device("cpu")


class Pictures(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, seed: int = 0) -> None:
        self.pixels = torch.randn(7, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def forwards() -> list[int]:
    """Batch sizes of the forward passes of `counted` models."""
    return []


def tiny(name: str = "dinov2", forwards: list[int] | None = None, **fields: Any) -> PreTrainedModel:
    model = build_classifier(ModelConfig(config=TINY[name] | fields, image_size=SIZE), 0)
    if forwards is not None:
        model.register_forward_hook(lambda _, inputs, outputs: forwards.append(len(outputs.logits)))
    return model


def features(model: PreTrainedModel, views: Any = None, key: Any = "rows", batch_size: int = 3) -> np.ndarray:
    return cached_features(model, views or [(Pictures(), range(7))], key, batch_size, 0, CPU)


@pytest.mark.parametrize("name", TINY)
def test_head_of_features_equals_the_model(name: str) -> None:
    model = tiny(name)
    values = features(model)
    assert values.shape == (1, 7, head_of(model).in_features) and values.dtype == np.float32
    with torch.inference_mode():
        expected = model.eval()(pixel_values=Pictures().pixels).logits
        logits = Head(head_of(model))(torch.from_numpy(np.array(values[0])))["logits"]
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)


def test_the_second_call_does_not_run_the_model(forwards: list[int]) -> None:
    model = tiny(forwards=forwards)
    first = features(model)
    assert forwards == [3, 3, 1]
    again = features(tiny(forwards=forwards))
    assert forwards == [3, 3, 1] and (first == again).all()
    assert isinstance(again, np.memmap)


def _other_weight(model: PreTrainedModel) -> None:
    model.state_dict()["dinov2.layernorm.bias"][3] += 1e-3


@pytest.mark.parametrize(
    ("change", "fields", "key"),
    [
        pytest.param(None, {}, "other rows", id="key"),
        pytest.param(_other_weight, {}, "rows", id="one weight"),
        # Settings that leave every tensor as it is and change what the model computes.
        pytest.param(None, {"num_attention_heads": 4}, "rows", id="heads"),
        pytest.param(None, {"hidden_act": "relu"}, "rows", id="activation"),
    ],
)
def test_another_model_or_key_is_computed_anew(change: Any, fields: Any, key: str, forwards: list[int]) -> None:
    before = features(tiny())
    model = tiny(forwards=forwards, **fields)
    if change:
        change(model)
    after = features(model, key=key)
    assert forwards == [3, 3, 1]
    assert (key == "rows") == (not np.array_equal(before, after))


def test_neither_the_head_nor_where_a_model_lies_is_part_of_the_key(tmp_path: Path, forwards: list[int]) -> None:
    features(tiny())
    head = tiny(forwards=forwards)
    torch.nn.init.ones_(head_of(head).weight)
    tiny().save_pretrained(tmp_path)
    moved = load_classifier(tmp_path)
    moved.register_forward_hook(lambda *_: forwards.append(1))
    features(head), features(moved)
    assert forwards == []


def test_views_and_rows_keep_their_order() -> None:
    model = tiny()
    views = [(Pictures(0), range(7)), (Pictures(1), [6, 5, 4, 3, 2, 1, 0]), (Pictures(0), [2] * 7)]
    values = features(model, views)
    plain, other = features(model, key=0)[0], features(model, [(Pictures(1), range(7))], key=1)[0]
    assert values.shape[:2] == (3, 7)
    np.testing.assert_allclose(values[0], plain, atol=1e-5)
    np.testing.assert_allclose(values[1], other[::-1], atol=1e-5)
    np.testing.assert_allclose(values[2], plain[[2] * 7], atol=1e-5)


def test_dropout_plays_no_part() -> None:
    model = tiny("vit", hidden_dropout_prob=0.5).train()
    one = features(model)
    np.testing.assert_allclose(features(tiny("vit", hidden_dropout_prob=0.5), key="again"), one, atol=1e-6)


def test_a_failure_leaves_no_cache_and_no_hook() -> None:
    class Broken(Pictures):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            if index == 5:
                raise OSError("unplugged")
            return super().__getitem__(index)

    model = tiny()
    with pytest.raises(OSError, match="unplugged"):
        features(model, [(Broken(), range(7))])
    assert [path.suffix for path in (cache_folder() / "features").iterdir()] == [".lock"], "nobody holds it"
    assert not head_of(model)._forward_pre_hooks


def test_the_hash_of_weights_covers_name_type_shape_and_values() -> None:
    def of(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_sha256(module)

    zeros = torch.zeros(4)
    others = [of(b=zeros), of(a=zeros.view(2, 2)), of(a=zeros.to(torch.int32)), of(a=torch.tensor([0, 0, 0, 1e-9]))]
    assert len({of(a=zeros), *others}) == 5
    assert of(a=torch.zeros(8)[::2]) == of(a=zeros), "a strided tensor with the same values"
