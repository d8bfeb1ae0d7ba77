"""What ExPLoRA trains: the paper's counts, on architectures from configs, and nothing else."""

from __future__ import annotations

import pytest
import torch
from conftest import IN_A_ROW, STAGED, tiny_backbone
from refusals import refused
from transformers import AutoConfig, AutoModel

from natix_hf.errors import RecipeError
from natix_hf.models.tuner import count_trainable
from natix_hf.ssl import apply_explora
from natix_hf.ssl.explora import block_list, unfreeze_blocks_alone


@pytest.mark.parametrize(
    ("width", "layers", "heads", "expected"), [(1024, 24, 16, 18_724_864), (768, 12, 12, 9_288_192)]
)
def test_counts_of_the_paper(width: int, layers: int, heads: int, expected: int) -> None:
    config = AutoConfig.for_model(
        "dinov2", hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, patch_size=14, image_size=518
    )
    with torch.device("meta"):
        backbone = AutoModel.from_config(config)
        assert count_trainable(apply_explora(backbone, rank=64, unfreeze_blocks=(-1,))) == expected


@pytest.mark.parametrize("model_type", IN_A_ROW)
def test_what_is_trainable(model_type: str) -> None:
    """LoRA on q and v of all blocks but the last; the last block, norms and cls token whole; nothing else."""
    model = apply_explora(tiny_backbone(model_type), rank=4)
    names = {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}
    lora = {name for name in names if "lora_" in name}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in lora} == {"q_proj", "v_proj"}
    assert len(lora) == 2 * 2 * 2  # blocks 0 and 1, q and v, A and B
    whole = names - lora
    block = f"{block_list(tiny_backbone(model_type))[0]}.2."
    every = {name for name, _ in model.get_base_model().named_parameters()}
    assert {name for name in whole if name.startswith(block)} == {name for name in every if name.startswith(block)}
    others = {name for name in whole if not name.startswith(block)}
    assert "embeddings.cls_token" in others
    assert all("norm" in name for name in others - {"embeddings.cls_token"})
    norms = {name for name in every if "norm" in name}
    assert norms <= whole


@pytest.mark.parametrize("model_type", IN_A_ROW)
def test_blocks_alone_are_trained_alone(model_type: str) -> None:
    backbone = unfreeze_blocks_alone(tiny_backbone(model_type), (0, -1))
    block = f"{block_list(tiny_backbone(model_type))[0]}."
    wanted = {name for name, _ in backbone.named_parameters() if name.startswith((f"{block}0.", f"{block}2."))}
    assert wanted and {name for name, p in backbone.named_parameters() if p.requires_grad} == wanted
    refused(RecipeError, lambda: unfreeze_blocks_alone(backbone, ()), "phase4.unfreeze_blocks", "trainable=blocks")


def test_alpha_scales_lora() -> None:
    for alpha, scale in ((None, 1.0), (1.0, 1 / 8)):
        model = apply_explora(tiny_backbone("dinov2"), rank=8, alpha=alpha)
        assert model.get_base_model().encoder.layer[0].attention.q_proj.scaling["default"] == scale


@pytest.mark.parametrize(("blocks", "told"), [([3], "0 to 2"), ([-4], "0 to 2"), ([0, 1, 2], "trainable=all")])
def test_blocks_that_are_not_there_are_refused(blocks: list[int], told: str) -> None:
    backbone = tiny_backbone("dinov2")
    refused(RecipeError, lambda: apply_explora(backbone, 4, None, blocks), "phase4.unfreeze_blocks", blocks, told)


@pytest.mark.parametrize("model_type", STAGED)
def test_a_model_in_stages_is_refused_with_the_reason(model_type: str) -> None:
    backbone = tiny_backbone(model_type)
    refused(RecipeError, lambda: apply_explora(backbone), model_type, "cls token", "stages", "dinov2")
    assert not hasattr(backbone.embeddings, "cls_token") and count_trainable(backbone) > 0, "it is left as it was"
