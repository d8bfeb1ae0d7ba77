"""Rows and the exact test that the tests of risk control share."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from scipy.stats import binomtest


@cache
def passes(errors: int, accepted: int, alpha: float, delta: float) -> bool:
    p = Fraction(alpha)
    terms = (math.comb(accepted, k) * p**k * (1 - p) ** (accepted - k) for k in range(errors + 1))
    return sum(terms, Fraction(0)) <= Fraction(delta)


def answers(n: int, seed: int) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.5).astype(int)
    x = generator.normal(size=n) + np.where(labels == 1, 1.2, -1.2) + 0.4
    return np.abs(x), (x > 0).astype(int), labels


def two_gaussians(n: int, floor: float, generator: np.random.Generator) -> tuple[Any, Any]:
    """Confidence and losses; a share `floor` of all answers is turned round, also of the most confident ones."""
    signed = generator.normal(size=n) + 1.2
    return np.abs(signed), (signed <= 0) ^ (generator.random(n) < floor)


def within_delta(false: int, trials: int = 400) -> bool:
    return bool(binomtest(false, trials, 0.1, alternative="greater").pvalue > 1e-3)
