"""Read the answers of any model as logits: one column or two, logits or probabilities, never guessed which."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from natix_hf.errors import DataError, UsageError
from natix_hf.metrics.arrays import Floats, as_floats, refuse_masked

# The largest distance to 1 of two probabilities of one row: float16 rounds to 5e-4, a table to three decimals.
_ROUNDING = 2e-3
# float32 holds no number between 1 - 6e-8 and 1, so a probability of 1 says no more than a logit of 16.
EPSILON = 1e-7


def as_logits(
    values: Any, probabilities: bool | None = None, epsilon: float = EPSILON, name: str = "logits"
) -> tuple[Floats, int]:
    """Read answers as logits, of label 1 over label 0.

    Args:
        values (`array-like` of shape `(n,)` or `(n, 2)`): Logits or probabilities, of label 1, or of labels 0 and 1.
        probabilities (`bool`, *optional*): What the values are. `None`: logits, but values that look like
            probabilities are refused.
        epsilon (`float`): The smaller of the two probabilities of a row counts as at least this, since 0 and 1 have no
            logit.
        name (`str`): The name of the values in errors.

    Returns:
        `tuple`: The logits, float64 of shape `(n,)`, and the number of rows in which `epsilon` counted.

    Raises:
        [`DataError`]: If the values are no numbers, not finite, of another shape, or not what `probabilities` says.
        [`UsageError`]: If `epsilon` is out of range.
    """
    if not 0 < epsilon < 0.5:
        raise UsageError(f"epsilon must be between 0 and 0.5, both excluded, found {epsilon}")
    columns = _columns(values, name)
    if probabilities:
        return _logits_of(columns, epsilon, name)
    if probabilities is None and _look_like_probabilities(columns):
        raise DataError(
            f"{name} look like probabilities: all {columns[-1].size} are in [0, 1]"
            f"{', and each row adds up to 1' if len(columns) == 2 else ''}: say probabilities=True, or "
            f"probabilities=False if they are logits"
        )
    if len(columns) == 1:
        return columns[0], 0
    with np.errstate(over="ignore"):
        difference = columns[1] - columns[0]
    if not np.isfinite(difference).all():
        raise DataError(f"{name} are too far apart at position {int(np.argmin(np.isfinite(difference)))}: scale them")
    return difference, 0


def _columns(values: Any, name: str) -> list[Floats]:
    """One or two columns of finite numbers."""
    refuse_masked(values, name)
    if hasattr(values, "detach"):  # a tensor on any device; numpy knows no bfloat16
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    try:
        array: npt.NDArray[Any] = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{name} must have the shape [n] or [n, 2]: {error}") from None
    if array.ndim == 1:
        return [as_floats(array, name)]
    if array.ndim == 2 and array.shape[1] == 2:
        return [as_floats(array[:, column], f"{name}[:, {column}]") for column in (0, 1)]
    single = array.ndim == 2 and array.shape[1] == 1
    advice = f": pass {name}[:, 0]" if single else f", found {list(array.shape)}: one number or two for each row"
    raise DataError(f"{name} must have the shape [n] or [n, 2]{advice}")


def _look_like_probabilities(columns: list[Floats]) -> bool:
    within = all(column.min() >= 0 and column.max() <= 1 for column in columns)
    return within and (len(columns) == 1 or bool(np.all(np.abs(columns[0] + columns[1] - 1) <= _ROUNDING)))


def _logits_of(columns: list[Floats], epsilon: float, name: str) -> tuple[Floats, int]:
    for column in columns:
        outside = (column < 0) | (column > 1)
        if outside.any():
            position = int(np.argmax(outside))
            raise DataError(
                f"{name} are said to be probabilities, but {column[position]:g} at position {position} is not in "
                "[0, 1]: leave out probabilities=True if they are logits"
            )
    yes = columns[-1]
    no = columns[0] if len(columns) == 2 else 1 - yes
    apart = np.abs(no + yes - 1) > _ROUNDING
    if apart.any():
        position = int(np.argmax(apart))
        raise DataError(
            f"{name} at position {position} are {no[position]:g} and {yes[position]:g}, which do not add up to 1: "
            "pass one column, the probability of label 1"
        )
    # The smaller of two probabilities is the exact one: 1 - 1e-9 is 1 in float32.
    clipped = int(np.count_nonzero(np.minimum(no, yes) < epsilon))
    low, high = np.maximum(no, epsilon), np.maximum(yes, epsilon)
    return np.log(high) - np.log(low), clipped
