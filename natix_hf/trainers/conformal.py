"""Conformal risk training of a gate (arXiv:2510.08748): calibrate on one half of a batch, score the other half.

The classifier and its threshold are fixed, so an answer d and its label y are fixed too. The gate gives the answer a
score s, and the answer is accepted if s is above a cut. Each batch holds as many positives as negatives. Every other
positive calibrates (A); all other rows are scored (B).

    lambda = the loosest cut at which (errors + 1) / (accepted + 1) <= alpha          over the positives of A
    a_j    = sigmoid((s_j - lambda) / (softness * spread))                            for each row j of B
    FPR    = sum of a over the negatives with d = 1 / sum of a over all negatives     of B
    cover  = (mean of a over the positives + mean of a over the negatives) / 2        of B
    loss   = FPR + abstention_cost * (1 - cover) + 5 * ([FPR - FPR of the margin]+ + [cover of the margin - cover]+)

**The cut.** `accepted` and `errors` count the positives of A above it, and the false negatives among them. One looser
step would accept one more positive, which must be a false negative, since a right answer lowers the rate: lambda is
the score of that row, an order statistic. The gradient flows through the scores of B and through this one score, as
in the paper; which row it is has no derivative. If no cut reaches alpha, the one that comes nearest serves. If every
positive of A can be accepted, so is every row, and the batch teaches nothing.

**What is minimised.** The FPR alone has a useless minimum, a gate that accepts next to nothing, so an abstention has
a price. Even so a gate could buy coverage with false alarms, or the other way round, and phase 3 keeps no gate that
is worse than the margin in either. The last term is the margin's own figures on the same A and B, where the margin
reaches alpha on A. FNR, FPR and cover look at one label each or weigh both alike: they do not depend on the prior.

**The scale.** Only the order of scores has a meaning. `spread` is the standard deviation of the scores of B, without a
gradient: else a gate could sharpen the sigmoid by scaling its scores. The gate begins as the margin, so that the first
cuts are the margin's. When it is trained, its confidences get a fixed median and spread (`set_scale`).

A needs 1 / alpha - 1 positives, or no cut reaches alpha even without an error. On several devices each one calibrates
its own half batch, and the gradients are averaged.

Nothing here is a guarantee: the cut and the gate were fitted to the same rows. The guarantee comes from risk control
on fresh rows (phase 5). A certificate asks for a lower rate than it promises, and the loss says nothing about the
order above the cut. So alpha must be below the promised one: at the same alpha a gate may reach it and never certify.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from natix_hf.data.sampler import EpochSampler
from natix_hf.errors import RunError
from natix_hf.metrics.at_fnr import loosest
from natix_hf.models.gate import Gate
from natix_hf.trainers.base import BaseTrainer
from natix_hf.trainers.gate_config import GateConfig

# How much a figure that is worse than the margin's costs beside its own price.
_WORSE = 5.0


class ConformalTrainer(BaseTrainer):
    """Train a [`Gate`] by `conformal_loss`. `labels` hold the result of `conformal_codes`.

    Args:
        config (`GateConfig`): alpha, abstention_cost and softness.
        args, kwargs: Arguments of `BaseTrainer`.

    Raises:
        RunError: If a batch is not as large as the config says. Then it could hold too few rows that calibrate.
    """

    def __init__(self, *args: Any, config: GateConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config = config

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        features, batch = inputs["features"], self.config.per_device_train_batch_size
        if len(features) != batch:
            raise RunError(
                f"a batch of the conformal gate has {len(features)} rows, not phase3.per_device_train_batch_size "
                f"{batch}: leave out auto_find_batch_size, and split_batches in accelerator_config"
            )
        outputs = model(features=features)
        loss = conformal_loss(
            outputs["logits"].float(),
            features[:, -1].float(),
            inputs["labels"],
            self.config.alpha,
            self.config.abstention_cost,
            self.config.softness,
        )
        return (loss, outputs) if return_outputs else loss


def conformal_codes(labels: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The label and whether the answer is wrong in one number, `2 * label + wrong`, float32 [n]."""
    return (2 * np.asarray(labels) + ~np.asarray(right, dtype=np.bool_)).astype(np.float32)


