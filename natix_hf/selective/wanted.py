"""What a caller of `SelectiveClassifier.fit` wants, checked argument by argument."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from natix_hf.calibration.config import RiskConfig
from natix_hf.calibration.risk_rows import Loss
from natix_hf.errors import UsageError, cut
from natix_hf.metrics.threshold import OBJECTIVES
from natix_hf.selective.stated import Prior, Shares, interval

# Beyond these a share of delta, or a seed, is no number that numpy takes.
_MOST_LOOKS, _MOST_SEED = 10**9, 2**128 - 1


@dataclass(frozen=True)
class Wanted:
    """What a caller wants, checked."""

    risk: RiskConfig
    prior: Prior | None
    threshold: str | float
    seed: int

    @property
    def weighted_to(self) -> float | None:
        """The share of label 1 that threshold and temperature are fitted to."""
        return None if self.prior is None else (self.prior[0] + self.prior[1]) / 2


def wanted(
    alpha: float,
    delta: float,
    loss: Loss,
    prior: Shares | None,
    classwise: bool,
    min_coverage: float | None,
    looks: int,
    threshold: str | float,
    seed: int,
) -> Wanted:
    """Check what a caller wants.

    Raises:
        UsageError: if a value is impossible; the line names the argument.
    """
    if not isinstance(loss, str) or loss not in get_args(Loss):
        raise UsageError(f"loss must be one of {', '.join(get_args(Loss))}, found {cut(loss)}")
    if isinstance(threshold, str):
        if threshold not in OBJECTIVES:
            raise UsageError(f"threshold must be a number or one of {', '.join(OBJECTIVES)}, found {cut(threshold)}")
    else:
        threshold = number(threshold, "threshold", f"a finite number or one of {', '.join(OBJECTIVES)}")
    shares = interval(prior)
    risk = RiskConfig(
        loss=loss,
        alpha=_share(alpha, "alpha"),
        delta=_share(delta, "delta"),
        min_coverage=None if min_coverage is None else _coverage(min_coverage),
        classwise=_truth(classwise, "classwise"),
        prior=None if shares is None else list(shares),
        looks=_whole(looks, "looks", 1, _MOST_LOOKS),
    )
    return Wanted(risk, shares, threshold, _whole(seed, "seed", 0, _MOST_SEED))


def number(value: Any, name: str, allowed: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A number strictly between two others, as a float.

    Raises:
        UsageError: if it is none; the line says what is allowed.
    """
    plain = _plain(value)
    try:
        found = float(plain) if isinstance(plain, int | float) and not isinstance(plain, bool) else math.nan
    except OverflowError:
        found = math.nan
    if not low < found < high:
        raise UsageError(f"{name} must be {allowed}, found {cut(value)}")
    return found


def _share(value: Any, name: str) -> float:
    return number(value, name, "a share between 0 and 1, both excluded", 0, 1)


def _coverage(value: Any) -> float:
    return number(value, "min_coverage", "a share above 0 and up to 1, or None", 0, math.nextafter(1, 2))


def _whole(value: Any, name: str, least: int, most: int) -> int:
    plain = _plain(value)
    if not isinstance(plain, int) or isinstance(plain, bool) or not least <= plain <= most:
        raise UsageError(f"{name} must be a whole number from {least} to {most}, found {cut(value)}")
    return plain


def _truth(value: Any, name: str) -> bool:
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise UsageError(f"{name} must be True or False, found {cut(value)}")
    return plain


def _plain(value: Any) -> Any:
    """A number or a truth value of numpy as Python's own."""
    return value.item() if isinstance(value, np.generic) else value
