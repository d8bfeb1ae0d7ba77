"""From a recipe's `model:` section to the transformers config of a classifier, checked before any weight is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from natix_hf.errors import RecipeError, UsageError, cut, did_you_mean, first_line, require
from natix_hf.labels import LabelNames
from natix_hf.models.architectures import ARCHITECTURES, VIT_MAE, has_fixed_size, size_step
from natix_hf.models.checkpoint import SUPPORTED, refuse_folder, refuse_repo
from natix_hf.models.config import PACKAGED_PREFIX, ModelConfig
from natix_hf.models.schema import config_faults, config_keys, size_faults, stage_names
from natix_hf.models.vit_mae import encoder_config
from natix_hf.resources import resource_folder


def resolve_backbone(backbone: str) -> str:
    """Turn `packaged:NAME` into the folder that comes with the package; any other name stays as it is.

    Raises:
        [`RecipeError`]: no backbone of this name is packaged.
    """
    if not backbone.startswith(PACKAGED_PREFIX):
        return backbone
    folder = resource_folder("recipes") / "backbones" / backbone.removeprefix(PACKAGED_PREFIX)
    if not folder.is_dir():
        known = ", ".join(sorted(path.parent.name for path in folder.parent.glob("*/config.json"))) or "none"
        raise RecipeError(f"model.backbone: there is no packaged backbone {cut(folder.name)}, only {known}")
    return str(folder)


def resolved_config(config: ModelConfig, labels: LabelNames) -> PreTrainedConfig:
    """Resolve a `model:` section to the transformers config of a two-label classifier, and check it.

    Raises:
        As [`natix_hf.models.classifier.build_classifier`], apart from weights that cannot be used.
    """
    fields: dict[str, Any] = {"num_labels": 2, "id2label": labels.id2label}
    # A backbone that was trained as a classifier may have a problem_type, which would make the official miner answer
    # with a sigmoid instead of the softmax.
    fields |= {"label2id": labels.label2id, "problem_type": None}
    if config.backbone is None:
        given = {key: value for key, value in config.config.items() if key != "model_type"}
        model_type = config.config["model_type"]
        if model_type not in ARCHITECTURES:
            raise RecipeError(
                f"model.config.model_type is {cut(model_type)}: supported are {' | '.join(ARCHITECTURES)}"
            )
        _check_fields(AutoConfig.for_model(model_type), given)
        try:
            architecture = AutoConfig.for_model(model_type, **({"image_size": config.image_size} | given | fields))
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise RecipeError(f"model.config: transformers refuses these values ({one_line(error)})") from None
    else:
        source = resolve_backbone(config.backbone)
        architecture = stock_config(config, source)
        if architecture.model_type == VIT_MAE:
            architecture = encoder_config(architecture)
        if architecture.model_type not in ARCHITECTURES:
            raise RecipeError(f"model.backbone is a {architecture.model_type}: supported are {SUPPORTED}")
        given_type = config.config.get("model_type", architecture.model_type)
        if given_type != architecture.model_type:
            raise RecipeError(
                f"model.config.model_type is {cut(given_type)}: the backbone is a {architecture.model_type}, leave "
                f"it out"
            )
        _check_fields(architecture, config.config)
        try:
            for key, value in (config.config | fields).items():
                setattr(architecture, key, value)
            _name_stages(architecture, config.config)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise RecipeError(f"model.config: transformers refuses these values ({one_line(error)})") from None
    _check_sizes(architecture)
    _check_image_size(architecture, config.image_size)
    _check_export(architecture, config)
    return architecture


def stock_config(config: ModelConfig, source: str) -> PreTrainedConfig:
    """Load the config of a backbone as it is.

    Raises:
        [`RecipeError`]: a folder is given with a revision, or transformers does not know its kind of model.
        [`UsageError`]: there is no such backbone, or it is not one that transformers can load here.
    """
    if config.revision is not None and Path(source).is_dir():
        raise RecipeError(f"model.revision needs a backbone on the Hub: {config.backbone} is a folder")
    refuse_folder(str(config.backbone), source)
    try:
        stock: PreTrainedConfig = AutoConfig.from_pretrained(source, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError, StrictDataclassError) as error:
        if not Path(source).is_dir():
            refuse_repo(source, config.revision)
        unknown = re.search(r"model type `([^`]*)`", str(error))
        if unknown is not None:
            raise RecipeError(f"model.backbone is a {unknown[1]}: supported are {SUPPORTED}") from None
        raise UsageError(
            f"model.backbone: {config.backbone} is neither a model folder nor on the Hub ({first_line(error)})"
        ) from None
    for key in ("auto_map", "custom_pipelines"):  # the code is not run here: a model made of it must not name it
        if hasattr(stock, key):
            delattr(stock, key)
    return stock


def _check_fields(architecture: PreTrainedConfig, given: dict[str, Any]) -> None:
    known = architecture.to_dict()
    for key in given:
        if key in ("id2label", "label2id", "num_labels", "problem_type"):
            raise RecipeError(f"model.config.{key} is refused: data.labels names the two answers")
        if key not in known:
            kind = architecture.model_type
            raise RecipeError(f"unknown key model.config.{key} for a {kind}{did_you_mean(key, known)}")


def _name_stages(architecture: PreTrainedConfig, given: dict[str, Any]) -> None:
    """Name the stages of a config after its layers: a model that was cut down may have kept the names of all."""
    if hasattr(architecture, "stage_names") and not {"stage_names", "out_features", "out_indices"} & set(given):
        architecture.stage_names = stage_names(architecture.num_hidden_layers)
        architecture.set_output_features_output_indices(out_features=None, out_indices=None)


def _check_sizes(architecture: PreTrainedConfig) -> None:
    if not ARCHITECTURES[architecture.model_type].stages:  # their lists are checked with all that a bundle may hold
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            value = getattr(architecture, key)
            require(value >= 1, f"model.config.{key}", value, "at least 1")
        width, heads = architecture.hidden_size, architecture.num_attention_heads
        require(width % heads == 0, "model.config.hidden_size", width, f"a multiple of num_attention_heads, {heads}")
    channels = architecture.num_channels
    require(channels == 3, "model.config.num_channels", channels, "3: images are RGB")


def _check_image_size(architecture: PreTrainedConfig, image_size: int) -> None:
    patch = architecture.patch_size
    if not isinstance(patch, int) or patch < 1:
        raise RecipeError(f"model.config.patch_size is {cut(patch)}: it must be a whole number of at least 1")
    depths = getattr(architecture, "depths", ())
    step = size_step(patch, depths)
    if image_size % step:
        below = image_size // step * step
        fitting = f"{below} or {below + step}" if below else str(step)
        what = f"the patch size {patch}" if step == patch else f"{step} (patch {patch}, {len(depths)} stages)"
        raise RecipeError(f"model.image_size {image_size} is not a multiple of {what}: use {fitting}")
    if has_fixed_size(architecture.model_type) and architecture.image_size != image_size:
        made_for = architecture.image_size
        raise RecipeError(f"model.image_size {image_size}: this {architecture.model_type} is fixed to {made_for}")


def _check_export(architecture: PreTrainedConfig, config: ModelConfig) -> None:
    """Refuse now what no bundle may hold."""
    known = config_keys(architecture.model_type)
    for key in config.config:
        if key not in known and key != "model_type":
            raise RecipeError(f"model.config.{key} is refused: it is no value of the model, and no bundle holds it")
    content = json.loads(architecture.to_json_string())
    of_file = ("architectures", "dtype", "transformers_version")  # which saving writes
    content = {key: value for key, value in content.items() if key in known and key not in of_file}
    size = {"height": config.image_size, "width": config.image_size}
    for fault in size_faults(size, None):
        raise RecipeError(f"model.image_size: {fault}")
    for fault in config_faults(content):
        raise RecipeError(f"model.config: {fault}")
    for fault in size_faults(size, content):
        raise RecipeError(f"model.image_size: {fault}")


def one_line(error: BaseException) -> str:
    """Join the lines of an error."""
    return " ".join(str(error).split())
