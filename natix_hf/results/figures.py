"""The small parts that results are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from natix_hf.metrics import count_groups


@dataclass(frozen=True)
class Figure:
    """A figure with its 95% interval. None where it is undefined."""

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
    """Groups of a sample and of each class. `few`: a class has so few that intervals are themselves uncertain."""

    groups: int
    positive_groups: int
    negative_groups: int
    few: bool

    @classmethod
    def of(cls, groups: Any, labels: Any) -> GroupCounts:
        """The counts of a sample; see [`count_groups`]."""
        found = count_groups(groups, labels)
        few = bool(found.pop("few"))
        return cls(**found, few=few)


def finite(value: float) -> float | None:
    """The number, or None where it is NaN or infinite and JSON has no word for it."""
    return float(value) if np.isfinite(value) else None
