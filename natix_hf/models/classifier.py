"""Yes/no classifiers and backbones: built from a Hub id, a folder or a config, and loaded back from disk."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

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

from natix_hf.errors import RecipeError, UsageError, VerificationError, first_line
from natix_hf.labels import SUBNET, LabelNames, names_in
from natix_hf.models.architectures import ARCHITECTURES, VIT_MAE, loading_options
from natix_hf.models.bars import no_loading_bars
from natix_hf.models.checkpoint import refuse_repo
from natix_hf.models.config import ModelConfig
from natix_hf.models.logit import logit_difference as logit_difference  # its place from before
from natix_hf.models.resolved import one_line, resolve_backbone, resolved_config, stock_config
from natix_hf.models.vit_mae import encoder_of, load_decoder

for _known in ARCHITECTURES.values():
    if _known.head is not None:
        importlib.import_module(_known.head)  # registers the class that transformers lacks


def build_classifier(
    config: ModelConfig, seed: int, labels: LabelNames = SUBNET, keep_head: bool = False
) -> PreTrainedModel:
    """Build the stock backbone with a fresh two-label head, in float32.

    Args:
        config ([`ModelConfig`]): The recipe's `model:` section.
        seed (`int`): Seed of every weight that is not loaded: the head, or without a backbone the whole model.
        labels (`LabelNames`): The names of the two answers, which the model's config stores.
        keep_head (`bool`, defaults to `False`): Keep the head that the backbone comes with, in place of a fresh one.

    Returns:
        `PreTrainedModel`: its forward takes `pixel_values` float32 [n, 3, size, size] and gives `logits` [n, 2].

    Raises:
        [`RecipeError`]: a field of `model.config` is unknown, the architecture is not supported, or it cannot take
            the image size.
        [`UsageError`]: there is no such backbone, or its weights cannot be used. With `keep_head` also if it is no
            classifier with these labels.
    """
    if keep_head:
        require_answers(config, labels)
    architecture = resolved_config(config, labels)
    torch.manual_seed(seed)
    if config.backbone is None:
        try:
            model: PreTrainedModel = AutoModelForImageClassification.from_config(architecture, dtype=torch.float32)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(f"model.config: transformers refuses these values ({one_line(error)})") from None
    else:
        model = _from_backbone(config, architecture, keep_head)
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token"):  # unused in classification: DDP would wait for its gradient
            parameter.requires_grad_(False)
    return model


def require_answers(config: ModelConfig, labels: LabelNames) -> None:
    """Refuse a backbone that is no classifier with these labels, from its config alone.

    Raises:
        [`UsageError`]: it is not.
    """
    found = answered_labels(config)
    if found != labels:
        raise UsageError(
            f"profit continues a classifier of {labels.no} and {labels.yes} (data.labels), and model.backbone "
            f"{config.backbone} answers {found.no} and {found.yes}: name the labels as it does, or leave profit out"
        )


def answered_labels(config: ModelConfig) -> LabelNames:
    """The two answers that a backbone gives as it comes.

    Raises:
        [`UsageError`]: it gives none.
    """
    why = "model.backbone is null"
    if config.backbone is not None:
        stock = stock_config(config, resolve_backbone(config.backbone))
        why = f"model.backbone {config.backbone} is none"
        if any(name.endswith("ForImageClassification") for name in stock.architectures or ()):
            try:
                return names_in(stock.id2label)
            except UsageError:
                why += f" (it has {len(stock.id2label or ())} labels)"
    raise UsageError(
        f"profit continues a classifier with two labels, and {why}: name a finished run, a bundle or another trained "
        "classifier, or leave profit out"
    )


def check_model(config: ModelConfig) -> PreTrainedModel:
    """Refuse what [`build_classifier`] would refuse, and models that cannot take an image, without loading weights.

    Returns:
        `PreTrainedModel`: on the meta device, so it has shapes and names but no weights.

    Raises:
        As [`build_classifier`].
    """
    architecture = resolved_config(config, SUBNET)
    if config.backbone is not None and not Path(resolve_backbone(config.backbone)).is_dir():
        refuse_repo(config.backbone, config.revision)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForImageClassification.from_config(architecture, dtype=torch.float32)
            model.train()
            model(pixel_values=torch.zeros(2, 3, config.image_size, config.image_size))
    except (ArithmeticError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"model.config: these values make no working model ({one_line(error)})") from None
    return model


def load_classifier(folder: Path) -> PreTrainedModel:
    """Load a merged candidate or bundle in float32. Exactly its own tensors are loaded.

    Raises:
        [`VerificationError`]: a tensor is missing, left over or has another shape.
    """
    return load_strictly(AutoModelForImageClassification, folder)


def build_backbone(config: ModelConfig, seed: int) -> PreTrainedModel:
    """Build the stock backbone without a head or pooler. Weights that are not loaded are drawn from `seed`.

    Raises:
        As [`build_classifier`].
    """
    backbone: Any = build_classifier(config, seed).base_model
    loaded: PreTrainedModel = backbone
    return loaded


def build_decoder(config: ModelConfig) -> ViTMAEDecoder | None:
    """Load the pretrained decoder of the backbone that [`build_backbone`] builds, in float32; `None` if it has none.

    Raises:
        As [`build_backbone`]; [`UsageError`] if a ViT-MAE lacks its decoder.
    """
    if config.backbone is None:
        return None
    source = resolve_backbone(config.backbone)
    if stock_config(config, source).model_type != VIT_MAE:
        return None
    return load_decoder(source, config.revision)


def load_backbone(folder: Path) -> PreTrainedModel:
    """Load a saved backbone in float32; of a ViT-MAE, its encoder as a `vit`. Exactly its own tensors are loaded.

    Raises:
        [`VerificationError`]: a tensor is missing, left over or has another shape.
    """
    model_type = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if model_type == VIT_MAE:
        whole: Any = load_strictly(ViTMAEForPreTraining, folder)
        return encoder_of(whole)
    return load_strictly(AutoModel, folder, **loading_options(model_type))


@no_loading_bars()
def load_strictly(model_class: Any, folder: Path, **options: Any) -> PreTrainedModel:
    """Load a local folder with `from_pretrained`, and refuse tensors that are missing, unexpected or misshapen.

    An adapter left beside merged weights is refused too: `from_pretrained` would attach it.

    Args:
        model_class (`type`): A model class or auto class of transformers.
        folder (`Path`): The folder.
        options: Further arguments of the model.

    Raises:
        [`VerificationError`]: the folder cannot be loaded, or its tensors do not fit.
    """
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
            trust_remote_code=False,  # if left open, transformers asks at the terminal
            **options,
        )
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise VerificationError(f"{folder} cannot be loaded as a model: {first_line(error)}") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            example = sorted(str(key) for key in info[kind])[0]
            raise VerificationError(
                f"{folder}: {len(info[kind])} {kind.replace('_', ' ')}, such as {example}: the weights do not fit"
            )
    loaded: PreTrainedModel = model
    return loaded


@no_loading_bars()
def save_model(folder: Path, model: PreTrainedModel, processor: Any) -> None:
    """Write a model and its image processor into a folder, as transformers reads them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    share_weights(folder)


