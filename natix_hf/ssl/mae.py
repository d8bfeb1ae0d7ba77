"""The masked autoencoding objective (He et al., arXiv:2111.06377) around a plain encoder.

The encoder sees the visible patches only. The decoder is the one of `transformers` and is discarded after training.
It starts from random weights or comes from a ViT-MAE checkpoint. A pretrained decoder is frozen except for LoRA and
its norms, as in ExPLoRA (Khanna et al., arXiv:2406.10973).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

from natix_hf.data.config import Augment, AugmentConfig
from natix_hf.data.rows import Rows
from natix_hf.data.views import MaskedViews, TrainViews
from natix_hf.errors import RecipeError
from natix_hf.models.architectures import architecture_of, prefix_tokens
from natix_hf.ssl.explora import LORA_TARGETS, block_list, freeze_parts, plain_backbone
from natix_hf.ssl.mae_config import MaeConfig
from natix_hf.ssl.objective import PlainObjective

_DECODER_RANK = 8  # the paper's rank; alpha is the same here


class MaskedAutoencoder(PlainObjective):
    """An encoder and a decoder that predicts the pixels of the masked patches.

    Args:
        encoder: A ViT, DINOv2 or DINOv2 with registers, or a PeftModel around one.
        config: Share of masked patches, size of the decoder, and normalisation of the targets.
        image_size: Side of the square views in px.
        seed: Seed of the decoder's new weights: all of them, or its LoRA weights.
        decoder: A pretrained decoder for this encoder and image size. It is changed in place. None: a new decoder.
    """

    sections: ClassVar[dict[str, type]] = {"mae": MaeConfig}
    takes_decoder: ClassVar[bool] = True

    @classmethod
    def check(cls, backbone: PreTrainedModel, image_size: int, **sections: Any) -> None:
        """Refuse a backbone whose positions are computed. Raises RecipeError."""
        found = architecture_of(backbone.config.model_type)
        if found is not None and found.positions == "computed":
            raise RecipeError(
                f"phase4.objective is mae: a {backbone.config.model_type} computes rotary positions for the whole "
                "grid of patches, and the encoder would see a part of it; leave the objective out, or take another"
            )

    @classmethod
    def build(
        cls, student: nn.Module, image_size: int, seed: int, decoder: ViTMAEDecoder | None, images: int, *,
        mae: MaeConfig,
    ) -> Self:  # fmt: skip
        """Make the objective around an encoder. `images` is not used."""
        return cls(student, mae, image_size, seed, decoder)

    @classmethod
    def views(
        cls, images: Rows, processor: Any, patch_size: int, augment: Augment, seed: int, *, mae: MaeConfig
    ) -> Dataset[Any]:
        """Make views with crops and flips only, because a masked autoencoder needs no other augmentation."""
        size, mean, std = int(processor.size["height"]), processor.image_mean, processor.image_std
        shapes = AugmentConfig() if augment == "challenge" else augment
        plain = replace(shapes, crop_scale=mae.crop_scale, rotate=0.0, jitter=0.0, grey=0.0, blur=0.0, erase=0.0)
        return MaskedViews(TrainViews(images, plain, size, mean, std, seed), (size // patch_size) ** 2)

    def __init__(
        self, encoder: nn.Module, config: MaeConfig, image_size: int, seed: int, decoder: ViTMAEDecoder | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask_ratio = config.mask_ratio
        self.norm_pix_loss = config.norm_pix_loss
        inner = plain_backbone(encoder)
        self.patch_size = int(inner.config.patch_size)
        self.decoder_from = "fresh" if decoder is None else "pretrained"
        torch.manual_seed(seed)
        if decoder is None:
            self.decoder = _fresh_decoder(inner.config, config, (image_size // self.patch_size) ** 2)
        else:
            self.decoder = _adapted_decoder(decoder)
        freeze_parts(inner, "pooler", "mask_token")

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> dict[str, Any]:
        """Compute the loss of a batch.

        Args:
            pixel_values: float32 [n, 3, H, W], normalised.
            noise: float [n, patches]. The patches with the smallest noise stay visible.

        Returns:
            `loss`, the mean squared error over the masked patches of all images.
        """
        order = noise.argsort(dim=1)
        visible = order[:, : max(1, round(order.shape[1] * (1 - self.mask_ratio)))]
        tokens = encode_visible(self.encoder, pixel_values, visible)
        predicted = self.decoder(tokens, ids_restore=order.argsort(dim=1)).logits
        target = patchify(pixel_values, self.patch_size)
        if self.norm_pix_loss:
            mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        hidden = torch.ones_like(noise).scatter(1, visible, 0.0)
        errors = (predicted.float() - target).square().mean(dim=-1)
        return {"loss": (errors * hidden).sum() / hidden.sum()}

    def backbone(self) -> nn.Module:
        return self.encoder

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Turn on activation checkpointing. Trainer calls this for `activation_checkpointing: true`."""
        plain_backbone(self.encoder).activation_checkpointing_enable(**kwargs)


def encode_visible(encoder: nn.Module, pixel_values: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Encode only the visible patches.

    Args:
        encoder: A ViT, DINOv2 or DINOv2 with registers, or a PeftModel around one.
        pixel_values: float32 [n, 3, H, W], normalised.
        visible: int64 [n, v], numbers of the visible patches in row order.

    Returns:
        Tokens, float [n, 1 + v, d], with the cls token first.
    """
    backbone: Any = plain_backbone(encoder)
    embeddings: torch.Tensor = backbone.embeddings(pixel_values)
    prefix = prefix_tokens(backbone.config)
    chosen = (visible + prefix).unsqueeze(-1).expand(-1, -1, embeddings.shape[-1])
    tokens = torch.cat([embeddings[:, :prefix], embeddings.gather(1, chosen)], dim=1)
    for block in block_list(backbone)[1]:
        tokens = block(tokens)
    tokens = backbone.layernorm(tokens)
    return torch.cat([tokens[:, :1], tokens[:, prefix:]], dim=1)


def patchify(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cut pictures [n, c, H, W] into patches [n, patches, patch_size * patch_size * c], in the decoder's order."""
    n, channels, height, width = pixel_values.shape
    rows, columns = height // patch_size, width // patch_size
    grid = pixel_values.reshape(n, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(n, rows * columns, -1)


def _fresh_decoder(encoder: Any, config: MaeConfig, patches: int) -> ViTMAEDecoder:
    shape = ViTMAEConfig(
        hidden_size=encoder.hidden_size,
        patch_size=encoder.patch_size,
        num_channels=encoder.num_channels,
        decoder_hidden_size=config.decoder_width,
        decoder_num_hidden_layers=config.decoder_layers,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=4 * config.decoder_width,
    )
    shape._attn_implementation = "sdpa"
    decoder = ViTMAEDecoder(shape, patches)
    decoder.apply(_initialise)
    return decoder


def _adapted_decoder(decoder: ViTMAEDecoder) -> ViTMAEDecoder:
    """Train LoRA on the queries and values of every layer, and the norms. Everything else is frozen."""
    layers = range(len(decoder.decoder_layers))
    targets = [f"decoder_layers.{number}.attention.{name}" for number in layers for name in LORA_TARGETS]
    inject_adapter_in_model(LoraConfig(r=_DECODER_RANK, lora_alpha=_DECODER_RANK, target_modules=targets), decoder)
    for module in decoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)
    return decoder


def _initialise(module: nn.Module) -> None:
    # Xavier for linear layers, as in the official MAE. transformers initialises a decoder only inside its own model.
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
