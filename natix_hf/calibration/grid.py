"""Acceptance thresholds to try, and how many rows each of them accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from natix_hf.calibration.fixed_sequence import Counts
from natix_hf.errors import UsageError
from natix_hf.metrics.arrays import Floats, as_floats

MOST = 1000


class SortedRows(NamedTuple):
    """Rows by rising confidence. Of denominator k, `counted[k][i]` rows lie below position i, `wrong[k][i]` of them
    losses. With weights both are sums of weights."""

    confidence: Floats
    counted: list[npt.NDArray[Any]]
    wrong: list[npt.NDArray[Any]]

    def own_cuts(self) -> npt.NDArray[np.int64]:
        """Position of the first accepted row for each threshold between the rows, and for one below them all."""
        changes = np.flatnonzero(self.confidence[1:] != self.confidence[:-1])[::-1]
        return np.append(changes + 1, 0)

    def some_cuts(self) -> npt.NDArray[np.int64]:
        """As `own_cuts`, but at most 1000 of them, the closer the stricter."""
        own = self.own_cuts()
        if own.size <= MOST:
            return own
        return own[np.unique(np.geomspace(1, own.size, MOST).round().astype(np.int64) - 1)]

    def cuts(self, grid: Floats) -> npt.NDArray[np.int64]:
        """Position of the first accepted row for each threshold of the grid."""
        return np.searchsorted(self.confidence, grid, side="right")

    def threshold(self, cut: int) -> float:
        """A threshold between the rows below the cut and the rows from it on. Cut 0 lies below all rows."""
        if cut == 0:
            return _below(self.confidence[0])
        return float(_between(self.confidence[cut - 1 : cut], self.confidence[cut : cut + 1])[0])

    def counts(self, cuts: npt.NDArray[np.int64]) -> list[Counts]:
        """Of each denominator, the accepted rows and the losses among them."""
        return [
            Counts(counted[-1] - counted[cuts], wrong[-1] - wrong[cuts], float(counted[-1]))
            for counted, wrong in zip(self.counted, self.wrong, strict=True)
        ]


def sort_rows(
    confidence: Floats, losses: npt.NDArray[np.int8], weights: Sequence[npt.NDArray[Any]] | None
) -> SortedRows:
    """Sort rows once.

    Args:
        confidence: Finite, [n].
        losses: 0 or 1, [n].
        weights: Of each denominator, bool or float64 [n]. `None`: one denominator, in which every row counts once.
    """
    order = np.argsort(confidence)
    wrong = losses[order]
    if weights is None:
        return SortedRows(confidence[order], [np.arange(wrong.size + 1)], [_prefix_sums(wrong)])
    ordered = [w[order] for w in weights]
    counted, losses_counted = [_prefix_sums(w) for w in ordered], [_prefix_sums(w * wrong) for w in ordered]
    return SortedRows(confidence[order], counted, losses_counted)


def _prefix_sums(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    sums = np.zeros(values.size + 1, dtype=np.float64 if values.dtype.kind == "f" else np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def _between(lower: Floats, upper: Floats) -> Floats:
    middle = lower / 2 + upper / 2
    # Between adjacent floats the midpoint rounds to one of them. The lower one still separates because > is strict.
    return np.where(middle < upper, middle, lower)


def _below(lowest: float) -> float:
    return max(float(lowest) - max(1.0, abs(float(lowest))), -np.finfo(np.float64).max)


def make_grid(confidence: Any, most: int = MOST) -> Floats:
    """Make thresholds for [`fit_risk_control`] from rows that it will not see.

    The thresholds are the midpoints between distinct confidences, and one below them all. If there are more than
    `most`, the grid keeps `most` of them, evenly spaced by rank, including the first and the last.

    Args:
        confidence (`array-like` of shape `(n,)`): Finite numbers, on the same scale as the calibration rows.
        most (`int`, defaults to 1000): Largest number of thresholds, at least 2.

    Returns:
        `np.ndarray` of float64: At most `most` rising values.

    Raises:
        [`DataError`]: If the array is invalid.
        [`UsageError`]: If `most` is below 2.

    Example:
        >>> make_grid([2.0, 2.0, 3.0, 5.0]).tolist()
        [0.0, 2.5, 4.0]
    """
    if most < 2:
        raise UsageError(f"most must be at least 2, found {most}")
    return grid_of_sorted(np.sort(as_floats(confidence, "confidence")), most)


def grid_of_sorted(confidence: Floats, most: int = MOST) -> Floats:
    """The grid of [`make_grid`] from rising confidences."""
    distinct = confidence[np.append(True, confidence[1:] != confidence[:-1])]
    grid = np.append(_below(distinct[0]), _between(distinct[:-1], distinct[1:]))
    if grid.size > most:
        grid = grid[np.linspace(0, grid.size - 1, most).round().astype(np.int64)]
    return grid
