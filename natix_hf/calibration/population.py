"""Answers to draw calibrations from: a simple model of them, or those that a classifier gave.

Risk control reads only how many rows it accepts at each threshold, and how many of them are losses. So these counts
are drawn, not rows, from the very distribution that they have over draws of rows. A draw then costs the same for a
thousand rows and for a million.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from natix_hf.calibration.fixed_sequence import Counts
from natix_hf.calibration.grid import MOST, make_grid
from natix_hf.errors import DataError
from natix_hf.metrics.arrays import Floats, as_floats, as_labels, as_weights, check_lengths

Ints = npt.NDArray[np.int64]


class Draw(NamedTuple):
    """One calibration: the counts of its own rows and of other rows at the thresholds that the other rows give, from
    strict to loose. `coverage` is the share of all calibration rows that each threshold accepts."""

    calib: Counts
    select: Counts
    coverage: Floats


@dataclass(frozen=True)
class Profile:
    """A model of answers, ranked by confidence from 0 (most confident) to 1.

    Args:
        coverage (`float`): The planned share, in (0, 1].
        error_rate (`float`): Mean error over the planned share.
        floor (`float`): Error of the most confident answers. From there the error rises linearly over the planned
            share. It ends at `2 * error_rate - floor`.
        rest (`float`): Error of the answers below the planned share.
    """

    coverage: float
    error_rate: float
    floor: float
    rest: float

    def error(self, rank: Floats) -> Floats:
        slope = 2 * (self.error_rate - self.floor) / self.coverage
        return np.where(rank <= self.coverage, self.floor + slope * rank, self.rest)

    def errors_above(self, rank: Floats) -> Floats:
        """Expected errors above a rank, as a share of all answers."""
        inside = np.minimum(rank, self.coverage)
        slope = 2 * (self.error_rate - self.floor) / self.coverage
        return inside * (self.floor + slope * inside / 2) + self.rest * np.maximum(rank - self.coverage, 0)

    def between(self, low: Floats, high: Floats) -> Floats:
        """Mean error between two ranks."""
        width = high - low
        mean = (self.errors_above(high) - self.errors_above(low)) / np.where(width > 0, width, 1)
        return np.clip(np.where(width > 0, mean, 0.0), 0, 1)

    def hopeless(self, coverage: float, alpha: float) -> str:
        """Say why no number of rows certifies `alpha` at this coverage or more; "" if there is no such reason."""
        tried = np.arange(1, MOST) / (MOST - 1)  # of ever more rows the grid keeps these shares
        tried = tried[tried >= coverage]
        if (self.errors_above(tried) < alpha * tried).any():
            return ""
        return (
            f"a planned coverage of {self.coverage:g} is finer than the {MOST} thresholds that are tried, and the "
            "next one accepts too many errors"
        )

    def draw(self, rows: int, rng: np.random.Generator) -> Draw:
        last = _accepted_at_thresholds(rows)
        size = np.diff(last, prepend=0)
        # The rows sorted by rank have exponential gaps. `first` and `last` rows of the stretch between two thresholds
        # are placed; the rows between them are uniform, so their errors are binomial.
        steps = np.zeros(2 * size.size + 1)
        steps[0::2] = rng.exponential(size=size.size + 1)
        several = size > 1
        steps[1::2][several] = rng.standard_gamma(size[several] - 1)
        rank = np.cumsum(steps)
        rank /= rank[-1]
        begin, end = rank[0:-1:2], rank[1::2]
        seen = (rng.random(size.size) < self.error(begin)).astype(np.int64)
        seen[several] += rng.random(int(several.sum())) < self.error(end[several])
        seen[several] += rng.binomial(size[several] - 2, self.between(begin, end)[several])
        cut = np.append((end[:-1] + begin[1:]) / 2, 1.0)
        strict = np.append(0.0, cut[:-1])
        accepted = rng.multinomial(rows, cut - strict)
        errors = rng.binomial(accepted, self.between(strict, cut))
        calib = Counts(np.cumsum(accepted), np.cumsum(errors), rows)
        return Draw(calib, Counts(last, np.cumsum(seen), rows), calib.accepted / rows)


@dataclass(frozen=True)
class Sample:
    """Answers that a classifier gave, to be drawn with replacement.

    Args:
        values: The distinct confidences, rising, [k].
        shares: The probability of a row of each confidence that counts and is right, counts and is wrong, does not
            count, [3, k]. They add up to 1.
    """

    values: Floats
    shares: Floats

    @cached_property
    def _ends(self) -> Floats:
        return np.cumsum(self.shares)

    def risks(self) -> tuple[Floats, Floats]:
        """Coverage and risk at each threshold, from strict to loose. Where no row counts the risk is 1."""
        every = np.cumsum(self.shares.sum(axis=0)[::-1])
        counted, wrong = (np.cumsum(part[::-1]) for part in (self.shares[0] + self.shares[1], self.shares[1]))
        return every, np.divide(wrong, counted, out=np.ones_like(wrong), where=counted > 0)

    def draw(self, rows: int, rng: np.random.Generator) -> Draw:
        select, calib = (self._counts(rows, rng) for _ in range(2))
        grid = make_grid(self.values[select.sum(axis=0) > 0])[::-1]
        cuts = np.searchsorted(self.values, grid, side="right")
        every = _from(calib.sum(axis=0), cuts)
        return Draw(_at(calib, cuts), _at(select, cuts), every / rows)

    def _counts(self, rows: int, rng: np.random.Generator) -> Ints:
        if rows > self.shares.size:
            return rng.multinomial(rows, self.shares.ravel()).reshape(self.shares.shape)
        at = np.searchsorted(self._ends, rng.random(rows) * self._ends[-1], side="right")
        return np.bincount(at, minlength=self.shares.size).reshape(self.shares.shape)


def sample_of(confidence: Any, losses: Any, weights: Any | None = None, eligible: Any | None = None) -> Sample:
    """Answers to draw from, out of rows: confidences, losses, weights of the draw, and the rows that count."""
    c, wrong = as_floats(confidence, "confidence"), as_labels(losses, "losses")
    counts = np.ones(c.size, dtype=np.int8) if eligible is None else as_labels(eligible, "eligible")
    weight = as_weights(weights, "weights")
    check_lengths(confidence=c, losses=wrong, eligible=counts, weights=weight)
    if not counts.any():
        raise DataError("eligible is 0 in every row, so no row counts in the denominator of the risk")
    values, at = np.unique(c, return_inverse=True)
    kind = np.where(counts == 1, wrong, 2)
    shares = np.zeros((3, values.size))
    np.add.at(shares, (kind, at), 1.0 if weight is None else weight)
    return Sample(values, shares / shares.sum())


def _from(values: npt.NDArray[np.int64], cuts: Ints) -> Ints:
    sums = np.append(np.cumsum(values[::-1])[::-1], 0)
    return sums[cuts]


def _at(counts: Ints, cuts: Ints) -> Counts:
    counted = counts[0] + counts[1]
    return Counts(_from(counted, cuts), _from(counts[1], cuts), int(counted.sum()))


@lru_cache(maxsize=64)
def _accepted_at_thresholds(rows: int) -> Ints:
    """Rows that the thresholds of `make_grid` accept among the rows that gave them, from strict to loose, if no two
    rows have the same confidence."""
    distinct = np.arange(rows, dtype=np.float64)
    grid = make_grid(distinct)[::-1]
    return rows - np.searchsorted(distinct, grid, side="right")
