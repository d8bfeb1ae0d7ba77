"""Masked autoencoding: what the encoder sees, what the loss counts, and that it is transformers' own on a ViT-MAE."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_backbone
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from natix_hf.ssl.mae import MaskedAutoencoder, encode_visible, patchify
from natix_hf.ssl.mae_config import MaeConfig

KINDS = ["vit", "dinov2", "dinov2_with_registers"]
CONFIG = MaeConfig(decoder_width=16, decoder_heads=2, decoder_layers=1)


@pytest.mark.parametrize("model_type", KINDS)
def test_with_every_patch_visible_it_is_the_plain_encoder(model_type: str) -> None:
    backbone, images = tiny_backbone(model_type).eval(), torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        tokens = backbone(pixel_values=images).last_hidden_state
        seen = encode_visible(backbone, images, torch.arange(16).expand(2, -1))
    registers = getattr(backbone.config, "num_register_tokens", 0)
    expected = torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], dim=1)
    torch.testing.assert_close(seen, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("model_type", KINDS)
def test_the_encoder_does_not_see_hidden_patches(model_type: str) -> None:
    backbone = tiny_backbone(model_type).eval()
    images = torch.randn(1, 3, 28, 28)
    other = images.clone()
    other[:, :, :7, :7] += 5.0  # patch 0
    visible = torch.tensor([[3, 5, 9]])
    with torch.no_grad():
        assert torch.equal(encode_visible(backbone, images, visible), encode_visible(backbone, other, visible))
        visible = torch.tensor([[3, 5, 0]])
        assert not torch.equal(encode_visible(backbone, images, visible), encode_visible(backbone, other, visible))


def test_the_loss_is_that_of_transformers() -> None:
    """The same weights in `ViTMAEForPreTraining`: equal loss and equal gradients."""
    backbone = tiny_backbone("vit").eval()
    ours = MaskedAutoencoder(backbone, CONFIG, image_size=28, seed=0).eval()
    shape = {name: getattr(backbone.config, name) for name in (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "image_size"
    )}  # fmt: skip
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            **shape, decoder_hidden_size=16, decoder_num_attention_heads=2, decoder_num_hidden_layers=1,
            decoder_intermediate_size=64, norm_pix_loss=True, mask_ratio=0.75,
        )
    ).eval()
    theirs.vit.load_state_dict(backbone.state_dict())
    theirs.decoder.load_state_dict(ours.decoder.state_dict())
    images, noise = torch.randn(3, 3, 28, 28), torch.rand(3, 16)
    mine, reference = ours(pixel_values=images, noise=noise)["loss"], theirs(pixel_values=images, noise=noise).loss
    torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-6)
    mine.backward()
    reference.backward()
    expected = dict(theirs.vit.named_parameters())
    for name, parameter in backbone.named_parameters():
        if parameter.grad is not None and name != "embeddings.position_embeddings":  # fixed in ViT-MAE
            torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4)


def test_patchify_keeps_pixels_in_their_patch() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    patches = patchify(images, 2)
    assert patches.shape == (2, 4, 12)
    for row in range(2):
        for column in range(2):
            block = images[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[1, 2 * row + column], block.permute(1, 2, 0).reshape(-1))


@pytest.mark.parametrize("model_type", KINDS)
def test_every_trained_parameter_gets_a_gradient(model_type: str) -> None:
    """DDP would wait for one that gets none."""
    model = MaskedAutoencoder(tiny_backbone(model_type), CONFIG, image_size=28, seed=0)
    model(pixel_values=torch.randn(2, 3, 28, 28), noise=torch.rand(2, 16))["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_decoder_depends_on_the_seed_alone() -> None:
    def weights(seed: int, noise: int) -> list[torch.Tensor]:
        torch.manual_seed(noise)
        module: nn.Module = MaskedAutoencoder(tiny_backbone("dinov2"), CONFIG, 28, seed).decoder
        return [p.detach() for p in module.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights(1, 0), weights(1, 9), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(1, 0), weights(2, 0), strict=True))
