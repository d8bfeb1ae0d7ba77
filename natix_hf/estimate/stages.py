"""The optimizer step of each stage of a recipe, as shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageClassification, TrainingArguments

from natix_hf.estimate.loader import stage_of
from natix_hf.estimate.pictures import Few, objective_views
from natix_hf.estimate.shapes import Footprint, step_footprint
from natix_hf.models.adapters import AUTO, add_adapter
from natix_hf.models.classifier import check_model
from natix_hf.models.resolved import resolved_config
from natix_hf.models.tuner import Adapted, count_trainable
from natix_hf.recipe import Recipe
from natix_hf.ssl.objectives import default_objective, objective_class, settings_of
from natix_hf.trainers.arguments import training_arguments
from natix_hf.trainers.pretraining import make_objective
from natix_hf.trainers.stage import FirstEpoch

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NOWHERE = Path("outputs")


def stock_classifier(recipe: Recipe) -> Any:
    """The classifier of a recipe with random weights."""
    architecture = resolved_config(recipe.model, recipe.data.labels)
    return AutoModelForImageClassification.from_config(architecture, dtype=torch.float32)


def stage_footprint(
    recipe: Recipe, stage: str, gpus: int, processor: Any, few: Few, images: int, batch_size: int | None = None
) -> Footprint:
    """What an optimizer step of a stage needs on one of so many GPUs.

    Args:
        few: Pictures, from which the objective's views are made.
        images: Number of different images that phase 4 trains on.
        batch_size: Another batch size than the recipe's.
    """
    section = stage_of(recipe, stage)
    fields = section.training_fields()
    precision = next((name for name in PRECISIONS if fields.get(name)), None)
    plain = {key: value for key, value in fields.items() if key not in (*PRECISIONS, "tf32", "report_to")}
    if batch_size is not None:
        plain["per_device_train_batch_size"] = batch_size
    arguments: TrainingArguments = training_arguments(plain, _NOWHERE, stage)
    copies = int(getattr(section, "ema_decay", None) is not None) + int(gpus > 1)  # DDP's buckets are one more
    copies += 2 * int(getattr(section, "profit", None) is not None)  # where a step began, and how far it has moved
    make, item, loss = (
        _objective(recipe, processor, few, images) if stage == "phase4" else _supervised(recipe, section)
    )
    return step_footprint(make, item, loss, arguments, PRECISIONS[precision] if precision else None, copies)


_Parts = tuple[
    Callable[[], nn.Module],
    Mapping[str, torch.Tensor],
    Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor],
]


def _supervised(recipe: Recipe, section: Any) -> _Parts:
    size = recipe.model.image_size
    item = {"pixel_values": torch.zeros(3, size, size), "labels": torch.zeros((), dtype=torch.int64)}

    def make() -> nn.Module:
        model: nn.Module = stock_classifier(recipe)
        if section.adapter == "full":
            return model
        name = "lora" if section.adapter == AUTO else section.adapter  # the others of a bake-off are as large
        options = {} if section.adapter == AUTO else section.adapter_options
        return Adapted(add_adapter(model, name, options, 10**6, 0, section.where))  # type: ignore[arg-type]

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return cross_entropy(model(pixel_values=batch["pixel_values"])["logits"].float(), batch["labels"])

    return make, item, loss


def _objective(recipe: Recipe, processor: Any, few: Few, images: int) -> _Parts:
    views = objective_views(recipe, processor, check_model(recipe.model), few.rows)
    item = FirstEpoch(views, keyed=True)[0]
    return partial(_stock_objective, recipe, images), item, lambda model, batch: model(**batch)["loss"]


def _stock_objective(recipe: Recipe, images: int) -> nn.Module:
    config, backbone = recipe.phase4, stock_classifier(recipe).base_model
    cls = objective_class(config.objective or default_objective(backbone.config.model_type))
    settings = settings_of(cls, config)
    made: nn.Module = make_objective(backbone, config, recipe.model.image_size, config.seed, None, images, settings)
    return made


def trained_weights(recipe: Recipe, images: int) -> int:
    """The number of weights that phase 4 trains on so many different images, with what is thrown away."""
    with torch.device("meta"):
        return count_trainable(_stock_objective(recipe, images))
