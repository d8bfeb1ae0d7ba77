"""ViT-MAE checkpoints: the encoder arrives as a plain ViT, bit by bit, the decoder beside it, or one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from conftest import save_vit_mae
from refusals import refused
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTMAEConfig, ViTMAEModel, ViTModel

from natix_hf.errors import NatixError, RecipeError, UsageError, VerificationError
from natix_hf.models.classifier import (
    build_backbone,
    build_classifier,
    build_decoder,
    load_backbone,
)
from natix_hf.models.config import ModelConfig

Tensors = dict[str, torch.Tensor]


def _equal(one: Tensors, other: Tensors) -> bool:
    same_type = one.keys() == other.keys() and all(one[key].dtype == other[key].dtype for key in one)
    return same_type and all(torch.equal(one[key], other[key]) for key in one)


def _config(folder: Path, size: int = 28, **fields: Any) -> ModelConfig:
    return ModelConfig(backbone=str(folder), image_size=size, config=fields)


def test_every_tensor_of_encoder_and_decoder_arrives(tmp_path: Path) -> None:
    saved = save_vit_mae(tmp_path, qkv_bias=False, layer_norm_eps=1e-5, hidden_act="relu", hidden_dropout_prob=0.1)
    encoder = saved.vit.state_dict()
    classifier, backbone = build_classifier(_config(tmp_path), 0), build_backbone(_config(tmp_path), 0)
    assert classifier.config.model_type == "vit" and isinstance(backbone, ViTModel)
    assert _equal(backbone.state_dict(), encoder) and _equal(classifier.vit.state_dict(), encoder)
    assert _equal(load_backbone(tmp_path).state_dict(), encoder) and not load_backbone(tmp_path).training
    shared = ViTConfig.__annotations__.keys() & ViTMAEConfig.__annotations__.keys()
    assert len(shared) == 13
    for model in (backbone, load_backbone(tmp_path)):
        assert all(getattr(model.config, name) == getattr(saved.config, name) for name in shared)
    decoder = build_decoder(_config(tmp_path))
    assert decoder is not None and _equal(decoder.state_dict(), saved.decoder.state_dict())


def test_the_features_are_those_of_transformers(tmp_path: Path) -> None:
    save_vit_mae(tmp_path)
    theirs = ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0).eval()
    images = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        in_order = theirs(images, noise=torch.arange(16.0).expand(3, -1)).last_hidden_state
        shuffled = theirs(images, noise=torch.rand(3, 16))
        order = shuffled.ids_restore.unsqueeze(-1).expand(-1, -1, 32)
        tokens = shuffled.last_hidden_state
        restored = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, order)], dim=1)
        for model in (build_backbone(_config(tmp_path), 0).eval(), load_backbone(tmp_path)):
            mine = model(pixel_values=images).last_hidden_state
            torch.testing.assert_close(mine, in_order, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mine, restored, atol=1e-5, rtol=1e-5)


def test_a_half_precision_checkpoint_becomes_float32(tmp_path: Path) -> None:
    saved = save_vit_mae(tmp_path).to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    decoder = build_decoder(_config(tmp_path))
    assert decoder is not None
    assert _equal(decoder.state_dict(), {k: v.float() for k, v in saved.decoder.state_dict().items()})
    for backbone in (build_backbone(_config(tmp_path), 0), load_backbone(tmp_path)):
        assert _equal(backbone.state_dict(), {k: v.float() for k, v in saved.vit.state_dict().items()})


def test_a_revision_of_the_hub_is_that_of_encoder_and_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of a cache as the Hub's client lays it out: two revisions of one repository."""
    repository = tmp_path / "models--some--mae"
    (repository / "refs").mkdir(parents=True)
    saved = {}
    for name, commit, width in (("main", "a" * 40, 16), ("v2", "b" * 40, 24)):
        saved[name] = save_vit_mae(repository / "snapshots" / commit, decoder_hidden_size=width)
        (repository / "refs" / name).write_text(commit, encoding="utf-8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for revision, name in ((None, "main"), ("v2", "v2")):
        config = ModelConfig(backbone="some/mae", revision=revision, image_size=28)
        assert _equal(build_backbone(config, 0).state_dict(), saved[name].vit.state_dict())
        decoder = build_decoder(config)
        assert decoder is not None and _equal(decoder.state_dict(), saved[name].decoder.state_dict())


def _edit(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        save_vit_mae(folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def _without_decoder(folder: Path) -> None:
    save_vit_mae(folder).vit.save_pretrained(folder)


def _cut_off(folder: Path) -> None:
    save_vit_mae(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


_QUERY = "encoder.layer.0.attention.attention.query.weight"
BROKEN_DECODERS: dict[str, tuple[Callable[[Path], None], list[object]]] = {
    "encoder alone": (_without_decoder, [40, "decoder.decoder_embed.bias", "phase4.objective=dinov2"]),
    "one missing": (_edit(lambda t: t.pop(f"decoder.decoder_{_QUERY}")), [1, "q_proj.weight"]),
    "no positions": (_edit(lambda t: t.pop("decoder.decoder_pos_embed")), [1, "decoder_pos_embed"]),
    "misshapen": (_edit(lambda t: t.update({"decoder.mask_token": torch.zeros(1, 1, 8)})), [1, "mask_token"]),
    "not finite": (_edit(lambda t: t["decoder.mask_token"].fill_(float("nan"))), ["NaN", "mask_token"]),
    "cut off": (_cut_off, ["decoder"]),
}


@pytest.mark.parametrize("case", BROKEN_DECODERS)
def test_a_decoder_that_is_not_whole_is_one_line(case: str, tmp_path: Path) -> None:
    make, facts = BROKEN_DECODERS[case]
    make(tmp_path)
    refused(UsageError, lambda: build_decoder(_config(tmp_path)), "model.backbone", tmp_path, *facts)


@pytest.mark.parametrize("case", ["encoder alone", "one missing", "not finite"])
def test_a_broken_decoder_is_no_concern_of_the_encoder(case: str, tmp_path: Path) -> None:
    BROKEN_DECODERS[case][0](tmp_path)
    assert _equal(build_backbone(_config(tmp_path), 0).state_dict(), save_vit_mae(tmp_path / "whole").vit.state_dict())


_TYPE, _FIELD = "model.config.model_type", "model.config.decoder_hidden_size"
WRONG: dict[str, tuple[Callable[[Path], object], dict[str, Any], type[NatixError], list[object]]] = {
    "image size": (save_vit_mae, {"size": 56}, RecipeError, ["model.image_size", 56, 28]),
    "encoder": (_edit(lambda t: t.pop(f"vit.{_QUERY}")), {}, UsageError, ["model.backbone", 1, "q_proj.weight"]),
    "positions": (_edit(lambda t: t.pop("vit.embeddings.position_embeddings")), {}, UsageError, [1, "position"]),
    "decoder field": (save_vit_mae, {"decoder_hidden_size": 8}, RecipeError, [_FIELD, "vit"]),
    "its type": (save_vit_mae, {"model_type": "vit_mae"}, RecipeError, [_TYPE, "vit_mae", "leave it out"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_built_is_one_line(case: str, tmp_path: Path) -> None:
    make, fields, error, facts = WRONG[case]
    make(tmp_path)
    refused(error, lambda: build_classifier(_config(tmp_path, **fields), 0), *facts)


def test_from_random_weights_there_is_no_vit_mae(tmp_path: Path) -> None:
    config = ModelConfig(config={"model_type": "vit_mae"})
    refused(RecipeError, lambda: build_classifier(config, 0), _TYPE, "vit_mae", "vit", "dinov2")
    _without_decoder(tmp_path)
    # Strict: every tensor of the folder's own architecture.
    refused(VerificationError, lambda: load_backbone(tmp_path), tmp_path, 40, "missing", "decoder")
