"""`GateTrainer`: learn a confidence for a fixed classifier's answers, and score it on rows not seen in training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
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
from natix_hf.trainers.conformal import (
    BalancedSampler,
    ConformalTrainer,
    conformal_codes,
    set_scale,
    start_at_margin,
)
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
    """Compute the targets of the gate, float32 [n].

    Args:
        method: `correctness`: 1 where the answer at `threshold` is right. `confidnet`: probability of the true class.
            `conformal`: the result of `conformal_codes`.
        logits: Logits of the classifier, float [n].
        labels: Labels, 0 or 1, [n].
        threshold: Decision threshold, as a logit.
    """
    right = (logits > threshold) == (labels == 1)
    if method == "conformal":
        return conformal_codes(labels, right)
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
        shared: dict[str, Any] = {
            "model": gate,
            "args": arguments,
            "train_dataset": _Pairs(inputs, targets),
            "quiet": True,
        }
        try:
            trainer = _trainer(shared, gate, targets, config)
        except (ImportError, ValueError) as error:
            raise training_refused(error, "phase3") from None
        trainer.train()
    nn.Module.to(gate, device="cpu")
    gate.eval()
    if config.method == "conformal":
        set_scale(gate, inputs)
    if not np.isfinite(gate.confidence(inputs)).all():
        raise RunError(f"the gate answers NaN: lower phase3.learning_rate (now {arguments.learning_rate:g})")
    return gate


def _trainer(shared: dict[str, Any], gate: Gate, targets: np.ndarray, config: GateConfig) -> BaseTrainer:
    """The trainer of a standardised gate, with its order of the rows."""
    if config.method == "conformal":
        start_at_margin(gate)
        sampler = BalancedSampler((targets >= 2).astype(np.int64), config.seed, config.per_device_train_batch_size)
        return ConformalTrainer(**shared, config=config, train_sampler=sampler)
    return GateTrainer(**shared, method=config.method, train_sampler=EpochSampler(targets, config.seed))


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
    confidence = np.full(len(targets), np.nan)
    for seen, held in _folds(wrong, groups, config):
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


def _folds(wrong: np.ndarray, groups: np.ndarray, config: GateConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
    yield from folds.split(wrong, wrong, groups)


def too_few_rows(labels: np.ndarray, wrong: np.ndarray, groups: np.ndarray, config: GateConfig) -> str:
    """Say why these rows do not fill a batch of the method, or "". A fold may leave few rows of a label.

    Args:
        labels, wrong, groups: Labels, wrong answers and groups, [n]. There must be at least `config.folds` groups.
    """
    if config.method != "conformal":
        return ""
    half = config.per_device_train_batch_size // 2
    fewest, label = min(
        (int((labels[seen] == y).sum()), y) for seen, _ in _folds(wrong, groups, config) for y in (0, 1)
    )
    if fewest >= half:
        return ""
    return (
        f"only {fewest} rows with label {label} outside a fold, and a batch holds {half}: lower "
        f"phase3.per_device_train_batch_size (now {2 * half}) or phase3.folds"
    )


class _Pairs(Dataset[dict[str, torch.Tensor]]):
    """Inputs and targets of the gate, indexed by `(epoch, row)`. An item holds `features` and `labels`."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        self.inputs, self.targets = torch.from_numpy(inputs), torch.from_numpy(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"features": self.inputs[key[1]], "labels": self.targets[key[1]]}
