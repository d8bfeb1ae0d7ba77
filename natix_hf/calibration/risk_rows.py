"""Prepare the rows for risk control: their losses, one row per group, and the prior of the data in use."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import Labels, as_array, as_labels, check_lengths
from natix_hf.metrics.groups import count_groups

Loss = Literal["error", "fnr", "fpr"]


def losses_for(loss: Loss, decisions: Any, labels: Any) -> tuple[Labels, npt.NDArray[np.bool_]]:
    """Compute the losses for [`fit_risk_control`] and the rows in the denominator of the risk.

    Args:
        loss (`str`): `"error"` counts wrong answers among all rows. `"fnr"` counts positives answered negative, among
            the positives. `"fpr"` counts negatives answered positive, among the negatives.
        decisions (`array-like` of shape `(n,)`): The answers, 0 or 1.
        labels (`array-like` of shape `(n,)`): The true labels, 0 or 1.

    Returns:
        `tuple` of two `np.ndarray` of shape `(n,)`: The losses (int8; 0 for rows that do not count), and the rows that
        count in the denominator (bool).

    Raises:
        [`DataError`]: If an array is invalid or the arrays differ in length.
        [`UsageError`]: If the loss is unknown.

    Example:
        >>> losses, eligible = losses_for("fnr", decisions=[1, 0, 1, 0], labels=[1, 1, 0, 0])
        >>> losses.tolist(), eligible.tolist()
        ([0, 1, 0, 0], [True, True, False, False])
    """
    if loss not in get_args(Loss):
        raise UsageError(f'loss must be one of {", ".join(get_args(Loss))}, found "{loss}"')
    d, y = as_labels(decisions, "decisions"), as_labels(labels)
    check_lengths(decisions=d, labels=y)
    eligible = np.ones(y.size, dtype=np.bool_) if loss == "error" else y == (1 if loss == "fnr" else 0)
    return ((d != y) & eligible).astype(np.int8), eligible


def one_row_per_group(groups: Any, seed: int) -> npt.NDArray[np.int64]:
    """Draw one row from each group, uniformly within the group.

    Args:
        groups (`array-like` of shape `(n,)`): Group of each row, a string or a number.
        seed (`int`): At least 0.

    Returns:
        `np.ndarray` of int64: Rising positions, one per group.

    Raises:
        [`DataError`]: If the array is invalid.
        [`UsageError`]: If the seed is negative.

    Example:
        >>> one_row_per_group(["a", "b", "a", "a"], seed=0).size
        2
    """
    _check_seed(seed)
    array = as_array(groups, "groups")
    count_groups(array, np.zeros(array.size, dtype=np.int8))  # for its checks of the names
    order = np.random.default_rng(seed).permutation(array.size)
    _, first = np.unique(array[order], return_index=True)
    return np.sort(order[first])


def subsample_to_prior(labels: Any, target_prior: float, seed: int) -> npt.NDArray[np.int64]:
    """Draw a sample in which the share of positives is `target_prior`.

    Only the class that is too frequent is thinned out. All rows of the other class stay.

    Args:
        labels (`array-like` of shape `(n,)`): 0 or 1; both must occur.
        target_prior (`float`): Share of positives to reach, in (0, 1), up to the nearest row.
        seed (`int`): At least 0.

    Returns:
        `np.ndarray` of int64: Rising positions of the rows to keep.

    Raises:
        [`DataError`]: If the labels are invalid or of one class, or if no row of a class would be left.
        [`UsageError`]: If the prior is outside (0, 1) or the seed is negative.

    Example:
        >>> kept = subsample_to_prior([1, 1, 1, 1, 1, 1, 0, 0], target_prior=0.5, seed=0)
        >>> kept.size, kept[-2:].tolist()
        (4, [6, 7])
    """
    _check_seed(seed)
    if not 0 < target_prior < 1:
        raise UsageError(f"target_prior must be between 0 and 1, both excluded, found {target_prior}")
    y = as_labels(labels)
    positives, negatives = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    if not positives.size or not negatives.size:
        raise DataError(f"labels of one class ({y[0]}) cannot be subsampled to a target prior: add rows of the other")
    odds = target_prior / (1 - target_prior)
    generator = np.random.default_rng(seed)
    if positives.size > negatives.size * odds:
        positives = _draw(positives, negatives.size * odds, generator)
    else:
        negatives = _draw(negatives, positives.size / odds, generator)
    return np.sort(np.concatenate([positives, negatives]))


def _draw(rows: npt.NDArray[np.int64], share: float, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    size = min(round(share), rows.size)
    if size == 0:
        raise DataError(f"target_prior leaves none of the {rows.size} rows of a class: add rows of the other class")
    return generator.choice(rows, size=size, replace=False)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UsageError(f"seed must not be negative, found {seed}")
