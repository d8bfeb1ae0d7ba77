"""`RoadworkTrainer`: trains a yes/no image classifier and keeps it by its best MCC on the evaluation rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments

from natix_hf.data.asked import ask
from natix_hf.data.config import Augment, AugmentConfig
from natix_hf.data.plain import class_names, is_plain, rows_of
from natix_hf.data.views import AskedViews
from natix_hf.errors import DataError, UsageError
from natix_hf.models.adapters import AUTO
from natix_hf.models.classifier import load_classifier, save_model
from natix_hf.models.preprocess import Preprocess
from natix_hf.trainers.adalora import AdaLoraCallback
from natix_hf.trainers.arguments import given_or_default, require_a_batch
from natix_hf.trainers.average import WeightAverage
from natix_hf.trainers.base import BaseTrainer
from natix_hf.trainers.config import SupervisedConfig
from natix_hf.trainers.merge_validation import MergeValidationCallback
from natix_hf.trainers.scores import EvaluationMetrics
from natix_hf.trainers.stage import FirstEpoch, Stage, Unlabelled, first_images, make_stage
from natix_hf.trainers.start import start_classifier

_WHERE = "RoadworkTrainer"
_UNSCORED = {"eval_strategy": "no", "metric_for_best_model": None, "load_best_model_at_end": False}
_TENSORS = ("pixel_values", "labels", "label")
MERGED = "merged"


class RoadworkTrainer(BaseTrainer):
    """Train a vision transformer to answer one yes/no question about images.

    It is a `transformers.Trainer`: `train`, `evaluate`, `predict` and `save_model` work as there. Training views are
    augmented, drawn from (seed, epoch, row), so that a resumed training continues to the same bits. The loss is
    cross-entropy over two labels; `label_smoothing_factor` is honoured.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): a Hub id or folder of a ViT or DINOv2, which gets a fresh head;
            or a classifier of two labels, which is trained in place.
        args (`TrainingArguments` or `dict`, *optional*): a dict overrides the project's defaults, None takes them: 10
            epochs at learning rate 5e-4 (cosine, 10% warm-up), weight decay 0.05, batches of 64, evaluation after
            every epoch, the best checkpoint by MCC. `TrainingArguments` are taken as they are.
        train_dataset (`datasets.Dataset`): with an image column and a label column (a `ClassLabel` of two names, 0 and
            1, or booleans); or a list of such rows; or any torch dataset that yields `pixel_values` float32
            [3, H, W] and `labels`, which is used as it is.
        eval_dataset: the same, or a dict of them, of which the first decides the best checkpoint; None:
            nothing is scored and the last weights are kept.
        image_column (`str`): name of the image column.
        label_column (`str`): name of the label column.
        adapter (`str`): "full", all weights; "none", the head alone on features computed once; or a tuner of PEFT, as
            "lora" or "dora" (`natix_hf.models.adapters`). A tuner is merged when training ends, the merged model is
            read back and compared (`proof`), and `trainer.model` is the plain merged model.
        adapter_options (`dict`, *optional*): options of the tuner's config, as `{"r": 16}`.
        target_prior (`float`, *optional*): share of label 1 that the model will meet; None: as found in the rows.
        prior_by (`str`): "sampler" or "loss": how training meets `target_prior`.
        augment (`AugmentConfig` or "challenge", *optional*): of training views; None: the recipes' default.
        processing_class (*optional*): image processor with a square size; None: one is made for the model.
        image_size (`int`, *optional*): px of the square pictures; None: the model's own, at most 224.
        feature_views (`int`): views of each row for `adapter="none"`.
        ema_decay (`float`, *optional*): score, choose and keep an average of the weights.
        class_weights (`list[float]`, *optional*): [weight of label 0, weight of label 1] in the loss.
        adalora: callback of an AdaLoRA adapter that is around the model already.
        kwargs: further arguments of `transformers.Trainer`, and `train_sampler` and `quiet` of `BaseTrainer`.

    Attributes:
        proof: figures of the merge, once a training with a tuner has ended; None before, and on other ranks.

    Raises:
        UsageError, RecipeError: the model is no yes/no classifier, or a setting cannot be right.
        DataError: a column is missing, a label is not 0 or 1, there is only one label, an image cannot be read.
        RunError (in training): the loss became NaN or infinite.
        MergeMismatchError (at the end of training): the merged model does not answer as the trained one did.

    Example:
        ```python
        from natix_hf import RoadworkTrainer

        trainer = RoadworkTrainer("facebook/dinov2-base", train_dataset=rows["train"], eval_dataset=rows["test"])
        trainer.train()
        trainer.evaluate()["eval_mcc"]
        trainer.save_model("roadwork")
        ```
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | dict[str, Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        image_column: str = "image",
        label_column: str = "label",
        adapter: str = "full",
        adapter_options: dict[str, Any] | None = None,
        target_prior: float | None = None,
        prior_by: Literal["sampler", "loss"] = "sampler",
        augment: Augment | None = None,
        processing_class: Any = None,
        image_size: int | None = None,
        feature_views: int = 1,
        ema_decay: float | None = None,
        class_weights: list[float] | None = None,
        adalora: AdaLoraCallback | None = None,
        **kwargs: Any,
    ) -> None:
        self._columns = (image_column, label_column)
        self._stage: Stage | None = None
        self._merge: MergeValidationCallback | None = None
        self._asks_features = adapter == "none"
        evaluations = list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]
        pictures = any(self._is_plain(dataset) for dataset in (train_dataset, *evaluations))
        defaults = SupervisedConfig().training_fields() | (_UNSCORED if eval_dataset is None else {})
        if isinstance(eval_dataset, dict) and eval_dataset:
            defaults = defaults | {"metric_for_best_model": f"{next(iter(eval_dataset))}_mcc"}
        arguments = given_or_default(args, defaults, _WHERE)
        train_dataset = self._tensors_only(train_dataset, "train")
        eval_dataset = self._tensors_only(eval_dataset, "eval")
        given = {"model": model, "train_dataset": train_dataset, "eval_dataset": eval_dataset}
        given |= {"class_weights": class_weights, "adalora": adalora}
        if pictures or adapter != "full" or not isinstance(model, nn.Module):
            if adapter == AUTO:
                raise UsageError(f"{_WHERE}: adapter='auto' compares trainings: name an adapter, or run a recipe")
            config = SupervisedConfig(
                adapter=adapter, adapter_options=adapter_options or {}, feature_views=feature_views, prior_by=prior_by,
                ema_decay=ema_decay, where=_WHERE,
            )  # fmt: skip
            names = class_names(train_dataset, label_column)
            model, processing_class = start_classifier(
                model, processing_class, image_size, arguments.seed, names, _WHERE
            )
            self._preprocess = Preprocess(processing_class)
            with arguments.main_process_first(desc="images"):  # the others read what rank 0 has decoded
                train = self._prepared(train_dataset, "train")
                evaluation = None if isinstance(eval_dataset, dict) else self._prepared(eval_dataset, "eval")
            views = AugmentConfig() if augment is None else augment
            self._stage = make_stage(
                model, processing_class, train, evaluation, config, views, target_prior, arguments
            )
            given |= {name: value for name, value in self._stage.given.items() if value is not None}
            if isinstance(eval_dataset, dict):
                given["eval_dataset"] = {name: self._asked(rows, name) for name, rows in eval_dataset.items()}
            if given["train_dataset"] is not None:
                require_a_batch(arguments, len(given["train_dataset"]), _WHERE)
        self._class_weights, self._adalora = given.pop("class_weights"), given.pop("adalora")
        if kwargs.get("compute_metrics") is None:
            kwargs["compute_metrics"] = EvaluationMetrics(target_prior)
        super().__init__(args=arguments, processing_class=processing_class, **given, **kwargs)
        trained: Any = self.model
        self._average = WeightAverage(trained, ema_decay) if ema_decay is not None else None
        if self._average is not None:
            self.add_callback(self._average)
        if self._adalora is not None:
            self.add_callback(self._adalora)
        if self._stage is not None and self._stage.adapted is not None:
            self._merge = MergeValidationCallback(
                model=self._stage.adapted, images=self._first_images, save=self._save_merged, load=load_classifier
            )
            self.add_callback(self._merge)  # the last one: it sees the weights that are kept

    @property
    def proof(self) -> dict[str, Any] | None:
        """Figures of the proof that the merged model answers as the trained one did."""
        return self._merge.proof if self._merge is not None else None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, then leave the plain classifier in `trainer.model`. See `BaseTrainer.train`."""
        stage = self._stage
        if stage is not None and self.model is stage.plain is not stage.given["model"]:
            raise UsageError("this trainer has merged what it trained: make a new one to train on from its model")
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        if stage is not None and stage.given["model"] is not stage.plain:
            self._leave_plain_model(stage)
        return result

    def _leave_plain_model(self, stage: Stage) -> None:
        if stage.adapted is not None:  # proven by now on a copy, on every rank
            stage.adapted.merge_and_unload()
        plain: Any = nn.Module.to(stage.plain, device=self.args.device)
        self.model = self.model_wrapped = self.callback_handler.model = plain.eval()
        self._average = self._adalora = None  # their weights are in the model
        self._asks_features = False
        if stage.pictures is not None:
            self.eval_dataset = stage.pictures

    def _save_merged(self, merged: PreTrainedModel) -> Path:
        folder = Path(str(self.args.output_dir)) / MERGED
        save_model(folder, merged, self.processing_class)
        return folder

    def _first_images(self) -> torch.Tensor:
        """Pictures for the proof: of the evaluation rows, else of the training rows."""
        shown: Any = self.eval_dataset if self.eval_dataset is not None else self.train_dataset
        shown = next(iter(shown.values())) if isinstance(shown, dict) else shown
        return first_images(shown if self.eval_dataset is not None else FirstEpoch(shown, self._sampler is not None))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """As in transformers; a plain dataset is shown as `predict` shows it."""
        return super().get_eval_dataloader(self._asked(eval_dataset, "eval"))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """As in transformers; a plain dataset, with labels or without, is shown as `predict` shows it."""
        return super().get_test_dataloader(self._asked(test_dataset, "test"))

    def _is_plain(self, dataset: Any) -> bool:
        return is_plain(dataset, self._columns[0])

    def _tensors_only(self, dataset: Any, role: str) -> Any:
        """Of a `datasets.Dataset` that holds tensors, the columns that a model reads; any other dataset as it is."""
        if isinstance(dataset, dict):
            return {name: self._tensors_only(rows, name) for name, rows in dataset.items()}
        if not isinstance(dataset, datasets.Dataset) or self._is_plain(dataset) or dataset.format["type"] == "custom":
            return dataset
        if "pixel_values" not in dataset.column_names:
            has = ", ".join(dataset.column_names)
            raise DataError(f"{role}_dataset has no column {self._columns[0]!r}: it has {has}")
        return dataset.select_columns([name for name in _TENSORS if name in dataset.column_names])

    def _prepared(self, dataset: Any, role: str) -> Any:
        """Rows of a plain dataset, with both labels; any other dataset as it is."""
        if not self._is_plain(dataset):
            return dataset
        rows = rows_of(dataset, role, *self._columns)
        if len(set(rows.labels.tolist())) < 2:
            raise DataError(f"{role}_dataset has label {rows.labels[0]} alone: rows of both labels are needed")
        return rows

    def _asked(self, dataset: Any, role: str) -> Any:
        """A plain dataset through the preprocessing of `predict`; any other as it is."""
        if not self._is_plain(dataset):
            return dataset
        if self._asks_features:
            raise UsageError(f"{_WHERE}: adapter='none' trains on features: call train() before asking about images")
        if self._stage is None:
            raise UsageError(f"{_WHERE} was made for prepared views: give evaluate and predict such views")
        columns = dataset.column_names if hasattr(dataset, "column_names") else list(dataset[0]) if dataset else []
        image_column, label_column = self._columns
        labelled = label_column in columns
        rows = rows_of(dataset, role, image_column, label_column if labelled else None)
        views = AskedViews(ask(rows), self._preprocess)
        return views if labelled else Unlabelled(views)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score on the evaluation rows: MCC at their best threshold (optimistic), AUROC, NLL, loss.

        Returns:
            `eval_mcc`, `eval_mcc_at_half`, `eval_auroc`, `eval_nll`, `eval_loss` and transformers' timings.
        """
        if self._average is None or not self.is_in_train:
            return super().evaluate(*args, **kwargs)
        with self._average.applied():
            return super().evaluate(*args, **kwargs)

    def save_extra(self, checkpoint: Path) -> None:
        if self._average is not None:
            self._average.save(checkpoint)
        if self._adalora is not None:
            self._adalora.save(checkpoint)

    def load_extra(self, checkpoint: Path, best: bool) -> None:
        if self._average is not None:
            self._average.load(checkpoint)
        if self._adalora is not None and not best:
            self._adalora.load(checkpoint)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = outputs["logits"].float()
        losses = cross_entropy(logits, labels, reduction="none", label_smoothing=self.args.label_smoothing_factor)
        if self._class_weights is not None:
            # A plain mean, not torch's weighted one: that divides by the weights of the micro-batch, so that
            # accumulation and several ranks would give another gradient than one large batch.
            losses = losses * logits.new_tensor(self._class_weights)[labels]
        loss = losses.mean()
        if "penalty" in outputs:  # of an adapter that regularises itself
            loss = loss + outputs["penalty"]
        return (loss, {"logits": outputs["logits"]}) if return_outputs else loss
