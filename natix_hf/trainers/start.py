"""Prepare the model of a trainer from an id, a folder or an instance, and the matching image processor."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from natix_hf.errors import UsageError, first_line
from natix_hf.labels import names_in
from natix_hf.models.architectures import has_fixed_size, size_step
from natix_hf.models.classifier import answered_labels, build_backbone, build_classifier
from natix_hf.models.config import ModelConfig, bundle_of_run
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.models.resolved import resolve_backbone
from natix_hf.trainers.converged import start_of_training

_USUAL_PX = 224


def start_classifier(
    model: Any,
    processor: Any,
    image_size: int | None,
    seed: int,
    names: list[str] | None,
    where: str,
    keep_head: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Prepare a classifier with two labels and its processor.

    Args:
        model: Hub id or folder of a backbone or classifier, which gets a new head. Or a classifier, which is used
            as it is and trained in place.
        processor: Image processor. None makes one for the model.
        image_size: Side of the square pictures in px. None: the model's own size, at most 224 if it takes any size.
        seed: Seed of the new head.
        names: Names of labels 0 and 1. None: the subnet's names.
        where: Name of the trainer, for error messages.
        keep_head: Keep the head of an id or folder, which must be a classifier with these labels.

    Raises:
        UsageError, RecipeError: If there is no such model, it is not a classifier with two labels, or it has the names
            of the rows for other labels.
    """
    if isinstance(model, str | os.PathLike):
        config = model_config(os.fspath(model), processor, image_size)
        if keep_head:
            own = names_in(dict(enumerate(names))) if names is not None else answered_labels(config)
            return start_of_training(config, seed, own, keep_head), processor or make_processor(config)
        built = build_classifier(config, seed)
        if names is not None:
            built.config.id2label = dict(enumerate(names))
            built.config.label2id = {name: number for number, name in enumerate(names)}
        return built, processor or make_processor(config)
    _require_model(model, where)
    if getattr(model.config, "num_labels", None) != 2 or not hasattr(model, "classifier"):
        raise UsageError(
            f"{where}: {type(model).__name__} is not a classifier with two labels: give a model id, or load it with "
            "AutoModelForImageClassification.from_pretrained(..., num_labels=2)"
        )
    theirs = model.config.id2label or {}
    if names is not None and [theirs.get(1), theirs.get(0)] == names:
        raise UsageError(
            f"{where}: the rows name 0 {names[0]} and 1 {names[1]}, and the model the other way round: give "
            "model.config.id2label the names of the rows, or use their align_labels_with_mapping"
        )
    _free_of_mask_token(model)
    return model, processor or make_processor(_config_of(model, image_size))


def start_backbone(
    model: Any, processor: Any, image_size: int | None, seed: int, where: str
) -> tuple[PreTrainedModel, Any, ModelConfig | None]:
    """Prepare a backbone without a head, its processor, and its source (None if `model` is an instance).

    Args and errors are those of `start_classifier`.
    """
    if isinstance(model, str | os.PathLike):
        config = model_config(os.fspath(model), processor, image_size)
        return build_backbone(config, seed), processor or make_processor(config), config
    _require_model(model, where)
    backbone: Any = model.base_model
    return backbone, processor or make_processor(_config_of(model, image_size)), None


def model_config(source: str, processor: Any, image_size: int | None) -> ModelConfig:
    """Make the model section of a recipe for a backbone by id or folder.

    Raises:
        UsageError: If there is no such model.
    """
    source = bundle_of_run(source)
    if image_size is None:
        folder = resolve_backbone(source)
        try:
            stock = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"model: {source} is neither a model folder nor on the Hub ({first_line(error)})"
            ) from None
        image_size = _own_size(stock, processor)
    return ModelConfig(backbone=source, image_size=image_size)


def _config_of(model: PreTrainedModel, image_size: int | None) -> ModelConfig:
    size = image_size or _own_size(model.config, None)
    source = str(model.name_or_path or "")
    if source:  # take its own mean and standard deviation, if they can be found
        return ModelConfig(backbone=source, image_size=size)
    return ModelConfig(config={"model_type": model.config.model_type}, image_size=size)


def _own_size(config: Any, processor: Any) -> int:
    if processor is not None:
        return Preprocess(processor).image_size
    own = int(getattr(config, "image_size", _USUAL_PX))
    if has_fixed_size(config.model_type):
        return own
    step = size_step(int(getattr(config, "patch_size", 1)), getattr(config, "depths", None))
    return max(step, min(_USUAL_PX, own) // step * step)


def _require_model(model: Any, where: str) -> None:
    if not isinstance(model, PreTrainedModel):
        raise UsageError(f"{where}: model is a {type(model).__name__}: give a model id, a folder or a PreTrainedModel")


def _free_of_mask_token(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token"):  # classification does not use it, and DDP would wait for its gradient
            parameter.requires_grad_(False)