def calibrated_cut(scores: torch.Tensor, wrong: torch.Tensor, alpha: float, nearest: bool = True) -> torch.Tensor:
    """The score of the first positive that is not accepted, with its gradient. Minus infinity if all are accepted.

    Equal scores are accepted together.

    Args:
        scores: Scores of the calibrating positives, float [m], m at least 1.
        wrong: True where the answer is a false negative, bool [m].
        alpha: Largest corrected rate of false negatives, in (0, 1).
        nearest: Where no cut reaches alpha, take the one that comes nearest; else infinity.
    """
    ranked, order = scores.detach().cpu().sort(descending=True, stable=True)
    values, errors = ranked.numpy(), np.cumsum(wrong.cpu()[order].numpy())
    ends = np.append(np.flatnonzero(values[1:] != values[:-1]), values.size - 1)
    found = int(loosest(ends + 1, errors[ends], alpha, nearest))
    if found < 0:
        return scores.new_tensor(math.inf)
    accepted = int(ends[found]) + 1
    return scores[order[accepted].to(scores.device)] if accepted < len(scores) else scores.new_tensor(-math.inf)


def soft_figures(
    scores: torch.Tensor, codes: torch.Tensor, alpha: float, softness: float, nearest: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """The soft FPR among the accepted, and the soft coverage, of the scored rows at the cut of the calibrating ones.

    Args:
        scores: Scores, float [b].
        codes: Result of `conformal_codes`, float [b]: at least two positives and a negative.
        alpha, nearest: As for `calibrated_cut`.
        softness: Width of the sigmoid, in standard deviations of the scored rows.
    """
    positive, wrong = codes >= 2, codes % 2 == 1
    calibrating = positive & (positive.cumsum(0) % 2 == 1)
    cut = calibrated_cut(scores[calibrating], wrong[calibrating], alpha, nearest)
    spread = scores[~calibrating].detach().std() + 1e-6
    soft = torch.sigmoid((scores - cut) / (softness * spread))
    of_positives, of_negatives = soft[~calibrating & positive], soft[~positive]
    fpr = soft[~positive & wrong].sum() / of_negatives.sum().clamp_min(1e-6)
    return fpr, (of_positives.mean() + of_negatives.mean()) / 2


def conformal_loss(
    scores: torch.Tensor,
    margins: torch.Tensor,
    codes: torch.Tensor,
    alpha: float,
    abstention_cost: float,
    softness: float,
) -> torch.Tensor:
    """The loss of one batch, as this module's docstring says.

    Args:
        scores, margins: Scores of the gate, and the margins of the same answers, float [b].
        codes, alpha, softness: As for `soft_figures`.
        abstention_cost: The price of accepting nothing.
    """
    fpr, coverage = soft_figures(scores, codes, alpha, softness)
    loss = fpr + abstention_cost * (1 - coverage)
    fpr_before, coverage_before = soft_figures(margins, codes, alpha, softness, nearest=False)
    if coverage_before > 0:
        loss = loss + _WORSE * ((fpr - fpr_before).clamp_min(0) + (coverage_before - coverage).clamp_min(0))
    return loss + 0.0 * scores.sum()  # where every row is accepted, the gradient is zero rather than missing


class BalancedSampler(EpochSampler):
    """Batches in which positives and negatives alternate. Each batch is drawn anew, and no row is twice in it.

    An epoch has the least number of batches that hold as many rows as there are.

    Args:
        labels: 0 or 1, int64 [n]. Of each label there must be at least `batch / 2` rows.
        seed: Seed of the order.
        batch: Rows of a batch on one device, an even number.
    """

    def __init__(self, labels: np.ndarray, seed: int, batch: int) -> None:
        super().__init__(labels, seed)
        self.batch = batch

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch) * self.batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        members = [np.flatnonzero(self.labels == label) for label in (1, 0)]
        for _ in range(len(self) // self.batch):
            drawn = [rng.choice(of_label, self.batch // 2, replace=False) for of_label in members]
            for row in np.stack(drawn, axis=1).ravel():
                yield self.epoch, int(row)


@torch.no_grad()
def start_at_margin(gate: Gate) -> None:
    """Make a standardised gate answer the margin, the last column of its inputs, up to small random weights."""
    layers: Any = gate.layers
    first, last = layers[0], layers[2]
    last.weight.mul_(0.1)
    first.weight[0].zero_()
    first.weight[0, -1] = 1.0
    first.bias[0] = gate.mean[-1] / gate.std[-1]  # the margin is at least 0, so the ReLU lets it through
    last.weight[0, 0] = 1.0


@torch.no_grad()
def set_scale(gate: Gate, inputs: np.ndarray) -> None:
    """Give the confidences of these rows the median 0 and the interquartile range 1. Their order stays.

    The loss leaves the scale open. Without a common one, confidences of the gates of a cross-fit could not be pooled,
    and they would say nothing about the gate that is fitted to all rows.
    """
    low, middle, high = np.quantile(gate.confidence(inputs), [0.25, 0.5, 0.75])
    layers: Any = gate.layers
    last, spread = layers[2], max(high - low, 1e-6)
    last.weight.div_(spread)
    last.bias.sub_(middle).div_(spread)
