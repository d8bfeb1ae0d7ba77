"""Resampling of groups within class.

Frames of one video are not independent, so whole videos are drawn. Drawing within class keeps the rarer class in every
resample.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import Labels, as_array, as_labels, check_lengths

Ints = npt.NDArray[np.int64]

# With fewer groups in a class the intervals are uncertain themselves, and reports say so.
FEW_GROUPS = 20

# Size of one chunk of int64 weights. The float64 copy for a matrix product is as large again; the AUROC needs six.
CHUNK_BYTES = 64 << 20


def classes_of_groups(groups: Any, labels: Labels) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The group number of each row, and which groups are positive."""
    array = as_array(groups, "groups")
    check_lengths(groups=array, labels=labels)
    known = array == array
    if array.dtype.kind == "O":
        known &= np.array([name is not None for name in array])
    if not np.all(known):
        raise DataError(f"groups has no name at position {int(np.argmin(known))}")
    try:
        _, numbers = np.unique(array, return_inverse=True)
    except TypeError as error:
        raise DataError(f"groups must be all strings or all numbers: {error}") from error
    positive = np.bincount(numbers, labels) * 2 >= np.bincount(numbers)
    return numbers, positive


def group_weights(groups: Any, labels: Any, n_resamples: int, seed: int) -> Iterator[Ints]:
    """Draw groups with replacement within class, and count for each row how often its group was drawn.

    A group has the class of most of its rows, and is positive on a tie. Resample i depends only on `(seed, i)`.

    Args:
        groups (`array-like` of shape `(n,)`): Name of the group of each row: strings or numbers.
        labels (`array-like` of shape `(n,)`): 0 or 1.
        n_resamples (`int`): How many resamples to draw.
        seed (`int`): Not negative.

    Yields:
        `np.ndarray` of int64, of shape `(b, n)`: the next `b` resamples, of at most 64 MiB (or one resample).

    Raises:
        [`DataError`]: an array has a wrong shape or value. [`UsageError`]: `n_resamples` or `seed` is
        out of range.
    """
    if n_resamples < 1:
        raise UsageError(f"n_resamples must be at least 1, found {n_resamples}")
    if seed < 0:
        raise UsageError(f"seed must not be negative, found {seed}")
    numbers, positive = classes_of_groups(groups, as_labels(labels))
    return _draw(numbers, positive, n_resamples, seed)


def _draw(numbers: Ints, positive: npt.NDArray[np.bool_], n_resamples: int, seed: int) -> Iterator[Ints]:
    strata = [members for members in (np.flatnonzero(positive), np.flatnonzero(~positive)) if members.size]
    size = max(1, CHUNK_BYTES // (8 * numbers.size))
    for start in range(0, n_resamples, size):
        drawn = np.zeros((min(size, n_resamples - start), positive.size), dtype=np.int64)
        for row, resample in enumerate(range(start, start + len(drawn))):
            generator = np.random.default_rng([seed, resample])
            for members in strata:
                chosen = generator.integers(members.size, size=members.size)
                drawn[row, members] = np.bincount(chosen, minlength=members.size)
        yield drawn[:, numbers]


def count_groups(groups: Any, labels: Any) -> dict[str, int | bool]:
    """Count the groups of each class, as [`group_weights`] draws them.

    Args:
        groups (`array-like` of shape `(n,)`): Name of the group of each row.
        labels (`array-like` of shape `(n,)`): 0 or 1.

    Returns:
        `dict`: `groups`, `positive_groups`, `negative_groups`, and `few`: one class has fewer than 20 groups.

    Raises:
        [`DataError`]: an array has a wrong shape or value.
    """
    _, positive = classes_of_groups(groups, as_labels(labels))
    positives = int(positive.sum())
    negatives = positive.size - positives
    return {
        "groups": positive.size,
        "positive_groups": positives,
        "negative_groups": negatives,
        "few": min(positives, negatives) < FEW_GROUPS,
    }
