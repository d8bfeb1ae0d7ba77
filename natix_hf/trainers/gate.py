"""`GateTrainer`: learn a confidence for a fixed classifier's answers, and score it on rows not seen in training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.utils.data import Dataset

from natix_hf.data.sampler import EpochSampler
from natix_hf.errors import RunError
from natix_hf.models.gate import Gate
from natix_hf.trainers.arguments import training_arguments, training_refused
from natix_hf.trainers.base import BaseTrainer
from natix_hf.trainers.gate_config import GateConfig


class GateTrainer(BaseTrainer):
    """Train a [`Gate`] that estimates the confidence of each answer.

    The targets are `labels`, float [n]. With `correctness` they say whether the answer was right, and the loss is
    cross-entropy. With `confidnet` they are the probability of the true class, and the loss is the squared error
    (Corbière et al., arXiv:1910.04851).

    Args:
        method (`str`): `"correctness"` or `"confidnet"`.
        args, kwargs: Arguments of `BaseTrainer`.
    """

    def __init__(self, *args: Any, method: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.method = method

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        outputs = model(features=inputs["features"])
        logits, targets = outputs["logits"], inputs["labels"]
        if self.method == "correctness":
            loss = binary_cross_entropy_with_logits(logits, targets)
        else:
            loss = mse_loss(torch.sigmoid(logits), targets)
        return (loss, outputs) if return_outputs else loss


def gate_targets(method: str, logits: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """Compute the targets of the gate, float32 [n] in [0, 1].

    Args:
        method: `correctness`: 1 where the answer at `threshold` is right. `confidnet`: probability of the true class.
        logits: Logits of the classifier, float [n].
        labels: Labels, 0 or 1, [n].
        threshold: Decision threshold, as a logit.
    """
    right = (logits > threshold) == (labels == 1)
    targets = right if method == "correctness" else expit(np.where(labels == 1, logits, -logits))
    return np.asarray(targets, dtype=np.float32)


def train_gate(inputs: np.ndarray, targets: np.ndarray, config: GateConfig) -> Gate:
    """Fit a gate to all given rows. Every rank must call it.

    Args:
        inputs: Result of `gate_inputs`, float32 [n, d].
        targets: Result of `gate_targets`, float32 [n].
        config: Settings of the gate.

    Raises:
        RunError: If the training diverged.
    """
    with tempfile.TemporaryDirectory() as scratch:  # training takes seconds, so no checkpoints are kept
        settings = config.training_fields() | {"save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no"}
        arguments = training_arguments(settings, Path(scratch), "phase3")
        torch.manual_seed(arguments.seed)
        gate = Gate(inputs.shape[1], config.hidden)
        gate.standardise(inputs)
        sampler = EpochSampler(targets, arguments.seed)
        model: Any = gate
        try:
            trainer = GateTrainer(
                model=model,
                args=arguments,
                method=config.method,
                train_sampler=sampler,
                train_dataset=_Pairs(inputs, targets),
                quiet=True,
            )
        except (ImportError, ValueError) as error:
            raise training_refused(error, "phase3") from None
        trainer.train()
    nn.Module.to(gate, device="cpu")
    gate.eval()
    if not np.isfinite(gate.confidence(inputs)).all():
        raise RunError(f"the gate answers NaN: lower phase3.learning_rate (now {arguments.learning_rate:g})")
    return gate


def cross_fit(
    inputs: np.ndarray,
    targets: np.ndarray,
    wrong: np.ndarray,
    groups: np.ndarray,
    config: GateConfig,
    further: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Compute the confidence of each row with a gate that has not seen the row's group, float64 [n].

    Args:
        inputs: Result of `gate_inputs`, float32 [n, d].
        targets: Result of `gate_targets`, float32 [n].
        wrong: int64 [n], 1 where the answer was wrong. The folds are stratified by it.
        groups: Group of each row, [n]. There must be at least `config.folds` groups.
        config: Settings of the gate.
        further: Inputs and targets of other groups, which every gate learns from too.
    """
    folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
    confidence = np.full(len(targets), np.nan)
    for seen, held in folds.split(inputs, wrong, groups):
        gate = train_gate(*joined(inputs[seen], targets[seen], further), config)
        confidence[held] = gate.confidence(inputs[held])
    return confidence


def joined(
    inputs: np.ndarray, targets: np.ndarray, further: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, followed by further ones."""
    if further is None:
        return inputs, targets
    return np.concatenate([inputs, further[0]]), np.concatenate([targets, further[1]])


class _Pairs(Dataset[dict[str, torch.Tensor]]):
    """Inputs and targets of the gate, indexed by `(epoch, row)`. An item holds `features` and `labels`."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        self.inputs, self.targets = torch.from_numpy(inputs), torch.from_numpy(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"features": self.inputs[key[1]], "labels": self.targets[key[1]]}
