"""Timing two sides that alternate. Nothing here needs torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

_Result = TypeVar("_Result")


def timed(function: Callable[[], _Result]) -> tuple[float, _Result]:
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios of neighbours in time: a slow minute slows both sides of a pair."""
    return median(a / b for a, b in zip(above, below, strict=True))
