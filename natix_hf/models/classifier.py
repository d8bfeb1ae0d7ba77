"""A yes/no classifier from a Hub id, a folder, or a config: `build_classifier`; back from disk: `load_classifier`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTMAEForPreTraining,
)
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder
from transformers.utils import logging

from natix_hf.errors import RecipeError, UsageError, VerificationError, did_you_mean, first_line, require
from natix_hf.labels import ID2LABEL
from natix_hf.models.architectures import ARCHITECTURES, VIT_MAE, has_fixed_size, loading_options
from natix_hf.models.bars import no_loading_bars
from natix_hf.models.config import PACKAGED_PREFIX, ModelConfig
from natix_hf.models.vit_mae import encoder_config, encoder_of, load_decoder
from natix_hf.resources import resource_folder

for _known in ARCHITECTURES.values():
    if _known.head is not None:
        importlib.import_module(_known.head)  # registers the class that transformers lacks


def build_classifier(config: ModelConfig, seed: int) -> PreTrainedModel:
    """The stock backbone with a fresh two-label head, in float32.

    Args:
        seed: of every weight that is not loaded (the head, or the whole model without a backbone).

    Raises:
        RecipeError: an unknown field in `model.config`, an unsupported architecture, or an image size that the
            architecture or its patches cannot take.
        UsageError: no such backbone.
    """
    architecture = _architecture(config)
    torch.manual_seed(seed)
    if config.backbone is None:
        try:
            model: PreTrainedModel = AutoModelForImageClassification.from_config(architecture, dtype=torch.float32)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(f"model.config: transformers refuses these values ({_one_line(error)})") from None
    else:
        model = _from_backbone(config, architecture)
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token"):  # plays no part in classification; DDP waits for the gradient it never gets
            parameter.requires_grad_(False)
    return model


def check_model(config: ModelConfig) -> PreTrainedModel:
    """Refuses, without loading weights, what `build_classifier` would refuse or what cannot take a picture.

    Returns:
        The model on the meta device: its shapes and names, no weights.
    """
    architecture = _architecture(config)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForImageClassification.from_config(architecture, dtype=torch.float32)
            model.train()
            model(pixel_values=torch.zeros(2, 3, config.image_size, config.image_size))
    except (ArithmeticError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"model.config: no model can be made of these values ({_one_line(error)})") from None
    return model


def resolve_backbone(backbone: str) -> str:
    """`packaged:NAME` becomes the folder that comes with the package; anything else stays as it is."""
    if not backbone.startswith(PACKAGED_PREFIX):
        return backbone
    folder = resource_folder("recipes") / "backbones" / backbone.removeprefix(PACKAGED_PREFIX)
    if not folder.is_dir():
        known = ", ".join(sorted(path.parent.name for path in folder.parent.glob("*/config.json"))) or "none"
        raise RecipeError(f"model.backbone: no packaged backbone {folder.name!r}, there is {known}")
    return str(folder)


def load_classifier(folder: Path) -> PreTrainedModel:
    """Loads a merged candidate or bundle in float32, every tensor of it and no other.

    Raises:
        VerificationError: a tensor is missing, left over or of another shape.
    """
    return load_strictly(AutoModelForImageClassification, folder)


def build_backbone(config: ModelConfig, seed: int) -> PreTrainedModel:
    """The stock backbone without a head (or a ViT's pooler), every weight that is not loaded drawn from `seed`.

    Raises: as `build_classifier`.
    """
    backbone: Any = build_classifier(config, seed).base_model
    loaded: PreTrainedModel = backbone
    return loaded


def build_decoder(config: ModelConfig) -> ViTMAEDecoder | None:
    """The pretrained decoder beside the backbone that `build_backbone` gives, in float32; None: it has none.

    Raises: as `build_backbone`, and UsageError where a ViT-MAE lacks its decoder.
    """
    if config.backbone is None:
        return None
    source = resolve_backbone(config.backbone)
    if _stock_config(config, source).model_type != VIT_MAE:
        return None
    return load_decoder(source, config.revision)


def load_backbone(folder: Path) -> PreTrainedModel:
    """Loads a saved backbone in float32, every tensor of it and no other. Of a ViT-MAE, its encoder as a `vit`.

    Raises:
        VerificationError: a tensor is missing, left over or of another shape.
    """
    model_type = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if model_type == VIT_MAE:
        whole: Any = load_strictly(ViTMAEForPreTraining, folder)
        return encoder_of(whole)
    return load_strictly(AutoModel, folder, **loading_options(model_type))


@no_loading_bars()
def load_strictly(model_class: Any, folder: Path, **options: Any) -> PreTrainedModel:
    """`from_pretrained` of a local folder that refuses missing, unexpected or misshapen tensors, and an adapter left
    beside merged weights, which it would attach. `options` go to the model."""
    adapter = next(folder.glob("adapter_*"), None)
    if adapter is not None:
        raise VerificationError(f"{folder} holds {adapter.name} beside a merged model: remove it")
    try:
        model, info = model_class.from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,  # left open, transformers asks whoever sits there
            **options,
        )
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise VerificationError(f"{folder} cannot be loaded as a model: {first_line(error)}") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            example = sorted(str(key) for key in info[kind])[0]
            raise VerificationError(
                f"{folder}: {len(info[kind])} {kind.replace('_', ' ')}, as {example}: the weights do not fit"
            )
    loaded: PreTrainedModel = model
    return loaded


@no_loading_bars()
def save_model(folder: Path, model: PreTrainedModel, processor: Any) -> None:
    """Writes a model and its image processor into a folder, as transformers reads them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def head_of(model: nn.Module) -> nn.Linear:
    """The classifier layer; every supported architecture calls it `classifier`."""
    head = model.get_submodule("classifier")
    if not isinstance(head, nn.Linear):
        raise RecipeError(f"the head of {type(model).__name__} is a {type(head).__name__}, not a linear layer")
    return head


def logit_difference(logits: np.ndarray) -> np.ndarray:
    """The score z of every threshold here: float64 [n], label 1 over label 0, from logits [n, 2]."""
    return logits[:, 1].astype(np.float64) - logits[:, 0].astype(np.float64)


def _architecture(config: ModelConfig) -> PreTrainedConfig:
    fields: dict[str, Any] = {"num_labels": 2, "id2label": ID2LABEL}
    # Of a backbone that was trained as a classifier: by it the official miner would answer a sigmoid, not a softmax.
    fields |= {"label2id": {name: i for i, name in ID2LABEL.items()}, "problem_type": None}
    if config.backbone is None:
        given = {key: value for key, value in config.config.items() if key != "model_type"}
        model_type = config.config["model_type"]
        if model_type not in ARCHITECTURES:
            raise RecipeError(f"model.config.model_type is {model_type!r}: supported is {' | '.join(ARCHITECTURES)}")
        _check_fields(AutoConfig.for_model(model_type), given)
        try:
            architecture = AutoConfig.for_model(model_type, **({"image_size": config.image_size} | given | fields))
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise RecipeError(f"model.config: transformers refuses these values ({_one_line(error)})") from None
    else:
        source = resolve_backbone(config.backbone)
        architecture = _stock_config(config, source)
        if architecture.model_type == VIT_MAE:
            architecture = encoder_config(architecture)
        if architecture.model_type not in ARCHITECTURES:
            supported = " | ".join((*ARCHITECTURES, VIT_MAE))
            raise RecipeError(f"model.backbone is a {architecture.model_type}: supported is {supported}")
        given_type = config.config.get("model_type", architecture.model_type)
        if given_type != architecture.model_type:
            raise RecipeError(
                f"model.config.model_type is {given_type!r}: the backbone is a {architecture.model_type}, leave it out"
            )
        _check_fields(architecture, config.config)
        try:
            for key, value in (config.config | fields).items():
                setattr(architecture, key, value)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise RecipeError(f"model.config: transformers refuses these values ({_one_line(error)})") from None
    _check_sizes(architecture)
    _check_image_size(architecture, config.image_size)
    return architecture


def _stock_config(config: ModelConfig, source: str) -> PreTrainedConfig:
    if config.revision is not None and Path(source).is_dir():
        raise RecipeError(f"model.revision is for a backbone on the Hub: {config.backbone} is a folder")
    try:
        stock: PreTrainedConfig = AutoConfig.from_pretrained(source, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise UsageError(
            f"model.backbone: {config.backbone} is neither a model folder nor on the Hub ({first_line(error)})"
        ) from None
    for key in ("auto_map", "custom_pipelines"):  # code that nothing here runs: what is made of it must not name it
        if hasattr(stock, key):
            delattr(stock, key)
    return stock


def _check_fields(architecture: PreTrainedConfig, given: dict[str, Any]) -> None:
    known = architecture.to_dict()
    for key in given:
        if key in ("id2label", "label2id", "num_labels", "problem_type"):
            raise RecipeError(f"model.config.{key} is refused: it is one of the two labels {ID2LABEL}")
        if key not in known:
            kind = architecture.model_type
            raise RecipeError(f"unknown key model.config.{key} for a {kind}{did_you_mean(key, known)}")


def _check_sizes(architecture: PreTrainedConfig) -> None:
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        value = getattr(architecture, key)
        require(value >= 1, f"model.config.{key}", value, "at least 1")
    width, heads = architecture.hidden_size, architecture.num_attention_heads
    require(width % heads == 0, "model.config.hidden_size", width, f"a multiple of num_attention_heads, {heads}")
    channels = architecture.num_channels
    require(channels == 3, "model.config.num_channels", channels, "3, for images are RGB")


def _check_image_size(architecture: PreTrainedConfig, image_size: int) -> None:
    patch = architecture.patch_size
    if not isinstance(patch, int) or patch < 1:
        raise RecipeError(f"model.config.patch_size is {patch!r}: allowed is a whole number of at least 1")
    if image_size % patch:
        below = image_size // patch * patch
        fitting = f"{below} or {below + patch}" if below else str(patch)
        raise RecipeError(f"model.image_size {image_size} is not a multiple of the patch size {patch}: use {fitting}")
    if has_fixed_size(architecture.model_type) and architecture.image_size != image_size:
        made_for = architecture.image_size
        raise RecipeError(f"model.image_size {image_size}: this {architecture.model_type} is fixed to {made_for}")


@no_loading_bars()
def _from_backbone(config: ModelConfig, architecture: PreTrainedConfig) -> PreTrainedModel:
    source = resolve_backbone(str(config.backbone))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is checked below; a fresh head is no alarm
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            source,
            config=architecture,
            revision=config.revision,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"model.backbone: {config.backbone} cannot be loaded ({first_line(error)})") from None
    finally:
        logging.set_verbosity(verbosity)
    loaded: PreTrainedModel = model
    fresh = {str(key) for key in info["missing_keys"]} | {str(key[0]) for key in info["mismatched_keys"]}
    lost = sorted(key for key in fresh if not key.startswith("classifier."))
    if lost:
        raise UsageError(
            f"model.backbone: {config.backbone} lacks {len(lost)} tensors of its own architecture, as {lost[0]}"
        )
    broken = next((name for name, weights in loaded.named_parameters() if not weights.isfinite().all()), None)
    if broken is not None and not broken.startswith("classifier."):
        raise UsageError(f"model.backbone: {config.backbone} holds NaN or infinity in {broken}: take another")
    _reset_head(head_of(loaded), architecture.initializer_range)
    return loaded


def _reset_head(head: nn.Linear, std: float) -> None:
    """A fresh head even where the backbone's folder held one: two labels of another question are not a start."""
    nn.init.trunc_normal_(head.weight, std=std)
    nn.init.zeros_(head.bias)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
