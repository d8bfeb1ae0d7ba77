"""The parts of a self-supervised training: what is trained, by which objective, and how it is probed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder
from transformers.trainer_utils import IntervalStrategy

from natix_hf.data.asked import ask
from natix_hf.data.config import Augment
from natix_hf.data.rows import Rows
from natix_hf.data.sampler import EpochSampler
from natix_hf.data.views import AskedViews
from natix_hf.errors import RecipeError
from natix_hf.models.architectures import ARCHITECTURES, architecture_of
from natix_hf.models.preprocess import Preprocess
from natix_hf.models.tuner import count_trainable
from natix_hf.ssl.collapse import feature_figures
from natix_hf.ssl.explora import apply_explora, divide_blocks, unfreeze_blocks_alone
from natix_hf.ssl.objective import Objective
from natix_hf.ssl.objectives import default_objective, objective_class, settings_of
from natix_hf.ssl.probe import backbone_features, probe_scores
from natix_hf.trainers.explora_config import ExploraConfig

BEST_BY = "linear_auroc"


@dataclass(frozen=True)
class Pretraining:
    """What `ExploraTrainer` is made of.

    Attributes:
        given: objective, views, sampler and probe, by the names of its arguments.
        objective: its name.
        trainable: trained parameters of the backbone; heads and decoder, which are thrown away, are not counted.
        labelled: whether the best backbone is chosen by a linear probe.
    """

    given: dict[str, Any]
    objective: str
    trainable: int
    labelled: bool

    @property
    def model(self) -> Objective:
        model: Objective = self.given["model"]
        return model

    @property
    def pictures(self) -> AskedViews:
        """The images as `predict` sees them."""
        pictures: AskedViews = self.given["eval_dataset"]
        return pictures


def make_pretraining(
    backbone: PreTrainedModel,
    processor: Any,
    images: Rows,
    probe_rows: tuple[Rows, Rows] | None,
    config: ExploraConfig,
    augment: Augment,
    arguments: TrainingArguments,
    decoder: ViTMAEDecoder | None = None,
    settings: dict[str, Any] | None = None,
    resuming: bool = False,
) -> Pretraining:
    """Choose what of the backbone is trained, and build objective, views and probe.

    Args:
        backbone: changed in place.
        probe_rows: labelled rows to fit a probe on and to score it on; None: there are no labels.
        config: of the stage.
        arguments: completed in place: when to probe, and by what to choose.
        decoder: pretrained with the backbone, for a masked autoencoder; None: a fresh one.
        settings: sections of the objective by name, in place of those of `config`.
        resuming: training goes on from a checkpoint, so that the backbone is not probed before the first step.

    Raises:
        RecipeError: as `check_pretraining`.
    """
    seed, size, patch = arguments.seed, Preprocess(processor).image_size, backbone.config.patch_size
    name = config.objective or default_objective(backbone.config.model_type)
    check_pretraining(backbone, config, size, settings)
    cls = objective_class(name)
    sections = settings_of(cls, config) | (settings or {})
    model: Any = cls.build(_student(backbone, config, seed), size, seed, decoder, **sections)
    labelled = probe_rows is not None and config.probe_steps > 0
    if config.probe_steps > 0:
        arguments.eval_strategy = arguments.save_strategy = IntervalStrategy.STEPS
        arguments.eval_steps = arguments.save_steps = config.probe_steps
    arguments.load_best_model_at_end = labelled
    arguments.metric_for_best_model = BEST_BY if labelled else None
    arguments.greater_is_better = True
    arguments.eval_on_start = config.probe_steps > 0 and not resuming  # what the backbone knew before
    preprocess = Preprocess(processor)
    given = {
        "model": model,
        "train_sampler": EpochSampler(images.labels, seed),
        "train_dataset": cls.views(images, processor, patch, augment, seed, **sections),
        "eval_dataset": AskedViews(ask(images), preprocess),
        "probe": Probes(images, probe_rows, preprocess, config.probe_rows, arguments.per_device_eval_batch_size, seed),
    }
    return Pretraining(given, name, count_trainable(backbone), labelled)


def check_pretraining(
    backbone: PreTrainedModel, config: ExploraConfig, image_size: int, settings: dict[str, Any] | None = None
) -> None:
    """Refuse settings that do not fit the backbone, which may be on the meta device.

    Raises:
        RecipeError
    """
    model_type = backbone.config.model_type
    found = architecture_of(model_type)
    if found is not None and found.objective is None:
        others = " or ".join(name for name, other in ARCHITECTURES.items() if other.objective is not None)
        raise RecipeError(f"phase4: a {model_type} cannot be trained without labels here: use {others}")
    if config.trainable != "all":
        divide_blocks(backbone, config.unfreeze_blocks, adapt_others=config.trainable == "explora")
    cls = objective_class(config.objective or default_objective(model_type))
    cls.check(backbone, image_size, **(settings_of(cls, config) | (settings or {})))


def _student(backbone: PreTrainedModel, config: ExploraConfig, seed: int) -> nn.Module:
    if config.trainable == "explora":
        torch.manual_seed(seed)  # LoRA's first weights
        return apply_explora(backbone, config.rank, config.alpha, config.unfreeze_blocks)
    if config.trainable == "blocks":
        return unfreeze_blocks_alone(backbone, config.unfreeze_blocks)
    return backbone.requires_grad_(True)


class Probes:
    """Figures of a backbone: of its features, and of a linear and a nearest-neighbour probe where there are labels."""

    def __init__(
        self,
        images: Rows,
        labelled: tuple[Rows, Rows] | None,
        preprocess: Preprocess,
        most: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.rows = labelled if labelled is not None else (images,)
        self.labelled = labelled is not None
        self.views = [AskedViews(ask(rows), preprocess) for rows in self.rows]
        self.chosen = [_some_of_each_label(rows.labels, most, seed) for rows in self.rows]
        self.batch_size = batch_size

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        features = [
            backbone_features(backbone, views, chosen, self.batch_size)
            for views, chosen in zip(self.views, self.chosen, strict=True)
        ]
        figures = feature_figures(features[0])
        if self.labelled:
            train, val = (rows.labels[chosen] for rows, chosen in zip(self.rows, self.chosen, strict=True))
            figures |= probe_scores(features[0], train, features[1], val)
        return figures


def _some_of_each_label(labels: np.ndarray, most: int, seed: int) -> list[int]:
    """At most about `most` rows, drawn within each label, at least two of each: a probe needs both."""
    rng = np.random.default_rng(seed)
    share = min(1.0, most / len(labels))
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = [rng.permutation(rows)[: max(2, round(share * len(rows)))] for rows in members]
    return [int(row) for row in np.sort(np.concatenate(drawn))]
