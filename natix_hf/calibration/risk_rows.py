"""The rows that risk control is given: which losses count, one row of each group, at the prior that will be met."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import Labels, as_array, as_labels, check_lengths
from natix_hf.metrics.groups import count_groups

Loss = Literal["error", "fnr", "fpr"]


def losses_for(loss: Loss, decisions: Any, labels: Any) -> tuple[Labels, npt.NDArray[np.bool_]]:
    """The losses of [`fit_risk_control`] and which rows count in their denominator.

    Args:
        loss (`str`): `"error"`, any wrong answer, of all rows; `"fnr"`, a positive answered negative, of the
            positives; `"fpr"`, a negative answered positive, of the negatives.
        decisions, labels (`array-like` of shape `(n,)`): 0 or 1.

    Returns:
        `tuple` of two `np.ndarray` of shape `(n,)`: int8 losses, 0 where a row does not count, and bool eligible.

    Raises:
        [`DataError`]: where an array is not what it must be. [`UsageError`]: for an unknown loss.

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
    """Draw one row of each group, every row of a group with the same probability.

    Args:
        groups (`array-like` of shape `(n,)`): Name of the group of each row: strings or numbers.
        seed (`int`): Not negative.

    Returns:
        `np.ndarray` of int64: rising positions, one of each group.

    Raises:
        [`DataError`]: where the array is not what it must be. [`UsageError`]: for a negative seed.

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
    """Draw rows of the class that is too frequent so that the share of positives is `target_prior`; keep the other.

    Args:
        labels (`array-like` of shape `(n,)`): 0 or 1, both present.
        target_prior (`float`): Share of positives, within (0, 1), reached to the nearest row.
        seed (`int`): Not negative.

    Returns:
        `np.ndarray` of int64: rising positions of the rows to keep.

    Raises:
        [`DataError`]: where the labels are not what they must be, are of one class, or a class would be left without
        a row. [`UsageError`]: for a prior outside (0, 1) or a negative seed.

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
        raise DataError(f"labels of one class ({y[0]}) cannot be subsampled to a target prior")
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
        raise DataError(f"target_prior leaves none of the {rows.size} rows of a class: more of the other are needed")
    return generator.choice(rows, size=size, replace=False)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UsageError(f"seed must not be negative, found {seed}")
