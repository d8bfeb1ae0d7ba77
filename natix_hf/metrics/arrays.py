"""The inputs of the metrics: lists, numpy arrays and torch tensors (by duck typing), checked once and made numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from natix_hf.errors import DataError, UsageError

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]


def as_array(values: Any, name: str) -> npt.NDArray[Any]:
    """Make a one-dimensional, non-empty numpy array of `values`, in their own dtype.

    Args:
        values (`list`, `np.ndarray` or `torch.Tensor` of shape `(n,)`):
            The values. A tensor may require a gradient, be on any device and have any dtype.
        name (`str`):
            The name of the values in errors.

    Returns:
        `np.ndarray` of shape `(n,)`.

    Raises:
        [`DataError`]: the values are not one-dimensional, or there are none.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        # numpy knows no bfloat16, and float64 holds each of its values.
        values = (values.double() if values.is_floating_point() else values).numpy()
    refuse_masked(values, name)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{name} must be one-dimensional: {error}") from error
    if array.ndim != 1:
        raise DataError(f"{name} must be one-dimensional, found shape {array.shape}")
    if array.size == 0:
        raise DataError(f"{name} is empty")
    return array


def refuse_masked(values: Any, name: str) -> None:
    """Raise a [`DataError`] if a value is masked, as `numpy.ma` does: without its mask it would count as any other."""
    if np.ma.is_masked(values):
        position = int(np.argwhere(np.ma.getmaskarray(values))[0][0])
        raise DataError(f"{name} has no value at position {position}, which is masked: leave out such rows")


def as_floats(values: Any, name: str) -> Floats:
    """[`as_array`] as finite float64. Anything but finite numbers is a [`DataError`]."""
    array = as_array(values, name)
    if array.dtype.kind not in "biufO":
        raise DataError(f"{name} must be numbers, found {array.dtype}")
    try:
        floats: Floats = array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must be numbers: {error}") from error
    finite = np.isfinite(floats)
    if not finite.all():
        position = int(np.argmin(finite))
        raise DataError(f"{name} must be finite, found {floats[position]} at position {position}")
    return floats


def as_probabilities(values: Any, name: str = "probabilities") -> Floats:
    """[`as_floats`] within [0, 1]. A logit passed by mistake is a [`DataError`]."""
    probabilities = as_floats(values, name)
    if probabilities.min() < 0 or probabilities.max() > 1:
        position = int(np.argmax((probabilities < 0) | (probabilities > 1)))
        raise DataError(f"{name} must be in [0, 1], found {probabilities[position]:g} at position {position}")
    return probabilities


def as_labels(values: Any, name: str = "labels") -> Labels:
    """[`as_array`] as int8, 1 for the positive class. Any value but 0 and 1 is a [`DataError`]."""
    array = as_array(values, name)
    try:
        known = (array == 0) | (array == 1)
        all_known = bool(known.all())
    except TypeError:  # a missing value of pandas is neither equal nor unequal to anything
        raise DataError(f"{name} must be 0 or 1, found a missing value") from None
    if not all_known:
        position = int(np.argmin(known))
        raise DataError(f"{name} must be 0 or 1, found {array[position]} at position {position}")
    return array.astype(np.int8, copy=False)


def as_weights(values: Any | None, name: str = "sample_weight") -> Floats | None:
    """[`as_floats`] that are not negative and not all 0. `None`, which weights all rows equally, stays `None`."""
    if values is None:
        return None
    weights = as_floats(values, name)
    if weights.min() < 0:
        position = int(np.argmax(weights < 0))
        raise DataError(f"{name} must not be negative, found {weights[position]:g} at position {position}")
    if not weights.any():
        raise DataError(f"{name} is 0 in every row")
    return weights


def check_lengths(**arrays: npt.NDArray[Any] | None) -> None:
    """Raise a [`DataError`] with the names and lengths of the arrays if the lengths differ. `None` is skipped."""
    lengths = {name: array.size for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"one value per row is needed, found lengths: {found}")


def check_threshold(threshold: float, name: str = "threshold") -> None:
    """Raise a [`UsageError`] for a threshold that is not finite: it would call all rows alike, silently."""
    if not math.isfinite(threshold):
        raise UsageError(f"{name} must be finite, found {threshold}")


def check_level(level: float) -> None:
    """Raise a [`UsageError`] if the level of an interval is outside (0, 1)."""
    if not 0 < level < 1:
        raise UsageError(f"level must be between 0 and 1, both excluded, found {level}")
