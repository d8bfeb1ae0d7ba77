"""`RoadworkTrainer`: supervised training of a yes/no classifier, scored by its best MCC on the evaluation rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction

from natix_hf.callbacks.adalora import AdaLoraCallback
from natix_hf.errors import RunError
from natix_hf.metrics import compute_metrics, prior_weights, select_threshold
from natix_hf.models.classifier import logit_difference
from natix_hf.trainers.average import WeightAverage
from natix_hf.trainers.base import BaseTrainer


class RoadworkTrainer(BaseTrainer):
    """Cross-entropy over two labels, with class weights where the loss meets the target prior.

    Args:
        adalora: the callback of an AdaLoRA adapter, whose state is kept and restored.
        class_weights: [weight of label 0, weight of label 1]; None: equal.
        ema_decay: score, choose and keep an average of the weights (`WeightAverage`); None: the weights themselves.

    Expects `labels` in every batch; the model returns `logits` [n, 2]. `label_smoothing_factor` is honoured.
    """

    def __init__(
        self,
        *args: Any,
        class_weights: list[float] | None = None,
        ema_decay: float | None = None,
        adalora: AdaLoraCallback | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._class_weights = class_weights
        trained: Any = self.model
        self._average = WeightAverage(trained, ema_decay) if ema_decay is not None else None
        if self._average is not None:
            self.add_callback(self._average)
        self._adalora = adalora
        if adalora is not None:
            self.add_callback(adalora)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self._average is None or not self.is_in_train:
            return super().evaluate(*args, **kwargs)
        with self._average.applied():
            return super().evaluate(*args, **kwargs)

    def save_extra(self, checkpoint: Path) -> None:
        if self._average is not None:
            self._average.save(checkpoint)
        if self._adalora is not None:
            self._adalora.save(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._average is not None:
            self._average.load(Path(resume_from_checkpoint))
        if self._adalora is not None:
            self._adalora.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self._average is not None:
            self._average.load(Path(str(self.state.best_model_checkpoint)))

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


class EvaluationMetrics:
    """`compute_metrics` of the Trainer: MCC at the best threshold of these very rows (optimistic, for comparing epochs
    only), AUROC and NLL at the target prior."""

    def __init__(self, target_prior: float | None) -> None:
        self.target_prior = target_prior

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        z = logit_difference(np.asarray(prediction.predictions))
        if not np.isfinite(z).all():  # the last loss may still have been finite
            raise RunError("training diverged, the model answers NaN in evaluation: lower learning_rate")
        labels = np.asarray(prediction.label_ids)
        probabilities = 1 / (1 + np.exp(-z))
        weights = prior_weights(labels, self.target_prior)
        at_half = compute_metrics(probabilities, labels, sample_weight=weights)
        best = select_threshold(z, labels, objective="mcc", target_prior=self.target_prior)
        return {"mcc": best.value, "mcc_at_half": at_half["mcc"], "auroc": at_half["auroc"], "nll": at_half["nll"]}
