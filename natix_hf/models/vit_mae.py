"""ViT-MAE checkpoints (He et al., arXiv 2111.06377): the encoder is a plain ViT, the decoder is for phase 4 alone."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, ViTConfig, ViTMAEForPreTraining, ViTModel
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder
from transformers.utils import logging

from natix_hf.errors import UsageError, first_line
from natix_hf.models.bars import no_loading_bars

_SHARED = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "qkv_bias"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels"),
)


def encoder_config(config: PreTrainedConfig) -> ViTConfig:
    """The `vit` that a ViT-MAE's encoder is; transformers gives both the same names of tensors."""
    return ViTConfig(**{name: getattr(config, name) for name in _SHARED})


def encoder_of(model: ViTMAEForPreTraining) -> ViTModel:
    """Its encoder as a ViT that sees every patch in order: position embeddings and all other tensors bit-equal."""
    encoder = ViTModel(encoder_config(model.config), add_pooling_layer=False)
    encoder.load_state_dict(model.vit.state_dict(), strict=True)
    encoder.eval()
    return encoder


@no_loading_bars()
def load_decoder(source: str, revision: str | None = None) -> ViTMAEDecoder:
    """The decoder of a checkpoint as `ViTMAEForPreTraining` saves it, in float32; `.config` holds its own widths.

    Args:
        source: a folder or a Hub id.
        revision: of a Hub id.

    Raises:
        UsageError: it cannot be loaded, lacks a tensor of the decoder, or one holds NaN or infinity.
    """
    model_class: Any = ViTMAEForPreTraining
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is checked below
    try:
        model, info = model_class.from_pretrained(
            source,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        reason = first_line(error)
        raise UsageError(f"model.backbone: the decoder of {source} cannot be loaded ({reason})") from None
    finally:
        logging.set_verbosity(verbosity)
    fresh = {str(key) for key in info["missing_keys"]} | {str(key[0]) for key in info["mismatched_keys"]}
    lost = sorted(key for key in fresh if key.startswith("decoder."))
    if lost:
        raise UsageError(
            f"model.backbone: {source} lacks {len(lost)} tensors of its decoder, as {lost[0]}: "
            "take a checkpoint saved by ViTMAEForPreTraining, or phase4.objective=dinov2, which needs none"
        )
    decoder: ViTMAEDecoder = model.decoder
    broken = next((name for name, weights in decoder.named_parameters() if not weights.isfinite().all()), None)
    if broken is not None:
        raise UsageError(f"model.backbone: {source} holds NaN or infinity in decoder.{broken}: take another")
    return decoder
