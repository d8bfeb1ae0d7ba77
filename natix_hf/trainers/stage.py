"""Assemble a supervised training: the trainable weights, the views, the order of the rows and the scoring."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset, default_collate
from transformers import PreTrainedModel, TrainingArguments

from natix_hf.data.asked import Asked, ask
from natix_hf.data.config import Augment, ViewsOn
from natix_hf.data.rows import Rows
from natix_hf.data.sampler import EpochSampler, JoinedSampler, RowOrder, rows_of_an_epoch
from natix_hf.data.views import VIEWS_VERSION, AskedViews, FeatureViews, TrainViews, choose_place, finished
from natix_hf.errors import DataError, cut
from natix_hf.metrics.prior import class_weights
from natix_hf.models.adapters import add_adapter
from natix_hf.models.classifier import head_of
from natix_hf.models.features import Head, View, cached_features
from natix_hf.models.preprocess import Preprocess
from natix_hf.models.tuner import Adapted
from natix_hf.provenance.files import ids_sha256
from natix_hf.trainers.adalora import AdaLoraCallback
from natix_hf.trainers.arguments import optimizer_steps
from natix_hf.trainers.distil import Distillation, taught
from natix_hf.trainers.supervised_config import SupervisedConfig

# `Rows` and `Asked` are prepared here. Any other torch dataset must yield the model's inputs.
Trained = Rows | Dataset[Any]
Scored = Asked | Dataset[Any]


@dataclass(frozen=True)
class Stage:
    """The parts of a `RoadworkTrainer`.

    Attributes:
        given: Model, datasets, sampler, class weights and callbacks, as keyword arguments of the trainer.
        plain: The whole classifier. `given["model"]` is the classifier itself, a wrapper around it, or a part of it.
        adapted: The PeftModel around the classifier. None without an adapter.
        pictures: What is asked in evaluation, as `predict` sees it. None if nothing is.
        taught: Facts about the teachers (`taught`). None without a teacher.
    """

    given: dict[str, Any]
    plain: PreTrainedModel
    adapted: PeftModel | None
    pictures: Any
    taught: dict[str, Any] | None = None


def make_stage(
    model: PreTrainedModel,
    processor: Any,
    train: Trained | None,
    evaluation: Scored | None,
    config: SupervisedConfig,
    augment: Augment,
    target_prior: float | None,
    arguments: TrainingArguments,
    views_on: ViewsOn = "auto",
    distillation: Distillation | None = None,
) -> Stage:
    """Add the adapter to the model and make the views of the rows.

    Args:
        model: A classifier with two labels. It is changed in place.
        processor: The image processor that is saved with the model.
        train: `Rows`, or a torch dataset that yields `pixel_values` and `labels` and is used unchanged.
        evaluation: `Asked`, or such a dataset.
        config: Settings; `adapter`, `adapter_options`, `feature_views` and `prior_by` are used.
        augment: Augmentation of the training views.
        target_prior: Share of label 1 to train for. None: the share in the rows.
        arguments: Settings of the training. With `adapter: none` the number of workers is set to 0.
        views_on: Where training views are made (`choose_place`).
        distillation: Teachers, whose answers are computed here, or read from a cache, and further rows.

    Raises:
        RecipeError: If the adapter does not fit the model.
        DataError: If `target_prior`, a teacher or `adapter: none` is used and `train` is not `Rows`.
    """
    seed = arguments.seed
    if train is None and config.adapter != "full":
        raise DataError(f"{config.where}: adapter={cut(config.adapter)} needs a train_dataset")
    needs = {"target_prior": target_prior is not None, "adapter='none'": config.adapter == "none"}
    key = next((key for key, asked in (needs | {"a teacher": distillation is not None}).items() if asked), None)
    if key is not None and train is not None and not isinstance(train, Rows):
        raise DataError(f"{config.where}: {key} needs a train_dataset with an image and a label column")
    preprocess = Preprocess(processor)
    views: Any = train
    sampler: RowOrder | None = None
    if isinstance(train, Rows):
        by_sampler = target_prior if config.prior_by == "sampler" else None
        sampler = EpochSampler(train.labels, seed, by_sampler, train.origins, train.shares)
        rows = distillation.rows(train) if distillation is not None else train
        if len(rows) > len(train):
            sampler = JoinedSampler(sampler, len(rows) - len(train))
        mean, std = processor.image_mean, processor.image_std
        views = TrainViews(rows, augment, preprocess.image_size, mean, std, seed)
        choose_place(views, views_on, arguments.device)
    pictures: Any = AskedViews(evaluation, preprocess) if isinstance(evaluation, Asked) else evaluation
    given: dict[str, Any] = {"model": model, "train_dataset": views, "eval_dataset": pictures}
    adapted = None
    if config.adapter == "none":
        assert isinstance(train, Rows)
        given["model"] = Head(head_of(model))
        given |= _features(model, processor, rows, evaluation, views, pictures, config, augment, arguments)
        # Reading a batch of features takes less time than passing it from a worker.
        arguments.dataloader_num_workers, arguments.dataloader_persistent_workers = 0, False
    elif config.adapter != "full":
        steps = optimizer_steps(arguments, len(sampler) if sampler is not None else len(views))
        adapted = add_adapter(model, config.adapter, config.adapter_options, steps, seed, config.where)
        given["model"] = Adapted(adapted)
    if isinstance(train, Rows):
        by_loss = target_prior if config.prior_by == "loss" else None
        given["train_sampler"] = sampler
        given["class_weights"] = _class_weights(train, by_loss) if by_loss is not None else None
    facts = None
    if distillation is not None and isinstance(train, Rows):
        asked = evaluation if isinstance(evaluation, Asked) else None
        rest = (config, augment, target_prior, arguments, views_on)
        given["train_dataset"], facts = taught(
            given["train_dataset"], distillation, train, asked, preprocess.image_size, *rest
        )
    given["distil"] = config.distil
    given["adalora"] = AdaLoraCallback(adapted) if adapted is not None and config.adapter == "adalora" else None
    return Stage(given, model, adapted, pictures, facts)


def first_images(views: Any, most: int = 32) -> torch.Tensor:
    """Stack evenly spaced rows as `predict` sees them, float32 [n, 3, H, W]. Rows may be sorted by class."""
    chosen = torch.linspace(0, len(views) - 1, min(most, len(views))).round().long().tolist()
    return torch.stack([torch.as_tensor(views[row]["pixel_values"]) for row in chosen])


class FirstEpoch(Dataset[Any]):
    """Finished views of epoch 0, indexed by row. `keyed` says that the views are indexed by `(epoch, row)`."""

    def __init__(self, views: Any, keyed: bool) -> None:
        self.views, self.keyed = views, keyed

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, row: int) -> Any:
        item = self.views[(0, row) if self.keyed else row]
        if not hasattr(self.views, "finish"):
            return item
        batch = finished(self.views, default_collate([item]))
        return {name: values[0] for name, values in batch.items()}


class Unlabelled(Dataset[Any]):
    """Views without labels. An item holds only `pixel_values`."""

    def __init__(self, views: AskedViews) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.views[row]["pixel_values"]}


def _features(
    model: nn.Module,
    processor: Any,
    train: Rows,
    evaluation: Scored | None,
    views: TrainViews,
    pictures: Any,
    config: SupervisedConfig,
    augment: Augment,
    arguments: TrainingArguments,
) -> dict[str, Any]:
    """Cache the features of all rows.

    View 0 of a train row is the picture as `predict` sees it. Views 1, 2, ... are augmented and drawn as in epochs 1,
    2, ...
    """

    def features(views: list[View], asked: Asked, extra: Any) -> Any:
        exam = [asdict(asked.exam)] if asked.exam is not None else []
        key = [processor.to_dict(), asked.fingerprint, ids_sha256(asked.row_ids), *exam, extra]
        workers = arguments.dataloader_num_workers
        batch_size = arguments.per_device_eval_batch_size
        with arguments.main_process_first(desc="features"):  # rank 0 computes, the other ranks read its cache
            return cached_features(model, views, key, batch_size, workers, arguments.device)

    whole = ask(train)
    plain: View = (AskedViews(whole, Preprocess(processor)), range(len(train)))
    augmented: list[View] = [
        (views, [(view, row) for row in range(len(train))]) for view in range(1, config.feature_views)
    ]
    settings = augment if augment == "challenge" else asdict(augment)
    extra = [settings, arguments.seed, VIEWS_VERSION, views.on_device] if augmented else None
    of_train = features([plain, *augmented], whole, [config.feature_views, extra])
    found: dict[str, Any] = {"train_dataset": FeatureViews(of_train, train.labels)}
    if isinstance(evaluation, Asked):
        of_answers = features([(pictures, range(len(evaluation)))], evaluation, None)
        found["eval_dataset"] = FeatureViews(of_answers, evaluation.labels)
    return found


def _class_weights(train: Rows, target_prior: float) -> list[float]:
    drawn = np.ones(len(train))  # a source with a share gives fewer rows to an epoch than it has
    origins = np.asarray(train.origins)
    for name, count in rows_of_an_epoch(origins, train.shares).items():
        drawn[origins == name] = count / (origins == name).sum()
    positives, negatives = (round(drawn[train.labels == label].sum()) for label in (1, 0))
    positive, negative = class_weights(positives, negatives, target_prior)
    return [negative, positive]
