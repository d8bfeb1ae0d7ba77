"""The order of training rows. It depends only on (seed, epoch), so it is the same on every rank and after a resume."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """A sampler of `(epoch, row)` pairs. The epoch tells persistent workers which augmentation to draw.

    Args:
        labels: Labels, int64 [n], 0 or 1.
        seed: Seed of the order.
        target_prior: Share of label 1 in an epoch. Rows of a class repeat if needed, but no row comes twice before all
            rows of its class came once. None: every row comes once.
    """

    def __init__(self, labels: np.ndarray, seed: int, target_prior: float | None = None) -> None:
        self.labels = labels
        self.seed = seed
        self.target_prior = target_prior
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = np.arange(len(self.labels))
        if self.target_prior is not None:
            n_positive = round(self.target_prior * len(rows))
            positive = _cycle(np.flatnonzero(self.labels == 1), n_positive, rng)
            negative = _cycle(np.flatnonzero(self.labels == 0), len(rows) - n_positive, rng)
            rows = np.concatenate([positive, negative])
        for row in rng.permutation(rows):
            yield self.epoch, int(row)


def _cycle(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` rows in random order. No row comes twice before all came once."""
    passes = -(-count // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(passes)] or [rows[:0]])[:count]
