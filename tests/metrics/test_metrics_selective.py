"""Risk-coverage, AURC and AUGRC, against values by hand, loops, every order of the ties, and AUROC."""

from __future__ import annotations

import doctest
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from sklearn.metrics import roc_auc_score

from natix_hf.errors import DataError
from natix_hf.metrics import augrc, aurc, risk_coverage, selective


def accepted(c: list[int], losses: list[int], w: list[int], threshold: int) -> tuple[Fraction, Fraction]:
    """The weight that is accepted, and that of the errors among it."""
    rows = [(loss, weight) for value, loss, weight in zip(c, losses, w, strict=True) if value >= threshold]
    return Fraction(sum(weight for _, weight in rows)), Fraction(sum(loss * weight for loss, weight in rows))


def slow_aurc(c: list[int], losses: list[int], w: list[int]) -> Fraction:
    """Mean over the rows of the risk where each is the least confident that is accepted."""
    total = Fraction(0)
    for value, weight in zip(c, w, strict=True):
        if weight:
            mass, lost = accepted(c, losses, w, value)
            total += weight * lost / mass
    return total / sum(w)


def slow_augrc(c: list[int], losses: list[int], w: list[int]) -> Fraction:
    """P(an error of a random row, which is accepted before a second random row), a tie counting half."""
    total = Fraction(0)
    for first, loss, weight in zip(c, losses, w, strict=True):
        for second, other in zip(c, w, strict=True):
            total += loss * weight * other * (Fraction(1) if first > second else Fraction(first == second, 2))
    return total / sum(w) ** 2


def test_loops() -> None:
    generator = np.random.default_rng(0)
    for levels in (2, 5, 1000):
        for _ in range(40):
            n = int(generator.integers(1, 15))
            c, losses = generator.integers(0, levels, n).tolist(), generator.integers(0, 2, n).tolist()
            w = generator.integers(0, 4, n).tolist()
            for weights in ([1] * n, w) if any(w) else ([1] * n,):
                given = None if weights == [1] * n else weights
                assert aurc(c, losses, given) == pytest.approx(float(slow_aurc(c, losses, weights)), abs=1e-14)
                assert augrc(c, losses, given) == pytest.approx(float(slow_augrc(c, losses, weights)), abs=1e-14)
                coverage, risk, thresholds = risk_coverage(c, losses, given)
                counted = sorted({value for value, weight in zip(c, weights, strict=True) if weight}, reverse=True)
                assert thresholds.tolist() == counted
                for k, threshold in enumerate(counted):
                    mass, lost = accepted(c, losses, weights, threshold)
                    assert coverage[k] == pytest.approx(float(mass / sum(weights)), abs=1e-14)
                    assert risk[k] == pytest.approx(float(lost / mass), abs=1e-14)
                assert coverage[-1] == 1


def test_augrc_closed_form() -> None:
    generator = np.random.default_rng(3)
    c, w = generator.integers(0, 30, 500), generator.random(500)
    losses = (generator.random(500) < 0.4 - c / 100).astype(int)
    for weights in (None, w):
        e = np.average(losses, weights=weights)
        expected = e**2 / 2 + e * (1 - e) * (1 - roc_auc_score(1 - losses, c, sample_weight=weights))
        assert augrc(c, losses, weights) == pytest.approx(expected, abs=1e-14)


def test_invariances() -> None:
    generator = np.random.default_rng(5)
    c, losses, w = generator.normal(size=300).round(1), generator.integers(0, 2, 300), generator.integers(0, 4, 300)
    for area in (aurc, augrc):
        found = area(c, losses, w)
        assert area(np.repeat(c, w), np.repeat(losses, w)) == pytest.approx(found, abs=1e-14)
        assert area(np.exp(3 * c), losses, w) == pytest.approx(found, abs=1e-14)
        for factor in (1e-300, 5e307):
            assert area(c, losses, w * factor) == pytest.approx(found, abs=1e-14)
        shuffle = generator.permutation(300)
        assert area(c[shuffle], losses[shuffle], w[shuffle]) == pytest.approx(found, abs=1e-14)
        assert area(torch.tensor(c), torch.tensor(losses), torch.tensor(w)) == found
        assert area(c, losses == 1, w) == found
        # A row of next to no weight, the most confident one, is no 0/0.
        assert area([9, 2, 1], [1, 0, 1], [1e-320, 1, 1]) == pytest.approx(area([2, 1], [0, 1]))
    before = c.copy(), losses.copy(), w.copy()
    risk_coverage(c, losses, w)
    assert all(np.array_equal(a, b) for a, b in zip((c, losses, w), before, strict=True))


@pytest.mark.parametrize("function", [risk_coverage, aurc, augrc])
def test_refused(function: Any) -> None:
    for arguments, facts in (
        (([0.1, math.nan], [0, 1]), ["confidence", "nan", "position 1"]),
        (([0.1, math.inf], [0, 1]), ["confidence", "inf", "position 1"]),
        (([0.1, 0.2], [0.5, 1]), ["losses", 0.5, "position 0"]),
        (([0.1, 0.2], [0, 1, 1]), ["confidence 2", "losses 3"]),
        (([], []), ["confidence", "empty"]),
        (([0.1, 0.2], [0, 1], [-1, 1]), ["sample_weight", -1]),
        (([0.1, 0.2], [0, 1], [0, 0]), ["sample_weight", 0]),
    ):
        refused(DataError, lambda arguments=arguments: function(*arguments), *facts)


def test_examples() -> None:
    ran = doctest.testmod(selective)
    assert ran.attempted >= 4 and ran.failed == 0
