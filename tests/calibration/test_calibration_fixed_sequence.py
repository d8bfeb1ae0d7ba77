"""Where the walk over the thresholds begins and how far it gets, against a slow reference in rational numbers."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from risk_cases import passes, two_gaussians
from scipy.stats import binom

from natix_hf.calibration import fixed_sequence
from natix_hf.calibration.binomial import (
    allowed_errors,
    most_errors_and_size,
    smallest_accepted,
)
from natix_hf.calibration.grid import make_grid
from natix_hf.calibration.risk_control import fit_risk_control


def reference(
    confidence: list[float],
    losses: list[int],
    eligible: list[int],
    grid: list[float] | None,
    alpha: float,
    delta: float,
    select: tuple[list[float], list[int]] | None = None,
) -> tuple[float, int, int, int] | None:
    """Threshold, rows accepted, those that count, errors; by loops."""
    need = next(m for m in range(1, 10**4) if passes(0, m, alpha, delta))
    if grid is None:
        grid = between(confidence if select is None else select[0])
    if select is not None and len(select[0]) < need:
        select = None  # too few to say where to begin
    walks = 1 if select is not None else min(max(sum(eligible) // (3 * need), 1), 4)
    begin = [size_to_begin(select, grid, sum(eligible), alpha, delta)] if select else [
        (math.inf, size_that_passes(sum(eligible) * j // walks, alpha, delta / walks)) for j in range(walks)
    ]  # fmt: skip
    found = None
    loosest = sum(ok for c, ok in zip(confidence, eligible, strict=True) if c > min(grid))
    for strictest, size in begin:
        enough = next(m for m in range(1, 10**4) if passes(0, m, alpha, delta / walks))
        if loosest < size and loosest >= enough:  # fewer rows than expected: only the loosest threshold is left
            strictest, size = min(grid), enough
        for threshold in sorted(set(grid), reverse=True):
            kept = [i for i, c in enumerate(confidence) if c > threshold]
            m = sum(eligible[i] for i in kept)
            e = sum(losses[i] and eligible[i] for i in kept)
            if m < size or threshold > strictest:
                continue
            if not passes(e, m, alpha, delta / walks):
                break
            if found is None or threshold < found[0]:
                found = (threshold, len(kept), m, e)
    return found


def between(confidence: list[float]) -> list[float]:
    values = sorted(set(confidence))
    return [(a + b) / 2 for a, b in pairwise(values)] + [values[0] - max(1, abs(values[0]))]


@cache
def size_that_passes(rows: int, alpha: float, delta: float) -> int:
    """Fewest rows that pass with as many errors as `rows` may have, or without one."""
    most = max((e for e in range(rows + 1) if passes(e, rows, alpha, delta)), default=0)
    return next(m for m in range(1, 10**4) if passes(most, m, alpha, delta))


def size_to_begin(
    select: tuple[list[float], list[int]], grid: list[float], rows: int, alpha: float, delta: float
) -> tuple[float, int]:
    """The threshold from which on the walk may begin, and the rows that it must accept, as other rows tell."""
    c, wrong = select
    strict_to_loose = sorted(set(grid), reverse=True)
    bins = [
        [wrong[i] for i, value in enumerate(c) if value > low and (j == 0 or value <= strict_to_loose[j - 1])]
        for j, low in enumerate(strict_to_loose)
    ]
    pools: list[list[int]] = []  # of stretches of rows, merged while a later one has a smaller share of errors
    for rows_between in filter(None, bins):
        pools.append(list(rows_between))
        while len(pools) > 1 and sum(pools[-2]) * len(pools[-1]) > sum(pools[-1]) * len(pools[-2]):
            last = pools.pop()
            pools[-1] += last
    pooled = [sum(pool) / len(pool) for pool in pools for _ in pool]  # of each row, from strict to loose

    def expected(j: int, errors: float) -> int:
        seen = sum(map(len, bins[: j + 1]))
        mean = rows * (seen / len(c))
        spread = math.sqrt(max(mean * (1 - mean / rows), 0) * (1 + rows / len(c))) if rows else 0.0
        return min(max(round(mean + errors * spread), 0), rows)

    best, most_likely = 0, -1.0
    for j in range(len(strict_to_loose)):
        seen = sum(map(len, bins[: j + 1]))
        chance = 0.0
        for errors, weight in ((-1, 1.0), (0, 0.03), (1, 0.03)):
            m = expected(j, errors)
            if passes(0, m, alpha, delta):
                size = size_that_passes(m, alpha, delta)
                allowed = max(e for e in range(size + 1) if passes(e, size, alpha, delta))
                chance += weight * binom.cdf(allowed, size, (sum(pooled[:seen]) + 0.5) / (seen + 1))
        if chance > most_likely + 1e-12:
            best, most_likely = j, chance
    if expected(min(best + 1, len(bins) - 1), 0) - expected(best, 0) > expected(best, 0) - expected(best, -1):
        return strict_to_loose[best], size_that_passes(0, alpha, delta)
    return math.inf, size_that_passes(expected(best, -1), alpha, delta)


@pytest.mark.parametrize("others", [True, False])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_against_slow_reference(own: bool, masked: bool, others: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if masked:  # as with millions of rows, for which no table of sizes is kept
        monkeypatch.setattr(fixed_sequence, "sizes_that_pass", lambda *_: None)
    monkeypatch.setattr(fixed_sequence, "BLOCK", 2)
    generator = np.random.default_rng([own, masked])
    feasible = 0
    for _ in range(60):
        n = int(generator.integers(1, 60))
        confidence = generator.integers(-3, generator.choice([2, 10, 100]), n).astype(float)
        losses = (generator.random(n) < generator.choice([0, 0.1, 0.3, 1])).astype(int)
        eligible = (generator.random(n) < 0.7).astype(int) if masked else np.ones(n, dtype=int)
        grid = None if own else (generator.integers(-4, 20, int(generator.integers(1, 30))) / 2).tolist()
        alpha, delta = float(generator.choice([0.1, 0.25, 0.4])), float(generator.choice([0.05, 0.1, 0.3]))
        select = None
        if others:
            m = int(generator.integers(1, 60))
            select = (generator.integers(-3, 12, m) / 2, (generator.random(m) < 0.15).astype(int))
        found = fit_risk_control(confidence, losses, alpha, delta, eligible if masked else None, grid, select=select)
        lists = None if select is None else (select[0].tolist(), select[1].tolist())
        expected = reference(confidence.tolist(), losses.tolist(), eligible.tolist(), grid, alpha, delta, lists)
        feasible += found.feasible
        assert found.feasible == (expected is not None) == (found.threshold is not None)
        if expected is None:
            assert found.coverage is found.coverage_interval is found.risk_bound is None
        else:
            threshold, rows, accepted, errors = expected
            assert (found.threshold, found.accepted, found.errors) == (threshold, accepted, errors)
            assert found.coverage == rows / n and found.risk_bound is not None and found.risk_bound <= alpha + 1e-12
        assert (found.rows, found.eligible) == (n, eligible.sum())
    assert 5 < feasible < 50


def test_a_few_wrong_confident_answers_do_not_end_the_walk() -> None:
    """From the strict end it dies in a quarter to a half of all cases; a chosen start keeps the power, and delta."""
    generator = np.random.default_rng(5)
    found: dict[str, list[float]] = {"chosen": [], "shared": [], "strict": []}
    for _ in range(60):
        rows, others = two_gaussians(2000, 0.01, generator), two_gaussians(2000, 0.01, generator)
        single = 45, 0.05, 0.1  # the first test of a walk from the strict end
        top = np.argsort(-rows[0])[: single[0]]
        found["strict"].append(float(not rows[1][top].any()))
        found["chosen"].append(fit_risk_control(*rows, *single[1:], select=others).coverage or 0)
        found["shared"].append(fit_risk_control(*rows, *single[1:]).coverage or 0)
    certified = {name: np.mean(np.array(each) > 0) for name, each in found.items()}
    assert certified["strict"] < 0.75 and certified["shared"] > 0.95 and certified["chosen"] > 0.95
    assert np.mean(found["chosen"]) > np.mean(found["shared"]) + 0.01


@pytest.mark.parametrize("n", [100, 162, 2000])
def test_rows_that_share_the_highest_confidence_are_not_passed_over(n: int) -> None:
    """Half of the rows are sure and right; waiting for one row more would let in all the others, wrong in 30%."""
    generator = np.random.default_rng(2)
    found = []
    for _ in range(40):
        (c, wrong), others = ((x := (generator.random(n) < 0.5), ~x & (generator.random(n) < 0.3)) for _ in range(2))
        found.append(fit_risk_control(c, wrong, 0.05, 0.1, select=others).feasible)
    assert np.mean(found) >= (0.75 if n == 100 else 1)  # of 100 rows 45 are sure in five draws of six


def test_weights_of_select_are_those_of_repeated_rows() -> None:
    generator = np.random.default_rng(0)
    c, wrong = two_gaussians(300, 0.02, generator)
    rows = two_gaussians(500, 0.02, generator)
    times = generator.integers(0, 4, 300)
    # Four equal rows say no more than one: only the shares matter, and the number of rows that would say as much.
    kish = times.sum() ** 2 / (times**2).sum()
    once = fit_risk_control(*rows, 0.1, 0.1, grid=make_grid(c), select=(c, wrong, times))
    assert once == fit_risk_control(*rows, 0.1, 0.1, grid=make_grid(c), select=(c, wrong, times / 7.3))
    unweighted = fit_risk_control(*rows, 0.1, 0.1, select=(c, wrong))
    assert unweighted == fit_risk_control(*rows, 0.1, 0.1, select=(c, wrong, np.full(300, 5.0)))
    assert 150 < kish < 250 and once.feasible


def test_several_denominators_pass_together_or_not_at_all() -> None:
    """One walk, in which a threshold passes if each denominator passes; a count by hand of where it ends."""
    generator = np.random.default_rng(1)
    for seed in range(30):
        c, wrong = two_gaussians(400, 0.02, generator)
        masks = generator.random((2, 400)) < (0.9, 0.5)[seed % 2]
        others = two_gaussians(400, 0.02, generator)
        both = fit_risk_control(c, wrong, 0.1, 0.1, masks, select=(*others, np.ones((2, 400))))
        assert fit_risk_control(c, wrong, 0.1, 0.1, masks[[1, 0]], select=(*others, np.ones((2, 400)))) == both
        twice = fit_risk_control(c, wrong, 0.1, 0.1, masks[[0, 0]], select=(*others, np.ones((2, 400))))
        assert twice == fit_risk_control(c, wrong, 0.1, 0.1, masks[0], select=others)
        if both.threshold is None:
            continue
        counts = [(int(m[c > both.threshold].sum()), int(wrong[m & (c > both.threshold)].sum())) for m in masks]
        assert all(passes(e, m, 0.1, 0.1) for m, e in counts) and (both.accepted, both.errors) in counts
        looser = [t for t in make_grid(others[0]) if t < both.threshold]
        if looser:  # the next one fails in one of them
            t = max(looser)
            assert not all(passes(int(wrong[m & (c > t)].sum()), int(m[c > t].sum()), 0.1, 0.1) for m in masks)


@pytest.mark.parametrize("delta", [0.05, 0.1, 0.6])
def test_the_table_of_sizes_is_the_bisection(delta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = np.random.default_rng(0).integers(0, 3000, 200)
    for alpha in (0.01, 0.1, 0.5):
        most, size = most_errors_and_size(accepted, alpha, delta)
        assert most.tolist() == allowed_errors(accepted, alpha, delta).tolist()
        assert size.tolist() == smallest_accepted(np.maximum(most, 0), alpha, delta).tolist()


def test_too_few_rows_of_select_or_other_rows_than_expected() -> None:
    """What other rows say cannot be held against rows that would pass."""
    c, wrong = np.repeat([2.0, -9.0], [60, 200]), np.repeat([0, 1], [60, 200])
    found = fit_risk_control(c, wrong, 0.05, 0.1, select=(np.full(300, 2.0), np.zeros(300)))
    assert (found.threshold, found.accepted, found.errors) == (0.0, 60, 0)  # the one threshold that they give
    rows = two_gaussians(1000, 0.0, np.random.default_rng(0))
    for few in (1, 5, 44):
        others = two_gaussians(few, 0.0, np.random.default_rng(few))
        by_few = fit_risk_control(*rows, 0.05, 0.1, select=others)
        assert by_few == fit_risk_control(*rows, 0.05, 0.1, grid=make_grid(others[0]))
    uniform = np.random.default_rng(0).random(1000)
    wrong = np.random.default_rng(1).random(1000) < np.where(uniform > 0.3, 0.01, 0.5)
    elsewhere = fit_risk_control(uniform, wrong, 0.05, 0.1, select=(uniform - 5, wrong))
    assert not elsewhere.feasible and "no number" not in elsewhere.reason  # another scale: their cuts accept all
    assert fit_risk_control(uniform, wrong, 0.05, 0.1, select=(uniform, wrong)).feasible


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_weights_of_any_size(scale: float) -> None:
    c, wrong = two_gaussians(300, 0.02, np.random.default_rng(0))
    rows = two_gaussians(500, 0.02, np.random.default_rng(1))
    found = fit_risk_control(*rows, 0.1, 0.1, select=(c, wrong, np.full(300, scale)))
    assert found == fit_risk_control(*rows, 0.1, 0.1, select=(c, wrong))
