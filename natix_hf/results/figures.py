"""The building blocks of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from natix_hf.metrics import Interval, count_groups
from natix_hf.metrics.intervals import has_width, same_in_all, why_not_resampled
from natix_hf.provenance.stored import OPTIONAL

Bounds = tuple[float | None, float | None]
_NO_WIDTH = "cannot be estimated: every resample gives the same value"  # of files that hold no reason


@dataclass(frozen=True)
class Figure:
    """A figure with its 95% interval. An undefined figure is None.

    Args:
        exact (`bool`): The interval holds exact binomial bounds; None: it comes from resampled groups.
        no_interval (`str`): Why a figure that is defined has no interval.
    """

    value: float | None
    interval: Bounds
    exact: bool | None = field(default=None, metadata=OPTIONAL)
    no_interval: str | None = field(default=None, metadata=OPTIONAL)

    @property
    def told(self) -> str:
        """The figure as text, such as `0.900 [0.850, 0.940]`."""
        low, high = self.interval
        told = "undefined" if self.value is None else f"{self.value:.3f}"
        return told if self.value is None or low is None or low == high else f"{told} [{low:.3f}, {high:.3f}]"

    @classmethod
    def of(cls, value: float, interval: Interval) -> Figure:
        return cls(
            finite(value), (interval.low, interval.high), True if interval.exact else None, interval.reason or None
        )


@dataclass(frozen=True)
class Gain:
    """A paired difference with its 95% interval, or with the reason why there is none."""

    difference: float
    low: float | None
    high: float | None
    no_interval: str | None = field(default=None, metadata=OPTIONAL)

    @property
    def told(self) -> str:
        """The gain as text, such as `+0.100 [+0.020, +0.180]`."""
        return f"{self.difference:+.3f} {self.told_interval}"

    @property
    def told_interval(self) -> str:
        if self.no_interval is None and self.low is not None and self.high is not None and self.low != self.high:
            return f"[{self.low:+.3f}, {self.high:+.3f}]"
        return f"(its interval {self.no_interval or _NO_WIDTH})"


def paired_bounds(low: float, high: float, labels: Any, groups: Any) -> tuple[float | None, float | None, str | None]:
    """The interval of a paired difference, or (None, None, the reason why resampling these groups gives none)."""
    reason = why_not_resampled(labels, groups) or ("" if has_width(low, high) else same_in_all(groups))
    return (None, None, reason) if reason else (low, high, None)


@dataclass(frozen=True)
class GroupCounts:
    """The number of groups in a sample and in each class. `few` is true if a class has so few groups that intervals
    are uncertain themselves. `known` is true if something says which rows belong together; without it each row counts
    as a group, and nothing may be called independent. None: the file is older than this field."""

    groups: int
    positive_groups: int
    negative_groups: int
    few: bool
    known: bool | None = field(default=None, metadata=OPTIONAL)

    @classmethod
    def of(cls, groups: Any, labels: Any, known: bool | None = None) -> GroupCounts:
        """Count the groups of a sample; see [`count_groups`]."""
        found = count_groups(groups, labels)
        few = bool(found.pop("few"))
        return cls(**found, few=few, known=known)


def finite(value: float) -> float | None:
    """The number, or None if it is NaN or infinite, which JSON cannot hold."""
    return float(value) if np.isfinite(value) else None


def interval_notes(figures: Mapping[str, Figure]) -> list[str]:
    """Say which figures have an interval that is not from resamples, and which have none and why.

    Args:
        figures: By the name to print.
    """
    lacking: dict[str, list[str]] = {}
    for name, figure in figures.items():
        reason = figure.no_interval or (_NO_WIDTH if None is not figure.interval[0] == figure.interval[1] else None)
        if figure.value is not None and reason is not None:
            lacking.setdefault(reason, []).append(name)
    notes = [f"No interval for {', '.join(names)}: it {reason}" for reason, names in lacking.items()]
    exact = [name for name, figure in figures.items() if figure.value is not None and figure.exact]
    if exact:
        notes.insert(0, f"Exact binomial bounds, where resampling gives none: {', '.join(exact)}")
    return notes
