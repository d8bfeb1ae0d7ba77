"""The loss of a supervised training, row by row: cross-entropy with class weights and mixup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

_MIXUP = 2  # keeps these draws apart from those of views, which are seeded by (seed, epoch, row)


@dataclass(frozen=True)
class Mixture:
    """How a batch is mixed (mixup, arXiv 1710.09412): row i becomes share * row i + (1 - share) * row order[i].

    Attributes:
        share: Between 0 and 1.
        order: A permutation of the rows, int64 [n].
    """

    share: float
    order: torch.Tensor

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Mix values of rows, float [n, ...]. Whole numbers cannot be mixed and are returned as they are."""
        if not values.is_floating_point():
            return values
        return self.share * values + (1 - self.share) * values[self.order]

    def loss(self, of_labels: Callable[[torch.Tensor], torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Mix the losses, float [n], that the mixed rows have with their own labels and with those of their partners.
        A cross-entropy is linear in its target, so this is the loss with the mixed target."""
        return self.share * of_labels(labels) + (1 - self.share) * of_labels(labels[self.order])


def draw_mixture(alpha: float, rows: int, key: Sequence[int], device: torch.device) -> Mixture:
    """Draw the share from Beta(alpha, alpha), once for a batch as in the paper, and the partners.

    Args:
        key: Seed, optimizer step, and number of the batch among those of this step on all ranks. Nothing else decides.
    """
    rng = np.random.default_rng([*key, _MIXUP])
    return Mixture(float(rng.beta(alpha, alpha)), torch.as_tensor(rng.permutation(rows), device=device))


def hard_losses(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float, class_weights: Sequence[float] | None
) -> torch.Tensor:
    """The cross-entropy of each row, float [n].

    Args:
        logits: float [n, 2].
        labels: int64 [n].
        smoothing: Label smoothing, from 0 to below 1.
        class_weights: Weights of label 0 and label 1.
    """
    losses = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    if class_weights is None:
        return losses
    # The mean over rows is then a plain one. torch's weighted mean divides by the weights of the micro-batch, and
    # accumulation and several ranks would give a different gradient than one large batch.
    return losses * logits.new_tensor(class_weights)[labels]