def share_weights(folder: Path) -> None:
    """Give the weights that `save_pretrained` wrote the permissions of the configuration beside them. safetensors
    writes them for their owner alone, so that a service's user could not read a copied model."""
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", weights)


def head_of(model: nn.Module) -> nn.Linear:
    """Return the classifier layer, which every supported architecture calls `classifier`.

    Raises:
        [`RecipeError`]: it is not a linear layer.
    """
    head = model.get_submodule("classifier")
    if not isinstance(head, nn.Linear):
        raise RecipeError(f"the head of {type(model).__name__} is a {type(head).__name__}, not a linear layer")
    return head


@no_loading_bars()
def _from_backbone(config: ModelConfig, architecture: PreTrainedConfig, keep_head: bool) -> PreTrainedModel:
    source = resolve_backbone(str(config.backbone))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # missing tensors are checked below, and a fresh head is expected
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
            f"model.backbone: {config.backbone} lacks {len(lost)} tensors of its architecture, such as {lost[0]}"
        )
    broken = next((name for name, weights in loaded.named_parameters() if not weights.isfinite().all()), None)
    if broken is not None and (keep_head or not broken.startswith("classifier.")):
        raise UsageError(f"model.backbone: {config.backbone} holds NaN or infinity in {broken}: use another one")
    if keep_head and any(key.startswith("classifier.") for key in fresh):
        raise UsageError(f"model.backbone: {config.backbone} holds no classifier layer that profit could continue")
    if not keep_head:
        _reset_head(head_of(loaded), architecture.initializer_range)
    return loaded


def _reset_head(head: nn.Linear, std: float) -> None:
    """Draw a fresh head even if the backbone's folder held one: it was trained for another question."""
    nn.init.trunc_normal_(head.weight, std=std)
    nn.init.zeros_(head.bias)
