"""`GateTrainer`: learns how far to trust a fixed classifier's answers, and is judged on rows it has not seen."""

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
    """Fits a `Gate` to `labels` float [n]: whether an answer was right (`correctness`, by cross-entropy), or the
    probability of the true class (`confidnet`, by squared error; Corbière et al., arXiv 1910.04851)."""

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
    """float32 [n] in [0, 1]: was the answer at `threshold` right, or what probability had the true class."""
    right = (logits > threshold) == (labels == 1)
    targets = right if method == "correctness" else expit(np.where(labels == 1, logits, -logits))
    return np.asarray(targets, dtype=np.float32)


def train_gate(inputs: np.ndarray, targets: np.ndarray, config: GateConfig) -> Gate:
    """A gate fitted to all given rows. Every rank calls it.

    Args:
        inputs: `gate_inputs`, float32 [n, d]. targets: `gate_targets`, float32 [n].

    Raises:
        RunError: the training diverged.
    """
    with tempfile.TemporaryDirectory() as scratch:  # seconds of training: nothing is saved on the way
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
    inputs: np.ndarray, targets: np.ndarray, wrong: np.ndarray, groups: np.ndarray, config: GateConfig
) -> np.ndarray:
    """Confidence of each row by a gate that has seen no row of its group, float64 [n].

    Args:
        wrong: int64 [n], 1 where the answer was wrong; each fold gets its share of them.
        groups: [n]; there are at least `config.folds`.
    """
    folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
    confidence = np.full(len(targets), np.nan)
    for seen, held in folds.split(inputs, wrong, groups):
        confidence[held] = train_gate(inputs[seen], targets[seen], config).confidence(inputs[held])
    return confidence


class _Pairs(Dataset[dict[str, torch.Tensor]]):
    """Indexed by `(epoch, row)`. Yields `features` and `labels`."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        self.inputs, self.targets = torch.from_numpy(inputs), torch.from_numpy(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"features": self.inputs[key[1]], "labels": self.targets[key[1]]}
