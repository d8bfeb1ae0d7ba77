"""The building blocks of results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from natix_hf.metrics import count_groups


@dataclass(frozen=True)
class Figure:
    """A figure with its 95% interval. An undefined figure is None."""

    value: float | None
    interval: tuple[float | None, float | None]


@dataclass(frozen=True)
class Gain:
    """A paired difference with its 95% interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class GroupCounts:
    """The number of groups in a sample and in each class. `few` is true if a class has so few groups that intervals
    are uncertain themselves."""

    groups: int
    positive_groups: int
    negative_groups: int
    few: bool

    @classmethod
    def of(cls, groups: Any, labels: Any) -> GroupCounts:
        """Count the groups of a sample; see [`count_groups`]."""
        found = count_groups(groups, labels)
        few = bool(found.pop("few"))
        return cls(**found, few=few)


def finite(value: float) -> float | None:
    """The number, or None if it is NaN or infinite, which JSON cannot hold."""
    return float(value) if np.isfinite(value) else None
