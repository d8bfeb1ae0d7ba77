"""The order of training rows. It depends only on (seed, epoch), so it is the same on every rank and after a resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Sampler

from natix_hf.errors import DataError


class EpochSampler(Sampler[tuple[int, int]]):
    """A sampler of `(epoch, row)` pairs. The epoch tells persistent workers which augmentation to draw.

    Args:
        labels: Labels, int64 [n], 0 or 1.
        seed: Seed of the order.
        target_prior: Share of label 1 in an epoch. Rows of a class repeat if needed, but no row comes twice before all
            rows of its class came once. None: every row comes once.
        origins: Name of the source of each row, if `shares` are given.
        shares: Largest share of an epoch's rows that may come from a source, also where rows repeat. Its rows take
            turns: all of them come before one comes twice.

    Raises:
        DataError: If the shares leave too few rows of a label for `target_prior`.
    """

    def __init__(
        self,
        labels: np.ndarray,
        seed: int,
        target_prior: float | None = None,
        origins: Sequence[str] = (),
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self.labels = labels
        self.seed = seed
        self.target_prior = target_prior
        self.epoch = 0
        self._names = np.asarray(origins)
        self._limits = rows_of_an_epoch(self._names, shares or {}) if shares else {}
        self._sources = {name: np.flatnonzero(self._names == name) for name in self._limits}
        # How often rows of a source may come again in one epoch.
        self._room = {
            name: int(share * len(self) + 1e-9) - self._limits[name] for name, share in (shares or {}).items()
        }
        if target_prior is not None and shares:
            list(self)  # a prior that cannot be met is refused before the training begins

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels) - sum(len(self._sources[name]) - count for name, count in self._limits.items())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = self._rows()
        if self.target_prior is not None:
            n_positive = round(self.target_prior * len(rows))
            positive = self._of_label(1, rows, n_positive, rng)
            negative = self._of_label(0, rows, len(rows) - n_positive, rng)
            rows = np.concatenate([positive, negative])
        for row in rng.permutation(rows):
            yield self.epoch, int(row)

    def _of_label(self, label: int, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw `count` of the rows that have a label. None comes twice before all came once."""
        members = rows[self.labels[rows] == label]
        room = dict(self._room)
        drawn = [members[:0]]
        missing = count
        while missing > 0:
            again = rng.permutation(members)
            if missing < count:  # from the second time on
                for name, left in room.items():
                    of_source = np.flatnonzero(self._names[again] == name)
                    room[name] -= len(of_source[:left])
                    again = np.delete(again, of_source[left:])
            if not len(again):
                raise DataError(
                    f"data.target_prior {self.target_prior:g} needs {count:,} rows with label {label} in an epoch of "
                    f"{len(rows):,}, but the shares of the sources leave {count - missing:,}: raise the share of "
                    f"{', '.join(room)}, or add rows with label {label} from a source without a share"
                )
            drawn.append(again)
            missing -= len(again)
        return np.concatenate(drawn)[:count]

    def _rows(self) -> np.ndarray:
        """The rows that may come in this epoch, int64, sorted."""
        kept = np.ones(len(self.labels), dtype=bool)
        for number, (name, count) in enumerate(self._limits.items()):
            members = self._sources[name]
            turn = np.random.default_rng([self.seed, number, 1]).permutation(members)
            kept[members] = False
            kept[np.take(turn, np.arange(count) + self.epoch * count, mode="wrap")] = True
        return np.flatnonzero(kept)


class JoinedSampler(Sampler[tuple[int, int]]):
    """The pairs of an `EpochSampler`, and in every epoch each of `further` rows that follow its rows, in one order."""

    def __init__(self, rows: EpochSampler, further: int) -> None:
        self.rows = rows
        self.further = further

    def set_epoch(self, epoch: int) -> None:
        self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows) + self.further

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, first = self.rows.epoch, len(self.rows.labels)
        rows = [row for _, row in self.rows] + list(range(first, first + self.further))
        for row in np.random.default_rng([self.rows.seed, epoch, 3]).permutation(rows):
            yield epoch, int(row)


RowOrder = EpochSampler | JoinedSampler


def rows_of_an_epoch(origins: np.ndarray, shares: Mapping[str, float]) -> dict[str, int]:
    """The number of rows that each bounded source gives to an epoch: all, or as many as its share allows.

    Args:
        origins: Name of the source of each row, str [n].
        shares: Largest share of an epoch by source.
    """
    total = {name: int((origins == name).sum()) for name in shares}
    free = len(origins) - sum(total.values())
    counts = dict(total)
    while True:  # an epoch shrinks with its sources, so their shares are taken of a smaller epoch, until it stays
        size = free + sum(counts.values())
        smaller = {name: min(counts[name], int(share * size + 1e-9)) for name, share in shares.items()}
        if smaller == counts:
            return counts
        counts = smaller
