"""Masked autoencoding: what the encoder sees, what the loss counts, and that it is transformers' own on a ViT-MAE."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import save_vit_mae, tiny_backbone

from natix_hf.models.classifier import load_backbone
from natix_hf.models.tuner import count_trainable
from natix_hf.models.vit_mae import load_decoder
from natix_hf.ssl.explora import apply_explora
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
    backbone, images = tiny_backbone(model_type).eval(), torch.randn(1, 3, 28, 28)
    other = images.clone()
    other[:, :, :7, :7] += 5.0  # patch 0
    with torch.no_grad():
        for seen in ([3, 5, 9], [3, 5, 0]):
            one, two = (encode_visible(backbone, pixels, torch.tensor([seen])) for pixels in (images, other))
            assert torch.equal(one, two) == (0 not in seen)


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


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_decoder_depends_on_the_seed_alone(pretrained: bool, tmp_path: Path) -> None:
    save_vit_mae(tmp_path)

    def weights(seed: int, noise: int) -> list[torch.Tensor]:
        torch.manual_seed(noise)
        given = load_decoder(str(tmp_path)) if pretrained else None
        model = MaskedAutoencoder(load_backbone(tmp_path), CONFIG, 28, seed, given)
        wanted = "lora_A" if pretrained else "weight"
        return [p.detach() for name, p in model.decoder.named_parameters() if wanted in name]

    assert all(torch.equal(a, b) for a, b in zip(weights(1, 0), weights(1, 9), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(1, 0), weights(2, 0), strict=True))


def test_with_a_pretrained_decoder_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    """LoRA starts at zero: equal loss, and equal gradients of everything that both train."""
    theirs = save_vit_mae(tmp_path)
    backbone, decoder = load_backbone(tmp_path), load_decoder(str(tmp_path))
    ours = MaskedAutoencoder(backbone, MaeConfig(), image_size=28, seed=0, decoder=decoder).eval()
    images, noise = torch.randn(3, 3, 28, 28), torch.rand(3, 16)
    mine, reference = ours(pixel_values=images, noise=noise)["loss"], theirs(pixel_values=images, noise=noise).loss
    torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-6)
    mine.backward()
    reference.backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in backbone.named_parameters():
        if name != "embeddings.position_embeddings":  # fixed in ViT-MAE
            torch.testing.assert_close(parameter.grad, expected[f"vit.{name}"].grad, atol=1e-5, rtol=1e-4)
    factors = dict(decoder.named_parameters())
    compared = 0
    for name, parameter in factors.items():
        if "lora_B" in name:  # of W + B A the gradient by B is that by W, times A transposed
            start = factors[name.replace("lora_B", "lora_A")]
            whole = expected[f"decoder.{name.partition('.lora_B')[0]}.weight"].grad
            torch.testing.assert_close(parameter.grad, whole @ start.T, atol=1e-5, rtol=1e-4)
            compared += 1
        elif "norm" in name:
            torch.testing.assert_close(parameter.grad, expected[f"decoder.{name}"].grad, atol=1e-5, rtol=1e-4)
            compared += 1
    assert compared == 4 + 10


def test_of_a_pretrained_decoder_lora_and_norms_are_trained(tmp_path: Path) -> None:
    save_vit_mae(tmp_path)
    encoder = apply_explora(load_backbone(tmp_path), rank=4)  # type: ignore[arg-type]
    of_encoder = {f"encoder.{name}" for name, p in encoder.named_parameters() if p.requires_grad}
    count = count_trainable(encoder)
    model = MaskedAutoencoder(encoder, MaeConfig(), image_size=28, seed=0, decoder=load_decoder(str(tmp_path)))
    names, numbers = {"decoder.decoder_norm.weight", "decoder.decoder_norm.bias"}, 2 * 16
    for layer in (f"decoder.decoder_layers.{number}." for number in (0, 1)):
        names |= {f"{layer}{norm}.{part}" for norm in ("layernorm_before", "layernorm_after")
                  for part in ("weight", "bias")}  # fmt: skip
        names |= {f"{layer}attention.{target}.lora_{factor}.default.weight" for target in ("q_proj", "v_proj")
                  for factor in "AB"}  # fmt: skip
        numbers += 4 * 16 + 4 * 8 * 16  # norms; two factors of rank 8 in 16 numbers, for q and for v
    assert {name for name, p in model.named_parameters() if p.requires_grad} == of_encoder | names
    assert count_trainable(model) == count + numbers
    model(pixel_values=torch.randn(2, 3, 28, 28), noise=torch.rand(2, 16))["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert {module.scaling["default"] for module in model.decoder.modules() if hasattr(module, "lora_A")} == {1.0}
