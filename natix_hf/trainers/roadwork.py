"""`RoadworkTrainer`: train a yes/no image classifier and keep the checkpoint with the best MCC."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments

from natix_hf.data.asked import ask
from natix_hf.data.config import Augment, AugmentConfig, ViewsOn
from natix_hf.data.plain import is_plain, prepared, rows_of, shared_names, tensors_only
from natix_hf.data.rows import Rows
from natix_hf.data.taught import TEACHER, TaughtViews
from natix_hf.data.views import AskedViews
from natix_hf.errors import UsageError
from natix_hf.models.adapters import AUTO
from natix_hf.models.classifier import load_classifier, save_model
from natix_hf.models.preprocess import Preprocess
from natix_hf.trainers.adalora import AdaLoraCallback
from natix_hf.trainers.arguments import given_or_default, require_a_batch
from natix_hf.trainers.average import WeightAverage
from natix_hf.trainers.distil import find_distillation
from natix_hf.trainers.distil_config import DistilConfig
from natix_hf.trainers.loss import RowLoss, draw_mixture
from natix_hf.trainers.merge_validation import MergeValidationCallback
from natix_hf.trainers.profit import ProfitTrainer
from natix_hf.trainers.profit_config import ProfitConfig, with_reference_batches
from natix_hf.trainers.scores import EvaluationMetrics
from natix_hf.trainers.stage import FirstEpoch, Stage, Unlabelled, first_images, make_stage
from natix_hf.trainers.start import start_classifier
from natix_hf.trainers.supervised_config import SupervisedConfig
from natix_hf.trainers.teacher import teacher_names

_WHERE = "RoadworkTrainer"
_UNSCORED = {"eval_strategy": "no", "metric_for_best_model": None, "load_best_model_at_end": False}
_BATCHES = "gradient_accumulation_steps"
MERGED = "merged"


class RoadworkTrainer(ProfitTrainer):
    """Train a vision model to answer one yes/no question about images.

    It is a [`~transformers.Trainer`], with the usual `train`, `evaluate`, `predict` and `save_model`. Training views
    are augmented. Their draws depend only on (seed, epoch, row), so a resumed training gives a bit-equal result. The
    loss is the cross-entropy over two labels, with `label_smoothing_factor`.

    Args:
        model (`str`, `Path` or [`~transformers.PreTrainedModel`]): Hub id or folder of a ViT, DINOv2,
            ConvNeXt V2 or Swin V2, which gets a new head. Or a classifier with two labels, which is trained in place.
        args ([`~transformers.TrainingArguments`] or `dict`, *optional*): A dict overrides the project's defaults: 10
            epochs at learning rate 5e-4 (cosine, 10% warm-up), weight decay 0.05, batches of 64, evaluation after
            every epoch, the best checkpoint by MCC. `None` uses them. `TrainingArguments` are used unchanged.
        train_dataset (`datasets.Dataset`): Rows with an image column and a label column, or a list of such rows.
            Labels are a `ClassLabel` with two names, 0 and 1, or booleans. Or any torch dataset that yields
            `pixel_values`, float32 of shape `(3, H, W)`, and `labels`; it is used unchanged.
        eval_dataset (`datasets.Dataset` or `dict`, *optional*): As `train_dataset`, or a dict of such datasets; the
            first one chooses the best checkpoint. `None`: nothing is scored and the last weights are kept.
        image_column (`str`, defaults to `"image"`): Name of the image column.
        label_column (`str`, defaults to `"label"`): Name of the label column.
        adapter (`str`, defaults to `"full"`): `"full"` trains all weights. `"none"` trains only the head, on features
            computed once. The name of a PEFT tuner, such as `"lora"` or `"dora"` (`natix_hf.models.adapters`), trains
            the tuner and the head. A tuner is merged when training ends. The merged model is read back and compared
            (`proof`), and becomes `trainer.model`.
        adapter_options (`dict`, *optional*): Options of the tuner's config, such as `{"r": 16}`.
        target_prior (`float`, *optional*): Share of label 1 that the model will meet in use. `None`: the share in the
            rows.
        prior_by (`str`, defaults to `"sampler"`): How training reaches `target_prior`: `"sampler"` draws the rarer
            label more often; `"loss"` gives it more weight.
        augment (`AugmentConfig` or `"challenge"`, *optional*): Augmentation of the training views. `None`: the default
            of the recipes.
        views_on (`str`, defaults to `"auto"`): Where training views are made: by `"workers"`, a batch at once on the
            `"device"`, or there if it is a GPU.
        processing_class (*optional*): Image processor with a square size. `None` makes one for the model.
        image_size (`int`, *optional*): Side of the square pictures in px. `None` takes the model's own, at most 224.
        feature_views (`int`, defaults to 1): Number of views per row for `adapter="none"`.
        ema_decay (`float`, *optional*): Decay of a moving average of the weights, which is scored and kept instead of
            the last weights.
        layer_decay (`float`, *optional*): Factor in (0, 1] of the learning rate from each block to the one before it
            (`natix_hf.trainers.rates`). `None` trains all layers at one rate.
        head_learning_rate (`float`, *optional*): Peak learning rate of the classifier layer. `None`: that of the
            other layers.
        mixup (`float`, *optional*): Mix the rows of each training batch with the alpha of Beta(alpha, alpha), such as
            0.2 (arXiv 1710.09412). With `adapter="none"` features are mixed. `None` mixes nothing.
        profit (`dict` or `ProfitConfig`, *optional*): Continue a trained classifier with PROFIT, with
            `reference_steps` and `reference_learning_rate` (`natix_hf.trainers.profit`). `model` then keeps its head.
            In `TrainingArguments`, `gradient_accumulation_steps` counts the batches of the reference steps too.
        teacher (`str`, `Path` or `list`, *optional*): Folder of a bundle or classifier, or a bundle on the Hub, whose
            answers the model learns too. A list is an ensemble. Its answers to every view are computed once and kept.
        distil (`dict`, *optional*): How it learns from the teacher: `temperature`, `mix` and `views`, as in a recipe.
        class_weights (`list[float]`, *optional*): Weights of label 0 and label 1 in the loss.
        adalora (`AdaLoraCallback`, *optional*): Callback for an AdaLoRA adapter that the model already has.
        kwargs: Further arguments of [`~transformers.Trainer`], and `train_sampler` and `quiet` of `BaseTrainer`.

    Attributes:
        proof (`dict`): Figures of the merge. `None` without a tuner, and until training has ended.

    Raises:
        [`UsageError`], [`RecipeError`]: If the model is not a classifier with two labels, or a setting is invalid.
        [`DataError`]: If a column is missing, a label is not 0 or 1, all labels are the same, or an image cannot be
            read.
        [`RunError`]: In training, if the loss becomes NaN or infinite.
        [`MergeMismatchError`]: At the end of training, if the merged model differs from the trained one.

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
        views_on: ViewsOn = "auto",
        processing_class: Any = None,
        image_size: int | None = None,
        feature_views: int = 1,
        ema_decay: float | None = None,
        layer_decay: float | None = None,
        head_learning_rate: float | None = None,
        mixup: float | None = None,
        profit: ProfitConfig | dict[str, Any] | None = None,
        teacher: str | Path | list[str | Path] | None = None,
        distil: DistilConfig | dict[str, Any] | None = None,
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
        train_dataset = tensors_only(train_dataset, "train", image_column)
        eval_dataset = tensors_only(eval_dataset, "eval", image_column)
        given = {"model": model, "train_dataset": train_dataset, "eval_dataset": eval_dataset}
        given |= {"class_weights": class_weights, "adalora": adalora}
        how = distil if isinstance(distil, DistilConfig) else DistilConfig.build(distil or {}, "distil")
        answered = isinstance(train_dataset, TaughtViews)  # by make_stage, which read distil
        own_rate: dict[str, Any] = {"learning_rate": arguments.learning_rate} if profit is not None else {}
        config = SupervisedConfig(
            adapter=adapter, adapter_options=adapter_options or {}, feature_views=feature_views, prior_by=prior_by,
            ema_decay=ema_decay, layer_decay=layer_decay, head_learning_rate=head_learning_rate, mixup=mixup,
            profit=profit,  # type: ignore[arg-type]  # a section takes a mapping, too
            teacher=teacher_names(teacher), distil=DistilConfig() if answered else how,
            per_device_train_batch_size=arguments.per_device_train_batch_size,
            extra={"optim": arguments.optim, "label_smoothing_factor": arguments.label_smoothing_factor},
            where=_WHERE, **own_rate,
        )  # fmt: skip
        self._mixup, self._batch_of_step = mixup, 0
        if not isinstance(args, TrainingArguments):
            batches = {_BATCHES: getattr(arguments, _BATCHES)}
            setattr(arguments, _BATCHES, with_reference_batches(batches, config.profit)[_BATCHES])
        if pictures or adapter != "full" or not isinstance(model, nn.Module) or teacher is not None:
            if adapter == AUTO:
                raise UsageError(f"{_WHERE}: adapter='auto' works only in a recipe: name an adapter, or run a recipe")
            names = shared_names(train_dataset, evaluations, label_column)
            model, processing_class = start_classifier(
                model, processing_class, image_size, arguments.seed, names, _WHERE, config.profit is not None
            )
            self._preprocess = Preprocess(processing_class)
            with arguments.main_process_first(desc="images"):  # rank 0 decodes, the other ranks read its cache
                train = prepared(train_dataset, "train", *self._columns)
                several = isinstance(eval_dataset, dict)
                evaluation = None if several else prepared(eval_dataset, "eval", *self._columns)
                distillation = find_distillation(config, names or model.config.id2label, _WHERE)
            scored = ask(evaluation) if isinstance(evaluation, Rows) else evaluation
            views = AugmentConfig() if augment is None else augment
            rest = (views, target_prior, arguments, views_on)
            self._stage = make_stage(model, processing_class, train, scored, config, *rest, distillation)
            given |= {name: value for name, value in self._stage.given.items() if value is not None}
            if isinstance(eval_dataset, dict):
                given["eval_dataset"] = {name: self._asked(rows, name) for name, rows in eval_dataset.items()}
            if given["train_dataset"] is not None:
                require_a_batch(arguments, len(given["train_dataset"]), _WHERE)
        given.pop("distil", None)  # make_stage gives it back
        weights, self._adalora = given.pop("class_weights"), given.pop("adalora")
        smoothing = arguments.label_smoothing_factor
        self._row_loss = RowLoss(smoothing, weights, how.temperature, how.mix)
        if kwargs.get("compute_metrics") is None:
            kwargs["compute_metrics"] = EvaluationMetrics(target_prior)
        given |= {"layer_decay": layer_decay, "head_learning_rate": head_learning_rate, "profit": config.profit}
        # The loss here smooths labels itself. Trainer's smoother would look for a config that not every module has.
        arguments.label_smoothing_factor = 0.0
        try:
            super().__init__(args=arguments, processing_class=processing_class, **given, **kwargs)
        finally:
            arguments.label_smoothing_factor = smoothing
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
            self.add_callback(self._merge)  # last, so that it sees the weights that are kept

    @property
    def proof(self) -> dict[str, Any] | None:
        """Figures of the comparison of the merged model with the trained one. None until training has ended."""
        return self._merge.proof if self._merge is not None else None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, and make the plain classifier `trainer.model`. See `BaseTrainer.train`."""
        stage = self._stage
        if stage is not None and self.model is stage.plain is not stage.given["model"]:
            raise UsageError(
                f"{_WHERE} has already merged its model: make a new trainer from trainer.model to train on"
            )
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        if stage is not None and stage.given["model"] is not stage.plain:
            self._leave_plain_model(stage)
        return result

    def _leave_plain_model(self, stage: Stage) -> None:
        if stage.adapted is not None:  # the merge was already checked on a copy
            stage.adapted.merge_and_unload()
        plain: Any = nn.Module.to(stage.plain, device=self.args.device)
        self.model = self.model_wrapped = self.callback_handler.model = plain.eval()
        self._average = self._adalora = None  # the model now holds their weights
        self._asks_features = False
        if stage.pictures is not None:
            self.eval_dataset = stage.pictures

    def _save_merged(self, merged: PreTrainedModel) -> Path:
        folder = Path(str(self.args.output_dir)) / MERGED
        save_model(folder, merged, self.processing_class)
        return folder

    def _first_images(self) -> torch.Tensor:
        """Pictures for the comparison, from the evaluation rows, or else from the training rows."""
        shown: Any = self.eval_dataset if self.eval_dataset is not None else self.train_dataset
        shown = next(iter(shown.values())) if isinstance(shown, dict) else shown
        return first_images(shown if self.eval_dataset is not None else FirstEpoch(shown, self._sampler is not None))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Make the loader as transformers does. A plain dataset is preprocessed as in `predict`."""
        return super().get_eval_dataloader(self._asked(eval_dataset, "eval"))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Make the loader as transformers does. A plain dataset, with or without labels, is preprocessed."""
        return super().get_test_dataloader(self._asked(test_dataset, "test"))

    def _is_plain(self, dataset: Any) -> bool:
        return is_plain(dataset, self._columns[0])

    def _asked(self, dataset: Any, role: str) -> Any:
        """Preprocess a plain dataset as `predict` does. Any other dataset is returned as it is."""
        if not self._is_plain(dataset):
            return dataset
        if self._asks_features:
            raise UsageError(f"{_WHERE}: adapter='none' trains on features: call train() before you use images")
        if self._stage is None:
            raise UsageError(
                f"{_WHERE} was made with a dataset of pixel_values: give evaluate and predict such a dataset too"
            )
        columns = dataset.column_names if hasattr(dataset, "column_names") else list(dataset[0]) if dataset else []
        image_column, label_column = self._columns
        labelled = label_column in columns
        rows = rows_of(dataset, role, image_column, label_column if labelled else None)
        views = AskedViews(ask(rows), self._preprocess)
        return views if labelled else Unlabelled(views)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the model on the evaluation rows.

        Returns:
            `dict[str, float]`: `eval_mcc` (at the best threshold on the same rows, so it is optimistic),
            `eval_mcc_at_half`, `eval_auroc`, `eval_nll`, `eval_loss`, and transformers' timings.
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

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self._batch_of_step = 0  # called once for each optimizer step
        return super().get_batch_samples(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        labels, taught = inputs["labels"], inputs.get(TEACHER)
        given = {name: value for name, value in inputs.items() if name not in ("labels", TEACHER)}
        mixture = None
        if self._mixup is not None and model.training:
            place = self._batch_of_step * self.args.world_size + self.args.process_index
            key = (self.args.seed, self.state.global_step, place)
            mixture = draw_mixture(self._mixup, len(labels), key, labels.device)
            given = {name: mixture.of(value) for name, value in given.items()}
            self._batch_of_step += 1
        outputs = model(**given)
        loss = self._row_loss(outputs["logits"].float(), labels, taught, mixture).mean()
        if "penalty" in outputs:  # from an adapter with its own regularisation
            loss = loss + outputs["penalty"]
        return (loss, {"logits": outputs["logits"]}) if return_outputs else loss
