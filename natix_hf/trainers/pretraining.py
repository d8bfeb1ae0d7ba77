"""Assemble a self-supervised training: the trainable weights, the objective, the views and the probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder
from transformers.trainer_utils import IntervalStrategy

from natix_hf.data.asked import Asked, ask
from natix_hf.data.config import Augment, ViewsOn
from natix_hf.data.rows import Rows
from natix_hf.data.sampler import EpochSampler
from natix_hf.data.stream import Draws, Stream, StreamedViews
from natix_hf.data.views import AskedViews, choose_place
from natix_hf.errors import RecipeError
from natix_hf.models.architectures import why_not_unlabelled
from natix_hf.models.device import loader_workers
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
    """The parts of an `ExploraTrainer`.

    Attributes:
        given: Objective, views, sampler and probe, as keyword arguments of the trainer.
        objective: Name of the objective.
        trainable: Number of trainable parameters of the backbone, without heads and decoder, which are discarded.
        labelled: True if a linear probe chooses the best backbone.
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
    probe_rows: tuple[Asked, Asked] | None,
    config: ExploraConfig,
    augment: Augment,
    arguments: TrainingArguments,
    decoder: ViTMAEDecoder | None = None,
    settings: dict[str, Any] | None = None,
    resuming: bool = False,
    stream: Stream | None = None,
    views_on: ViewsOn = "auto",
) -> Pretraining:
    """Choose the trainable weights of the backbone, and build objective, views and probe.

    Args:
        backbone: The backbone. It is changed in place.
        processor: Image processor of the backbone.
        images: Rows to train on. With `stream`: a sample of it, on which backbones are compared.
        probe_rows: What a probe is fitted and scored on: labelled pictures, or their views in the exam. None: there
            are no labels.
        config: Settings of the stage.
        augment: Augmentation of the training views.
        arguments: Completed in place with the times of the probes and the score to choose by.
        decoder: A decoder that was pretrained with the backbone. None: a new decoder.
        settings: Sections of the objective by name. They replace those of `config`.
        resuming: True if training resumes. The backbone is then not probed before the first step.
        stream: Frames to train on in place of `images`.
        views_on: Where training views are made (`choose_place`).

    Raises:
        RecipeError: As `check_pretraining` does.
    """
    seed, size, patch = arguments.seed, Preprocess(processor).image_size, backbone.config.patch_size
    name = config.objective or default_objective(backbone.config.model_type)
    check_pretraining(backbone, config, size, settings)
    cls = objective_class(name)
    sections = settings_of(cls, config) | (settings or {})
    model = make_objective(backbone, config, size, seed, decoder, len(images), sections)
    labelled = probe_rows is not None and config.probe_steps > 0
    if config.probe_steps > 0:
        arguments.eval_strategy = arguments.save_strategy = IntervalStrategy.STEPS
        arguments.eval_steps = arguments.save_steps = config.probe_steps
    arguments.load_best_model_at_end = labelled
    arguments.metric_for_best_model = BEST_BY if labelled else None
    arguments.greater_is_better = True
    arguments.eval_on_start = config.probe_steps > 0 and not resuming  # score the backbone before training
    preprocess = Preprocess(processor)
    views: Any = cls.views(images, processor, patch, augment, seed, **sections)
    choose_place(views, views_on, arguments.device)
    if stream is not None:
        if not isinstance(views, Draws):
            raise RecipeError(
                f"phase4.stream: the views of the objective {name} have no method `draw`: set it to false"
            )
        views = StreamedViews(stream, views, arguments.per_device_train_batch_size)
    given = {
        "model": model,
        "train_sampler": EpochSampler(images.labels, seed) if stream is None else None,
        "train_dataset": views,
        "eval_dataset": AskedViews(ask(images), preprocess),
        "probe": Probes(images, probe_rows, preprocess, config.probe_rows, arguments.per_device_eval_batch_size, seed),
    }
    return Pretraining(given, name, count_trainable(backbone), labelled)


def check_pretraining(
    backbone: PreTrainedModel, config: ExploraConfig, image_size: int, settings: dict[str, Any] | None = None
) -> None:
    """Check that the settings fit the backbone, which may be on the meta device.

    Raises:
        RecipeError: If they do not.
    """
    model_type = backbone.config.model_type
    why = why_not_unlabelled(model_type)
    if why is not None:
        raise RecipeError(f"phase4: {why}")
    if config.trainable != "all":
        divide_blocks(backbone, config.unfreeze_blocks, adapt_others=config.trainable == "explora")
    cls = objective_class(config.objective or default_objective(model_type))
    if config.stream and cls.no_stream is not None:
        raise RecipeError(f"phase4.stream is true: {cls.no_stream}; set it to false, or take another phase4.objective")
    cls.check(backbone, image_size, **(settings_of(cls, config) | (settings or {})))


def make_objective(
    backbone: PreTrainedModel,
    config: ExploraConfig,
    image_size: int,
    seed: int,
    decoder: ViTMAEDecoder | None,
    images: int,
    sections: dict[str, Any],
) -> Any:
    """Choose the trainable weights of the backbone, which is changed in place, and build the objective around it.

    Args:
        images: Number of different images to train on. It means nothing with a stream.
        sections: Sections of the objective by name, as `settings_of` gives them.
    """
    cls = objective_class(config.objective or default_objective(backbone.config.model_type))
    return cls.build(_student(backbone, config, seed), image_size, seed, decoder, images, **sections)


def _student(backbone: PreTrainedModel, config: ExploraConfig, seed: int) -> nn.Module:
    if config.trainable == "explora":
        torch.manual_seed(seed)  # LoRA's initial weights
        return apply_explora(backbone, config.rank, config.alpha, config.unfreeze_blocks)
    if config.trainable == "blocks":
        return unfreeze_blocks_alone(backbone, config.unfreeze_blocks)
    return backbone.requires_grad_(True)


class Probes:
    """Compute figures of a backbone: of its features, and with labels also of a linear and a k-NN probe.

    It reads one view of each chosen row. With an exam the levels take turns.
    """

    def __init__(
        self,
        images: Rows,
        labelled: tuple[Asked, Asked] | None,
        preprocess: Preprocess,
        most: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.asked = labelled if labelled is not None else (ask(images),)
        self.labelled = labelled is not None
        self.views = [AskedViews(asked, preprocess) for asked in self.asked]
        self.chosen = [
            [row * asked.views + turn % asked.views for turn, row in enumerate(chosen)]
            for asked in self.asked
            for chosen in [_some_of_each_label(asked.row_labels, most, seed)]
        ]
        self.batch_size = batch_size

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        features = [
            backbone_features(backbone, views, chosen, self.batch_size, loader_workers(on_cpu=0))
            for views, chosen in zip(self.views, self.chosen, strict=True)
        ]
        figures = feature_figures(features[0])
        if self.labelled:
            train, val = (asked.labels[chosen] for asked, chosen in zip(self.asked, self.chosen, strict=True))
            figures |= probe_scores(features[0], train, features[1], val)
        return figures


def _some_of_each_label(labels: np.ndarray, most: int, seed: int) -> list[int]:
    """Draw about `most` rows, with the share of each label kept and at least two rows of each."""
    rng = np.random.default_rng(seed)
    share = min(1.0, most / len(labels))
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = [rng.permutation(rows)[: max(2, round(share * len(rows)))] for rows in members]
    return [int(row) for row in np.sort(np.concatenate(drawn))]
