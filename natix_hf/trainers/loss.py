"""The loss of a supervised training, row by row: cross-entropy, class weights, mixup and the answers of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

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
    """The cross-entropy of each row with its label, float [n]. It is 0 for a row without a label.

    Args:
        logits: float [n, 2].
        labels: int64 [n]; -1 is none.
        smoothing: Label smoothing, from 0 to below 1.
        class_weights: Weights of label 0 and label 1.
    """
    labelled, known = labels >= 0, labels.clamp(min=0)
    losses = cross_entropy(logits, known, reduction="none", label_smoothing=smoothing) * labelled
    if class_weights is None:
        return losses
    # The mean over rows is then a plain one. torch's weighted mean divides by the weights of the micro-batch, and
    # accumulation and several ranks would give a different gradient than one large batch.
    return losses * logits.new_tensor(class_weights)[known]


def soft_losses(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student) of each row, both at temperature T, float [n] (arXiv 1503.02531). T^2 keeps the size
    of the gradient.

    Args:
        logits: float [n, 2] of the student.
        taught: The teacher's probability of label 1 at the temperature, float [n].
    """
    target = torch.stack([1 - taught, taught], dim=1)
    return temperature**2 * kl_div(log_softmax(logits / temperature, dim=1), target, reduction="none").sum(dim=1)


@dataclass(frozen=True)
class RowLoss:
    """The loss of each row: `mix` of the teacher's answer, the rest of the label.

    Class weights and label smoothing act on the label's part. A teacher's answer is taken as it is.
    """

    smoothing: float
    class_weights: Sequence[float] | None
    temperature: float
    mix: float

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, taught: torch.Tensor | None, mixture: Mixture | None
    ) -> torch.Tensor:
        """Compute the losses, float [n].

        Args:
            logits: float [n, 2], of the mixed rows if there is a mixture.
            labels: int64 [n], not mixed; -1 is none.
            taught: The teacher's answers, float [n], not mixed. None: there is no teacher.
        """

        def of_labels(labels: torch.Tensor) -> torch.Tensor:
            return hard_losses(logits, labels, self.smoothing, self.class_weights)

        hard = of_labels(labels) if mixture is None else mixture.loss(of_labels, labels)
        if taught is None:
            return hard
        soft = soft_losses(logits, taught if mixture is None else mixture.of(taught), self.temperature)
        return self.mix * soft + (1 - self.mix) * hard
