"""The scores of an epoch."""

from __future__ import annotations

import numpy as np
from transformers import EvalPrediction

from natix_hf.errors import RunError
from natix_hf.metrics import compute_metrics, prior_weights, select_threshold
from natix_hf.models.logit import logit_difference


class EvaluationMetrics:
    """The `compute_metrics` function of the Trainer, at the target prior.

    A call returns `mcc`, `mcc_at_half`, `auroc` and `nll`. `mcc` uses the best threshold on the same rows. It is
    therefore optimistic and only compares epochs.

    Args:
        target_prior: Share of label 1. None: the share in the rows.
    """

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
