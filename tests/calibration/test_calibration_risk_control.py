"""Risk control, against a slow reference in rational numbers, in simulation, and on input that cannot work."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from facts import tells
from refusals import refused
from scipy.stats import binom, binomtest

from natix_hf.calibration import fixed_sequence
from natix_hf.calibration.binomial import (
    allowed_errors,
    most_errors_and_size,
    needed_at_rate,
    smallest_accepted,
)
from natix_hf.calibration.classwise import fit_classwise_risk_control
from natix_hf.calibration.grid import make_grid
from natix_hf.calibration.risk_control import RiskControl, fit_risk_control
from natix_hf.calibration.risk_rows import losses_for, one_row_per_group, subsample_to_prior
from natix_hf.errors import DataError, UsageError


@cache
def passes(errors: int, accepted: int, alpha: float, delta: float) -> bool:
    p = Fraction(alpha)
    terms = (math.comb(accepted, k) * p**k * (1 - p) ** (accepted - k) for k in range(errors + 1))
    return sum(terms, Fraction(0)) <= Fraction(delta)


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


def curve(n: int, seed: int, mu: float = 1.2) -> tuple[Any, Any]:
    signed = np.random.default_rng(seed).normal(size=n) + mu
    return np.abs(signed), (signed <= 0).astype(int)


def test_invariant_to_order_rising_maps_and_kind() -> None:
    confidence, losses = np.round(curve(3000, 0)[0], 2), curve(3000, 0)[1]
    found = fit_risk_control(confidence, losses, 0.05, 0.1)
    order = np.random.default_rng(1).permutation(confidence.size)
    assert fit_risk_control(confidence[order], losses[order], 0.05, 0.1) == found and found.threshold is not None
    doubled = fit_risk_control(2 * confidence, losses, 0.05, 0.1)
    assert doubled.threshold == 2 * found.threshold and doubled.coverage == found.coverage
    assert fit_risk_control(confidence.tolist(), losses.tolist(), 0.05, 0.1) == found
    assert fit_risk_control(torch.tensor(confidence), torch.tensor(losses).bool(), 0.05, 0.1) == found


def test_monotone_in_alpha_delta_and_errors() -> None:
    for seed in range(20):
        confidence, losses = curve(500, seed)
        more = losses.copy()
        more[np.random.default_rng(seed).integers(500, size=5)] = 1
        # One start for all: a looser alpha or delta starts elsewhere, where an early error can end it sooner.
        grid = make_grid(np.sort(confidence)[:-400])
        cases = (losses, 0.05, 0.05), (losses, 0.05, 0.1), (losses, 0.1, 0.1), (more, 0.1, 0.1)
        few, some, many, fewer = (fit_risk_control(confidence, *case, None, grid).coverage or 0.0 for case in cases)
        assert few <= some <= many >= fewer


def test_neighbouring_floats() -> None:
    first, second, third = 1.0, float(np.nextafter(1.0, 2)), float(np.nextafter(np.nextafter(1.0, 2), 2))
    for low, high in ((first, second), (second, third)):  # their midpoint rounds down, and up
        found = fit_risk_control([high] * 50 + [low] * 50, [0] * 50 + [1] * 50, 0.05, 0.1)
        assert found.threshold == low and found.accepted == 50
        assert make_grid([low, high])[1] == low


ROWS = np.arange(200.0)
NOTHING_WRONG: Any = np.zeros(200)
# Confidence, losses, settings; needed, accepted and errors where nothing can be certified, and what the reason tells.
INFEASIBLE: dict[str, tuple[Any, Any, dict[str, Any], tuple[int | None, int, int], list[object]]] = {
    "all wrong": (ROWS, NOTHING_WRONG + 1, {}, (None, 45, 45), [45]),
    "one atom with 6 errors": (np.full(200, 0.5), ROWS < 6, {}, (None, 200, 6), [6, 200]),
    "too few rows": (ROWS[:44], np.zeros(44), {}, (45, 44, 0), [44, 45]),
    "no row counts": (ROWS, NOTHING_WRONG, {"eligible": np.zeros(200)}, (45, 0, 0), [0, 45]),
    "a grid above all": (ROWS, NOTHING_WRONG, {"grid": [500.0]}, (45, 0, 0), [0, 45]),
    "the surest is wrong": (ROWS, ROWS == 199, {}, (132, 45, 1), [1, 45, 132]),
}


@pytest.mark.parametrize("case", INFEASIBLE)
def test_where_nothing_can_be_certified(case: str) -> None:
    confidence, losses, settings, expected, facts = INFEASIBLE[case]
    found = fit_risk_control(confidence, losses, 0.05, 0.1, **settings)
    assert (found.feasible, found.threshold, found.coverage) == (False, None, None)
    needed = needed_at_rate(6, 200, 0.05, 0.1) if case.startswith("one atom") else expected[0]
    assert (found.needed, found.accepted, found.errors) == (needed, *expected[1:])
    assert found.eligible == (0 if "eligible" in settings else confidence.size) and tells(found.reason, *facts)


def test_where_everything_can_be_certified() -> None:
    lowest = np.repeat([-1e308, -1.7e308], 50)
    for confidence, losses in ((ROWS, NOTHING_WRONG), (np.full(200, 0.5), ROWS < 2), (lowest, np.zeros(100))):
        found = fit_risk_control(confidence, losses, 0.05, 0.1)
        assert (found.coverage, found.errors) == (1, losses.sum())
        assert found.threshold is not None and -math.inf < found.threshold < confidence.min()
        assert tells(found.reason, "0.9", "0.05", "groups", "accepted")


@pytest.mark.parametrize(
    ("change", "error", "facts"),
    [
        ({"confidence": [0.1, math.nan, 1]}, DataError, ["nan", "position 1"]),
        ({"confidence": [0.1, 2, math.inf]}, DataError, ["inf", "position 2"]),
        ({"confidence": []}, DataError, ["empty"]),
        ({"losses": [0, 2, 1]}, DataError, [2, "position 1"]),
        ({"losses": [0, 0.5, 1]}, DataError, [0.5]),
        ({"losses": [0, 1]}, DataError, ["confidence 3", "losses 2"]),
        ({"eligible": [1, 1]}, DataError, ["eligible 2"]), ({"eligible": [1, 1, 3]}, DataError, [3]),
        ({"grid": [math.nan]}, DataError, ["nan"]), ({"grid": []}, DataError, ["empty"]),
        ({"alpha": 0.0}, UsageError, [0.0]), ({"alpha": 1}, UsageError, [1]),
        ({"delta": -0.1}, UsageError, [-0.1]), ({"delta": math.nan}, UsageError, ["nan"]),
        ({"coverage_delta": 1}, UsageError, [1]), ({"min_coverage": 1.2}, UsageError, [1.2]),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(change: dict[str, Any], error: type[Exception], facts: list[object]) -> None:
    given = {"confidence": [0.1, 0.2, 0.3], "losses": [0, 0, 1], "alpha": 0.05, "delta": 0.1} | change
    refused(error, lambda: fit_risk_control(**given), *change, *facts)


@pytest.mark.parametrize(
    ("call", "error", "facts"),
    [
        (lambda: make_grid([1.0, 2.0], 1), UsageError, ["most", 2, 1]),
        (lambda: losses_for("mcc", [1], [1]), UsageError, ["loss", "error", "fnr", "fpr", "mcc"]),
        (lambda: losses_for("error", [1], [1, 0, 1, 0]), DataError, ["decisions 1", "labels 4"]),
        (lambda: one_row_per_group([1.0, math.nan], 0), DataError, ["groups", "position 1"]),
        (lambda: one_row_per_group([None, "a"], 0), DataError, ["groups", "position 0"]),
        (lambda: one_row_per_group(["a"], -1), UsageError, ["seed", -1]),
        (lambda: subsample_to_prior([1, 1], 0.5, 0), DataError, ["one class", "(1)"]),
        (lambda: subsample_to_prior([1, 1, 0, 0], 0.99, 0), DataError, ["target_prior", "2 rows"]),
        (lambda: subsample_to_prior([1, 0], 1.0, 0), UsageError, ["target_prior", 1.0]),
        (lambda: fit_classwise_risk_control(*answers(9, 0), 0.1, 0.1, "fnr"), UsageError, ["error", "rates", "fnr"]),
        (lambda: fit_classwise_risk_control([1, 2], [1, 1], [1, 0], 0.1, 0.1), DataError, ["2 decisions", 1]),
        (lambda: fit_classwise_risk_control(*answers(9, 0), 0.05, 1.5), UsageError, ["delta", 1.5]),
    ],
)  # fmt: skip
def test_refused(call: Callable[[], object], error: type[Exception], facts: list[object]) -> None:
    refused(error, call, *facts)


def test_min_coverage_is_a_filter_on_the_lower_bound() -> None:
    confidence, losses = curve(2000, 9)
    free = fit_risk_control(confidence, losses, 0.1, 0.1)
    assert free.coverage is not None and free.coverage_interval is not None
    low, high = free.coverage_interval
    slack = math.sqrt(math.log(40) / 4000)
    assert (low, high) == pytest.approx((free.coverage - slack, min(free.coverage + slack, 1)))
    assert fit_risk_control(confidence, losses, 0.1, 0.1, min_coverage=low) == free
    strict = fit_risk_control(confidence, losses, 0.1, 0.1, min_coverage=(low + free.coverage) / 2)
    assert (strict.feasible, strict.threshold, strict.coverage) == (False, None, None)
    assert tells(strict.reason, "0.95", f"{low:.3f}", "min_coverage")
    assert fit_risk_control(confidence, losses, 0.1, 0.1, coverage_delta=0.5).threshold == free.threshold


def false_certificates(
    draw: Callable[[np.random.Generator], tuple[Any, Any]],
    risk: Callable[[float], float],
    alpha: float,
    grid: Any = None,
    trials: int = 400,
) -> tuple[int, int]:
    """At delta .1: false certificates, and certificates."""
    generator = np.random.default_rng(11)
    thresholds = [fit_risk_control(*draw(generator), alpha, 0.1, grid=grid).threshold for _ in range(trials)]
    found = [t for t in thresholds if t is not None]
    return sum(risk(t) > alpha for t in found), len(found)


def within_delta(false: int, trials: int = 400) -> bool:
    return bool(binomtest(false, trials, 0.1, alternative="greater").pvalue > 1e-3)


def test_promise_holds_where_scores_say_nothing() -> None:
    draw = lambda g: (g.random(300), g.random(300) < 0.051)  # noqa: E731
    false, certified = false_certificates(draw, lambda _: 0.051, 0.05)
    assert false == certified and within_delta(false) and false > 10


def test_promise_holds_where_scores_inform() -> None:
    def draw(g: np.random.Generator) -> tuple[Any, Any]:
        signed = g.normal(size=1000) + 1.2
        return np.abs(signed), signed <= 0

    def risk(t: float) -> float:
        wrong, right = (math.erfc((max(t, 0) + shift) / math.sqrt(2)) for shift in (1.2, -1.2))
        return wrong / (wrong + right)

    for thresholds in (None, make_grid(draw(np.random.default_rng(0))[0])):
        false, certified = false_certificates(draw, risk, 0.05, thresholds)
        assert within_delta(false) and certified >= 0.9 * 400


def test_make_grid() -> None:
    assert make_grid([0.5, 0.5, 0.9, 0.7]).tolist() == pytest.approx([-0.5, 0.6, 0.8])
    assert make_grid([3.0]).tolist() == [0.0]
    many = np.random.default_rng(0).random(5000)
    grid = make_grid(many)
    assert grid.size == 1000 and (np.diff(grid) > 0).all()
    assert set(grid.tolist()) <= set(make_grid(many, 5000).tolist())
    assert (many > grid[0]).all() and (many > grid[-1]).sum() == 1
    gaps = -np.diff([(many > t).sum() for t in grid])
    assert gaps.max() - gaps.min() <= 1


def test_losses_for() -> None:
    decisions, labels = [1, 1, 0, 0], [1, 0, 1, 0]
    expected = {
        "error": ([0, 1, 1, 0], [1, 1, 1, 1]),
        "fnr": ([0, 0, 1, 0], [1, 0, 1, 0]),
        "fpr": ([0, 1, 0, 0], [0, 1, 0, 1]),
    }
    for loss, (losses, eligible) in expected.items():
        found = losses_for(loss, decisions, labels)  # type: ignore[arg-type]
        assert found[0].tolist() == losses and found[1].astype(int).tolist() == eligible
    # Only positives: no false positive can be counted, and the answer says that nothing can be certified.
    losses_, eligible_ = losses_for("fpr", np.ones(100), np.ones(100))
    assert not fit_risk_control(np.arange(100), losses_, 0.05, 0.1, eligible_).feasible


def test_one_row_per_group() -> None:
    groups = np.array(["b", "a", "b", "c", "b", "a"])
    kept = one_row_per_group(groups, 0)
    assert sorted(groups[kept]) == ["a", "b", "c"] and (np.diff(kept) > 0).all()
    assert kept.tolist() == one_row_per_group(groups, 0).tolist()
    drawn = np.bincount(np.concatenate([one_row_per_group(groups, seed) for seed in range(3000)]), minlength=6)
    assert drawn / 3000 == pytest.approx([1 / 3, 1 / 2, 1 / 3, 1, 1 / 3, 1 / 2], abs=0.04)
    assert one_row_per_group(np.arange(5), 3).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("prior", "kept"), [(0.5, (20, 20)), (0.8, (80, 20)), (0.9, (80, 9)), (0.2, (5, 20))])
def test_subsample_to_prior(prior: float, kept: tuple[int, int]) -> None:
    labels = np.repeat([1, 0], [80, 20])
    rows = subsample_to_prior(labels, prior, 0)
    assert (labels[rows].sum(), (labels[rows] == 0).sum()) == kept
    assert np.unique(rows).size == rows.size and (np.diff(rows) > 0).all()
    assert rows.tolist() == subsample_to_prior(labels, prior, 0).tolist()
    assert kept == (80, 20) or rows.tolist() != subsample_to_prior(labels, prior, 1).tolist()


def answers(n: int, seed: int) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.5).astype(int)
    x = generator.normal(size=n) + np.where(labels == 1, 1.2, -1.2) + 0.4
    return np.abs(x), (x > 0).astype(int), labels


def test_classwise_is_two_single_controls_at_half_delta() -> None:
    confidence, decisions, labels = answers(3000, 0)
    grids = tuple(make_grid(answers(2000, 1)[0]) for _ in range(2))
    for grid in (None, grids):
        found = fit_classwise_risk_control(confidence, decisions, labels, 0.05, 0.1, grid=grid)
        assert found.feasible and found.delta == 0.1
        for answer, single in ((1, found.positive), (0, found.negative)):
            rows = decisions == answer
            wrong = (labels != decisions)[rows]
            own = None if grid is None else grid[1 - answer]
            assert single == fit_risk_control(confidence[rows], wrong, 0.05, 0.05, grid=own, coverage_delta=0.025)
    # The cut is off to one side: positive answers are wrong more often and need more confidence.
    positive, negative = found.positive, found.negative
    assert positive.threshold is not None and negative.threshold is not None
    assert positive.threshold > negative.threshold


def test_classwise_one_answer_cannot_hide() -> None:
    confidence, decisions, labels = answers(3000, 0)
    labels = np.where(decisions == 0, 1, labels)  # every negative answer is wrong
    found = fit_classwise_risk_control(confidence, decisions, labels, 0.05, 0.1)
    assert (found.feasible, found.positive.feasible, found.negative.feasible) == (False, True, False)
    filtered = fit_classwise_risk_control(*answers(3000, 0), 0.05, 0.1, min_coverage=0.9)
    assert not filtered.positive.feasible and tells(filtered.positive.reason, "min_coverage", 0.9)


def counted(confidence: Any, decisions: Any, labels: Any, positive: RiskControl, negative: RiskControl) -> Any:
    """Of each label, the accepted rows and the wrong ones among them."""
    accepted = np.where(decisions == 1, confidence > positive.threshold, confidence > negative.threshold)
    of = [accepted & (labels == label) for label in (0, 1)]
    return [(rows.sum(), (rows & (decisions != labels)).sum()) for rows in of]


@pytest.mark.parametrize("own", [True, False])
def test_classwise_rates(own: bool) -> None:
    rows = answers(4000, 2)
    confidence, decisions, _ = rows
    other = answers(1500, 3)
    grid = None if own else tuple(make_grid(other[0][other[1] == answer], 400) for answer in (1, 0))
    found = fit_classwise_risk_control(*rows, 0.05, 0.1, loss="rates", grid=grid)
    assert found.feasible
    counts = counted(*rows, found.positive, found.negative)
    assert counts[0] == (found.positive.accepted, found.positive.errors)  # false positives, of the accepted negatives
    assert counts[1] == (found.negative.accepted, found.negative.errors)
    for answer, single in ((1, found.positive), (0, found.negative)):
        assert single.risk_bound is not None and single.risk_bound <= 0.05 and single.delta == 0.1
        assert single.coverage == (confidence[decisions == answer] > single.threshold).mean()
        assert single.rows == (decisions == answer).sum()
    assert found.positive.coverage == pytest.approx(found.negative.coverage, abs=0.08)
    strict = fit_classwise_risk_control(*rows, 0.05, 0.1, loss="rates", grid=grid, min_coverage=0.99)
    assert not strict.feasible and strict.positive.threshold is None
    assert tells(strict.negative.reason, "min_coverage", 0.99)


def test_classwise_rates_need_both() -> None:
    confidence, decisions, labels = answers(4000, 2)
    found = fit_classwise_risk_control(confidence, decisions, np.where(decisions == 0, 1, labels), 0.05, 0.1, "rates")
    assert not found.feasible and found.positive.threshold is found.negative.threshold is None
    assert tells(found.negative.reason, found.negative.errors, found.negative.accepted)


def test_classwise_rates_need_a_common_step() -> None:
    """False positives end the one sequence of tests before enough positives are accepted for the other to begin."""
    decisions = np.repeat([0, 1], [300, 100])
    labels = np.concatenate([np.zeros(300, dtype=int), np.repeat([1, 0, 1], [25, 10, 65])])
    confidence = np.concatenate([np.arange(300, 0, -1), 3 * np.arange(100, 0, -1)])
    found = fit_classwise_risk_control(confidence, decisions, labels, 0.05, 0.1, loss="rates")
    assert not found.feasible and found.positive.threshold is found.negative.threshold is None
    assert found.positive.reason == found.negative.reason  # each rate alone could be certified


def test_classwise_promise_holds() -> None:
    """Both rates are 1.02 alpha whatever the thresholds: any certificate is a false one."""
    false = {"error": 0, "rates": 0}
    for seed in range(300):
        generator = np.random.default_rng(seed)
        labels = (generator.random(400) < 0.5).astype(int)
        decisions = labels ^ (generator.random(400) < 0.102)
        for loss in false:
            found = fit_classwise_risk_control(generator.random(400), decisions, labels, 0.1, 0.1, loss)  # type: ignore[arg-type]
            false[loss] += found.positive.feasible or found.negative.feasible
    assert within_delta(false["error"], 300) and within_delta(false["rates"], 300) and false["error"] > 5


def two_gaussians(n: int, floor: float, generator: np.random.Generator) -> tuple[Any, Any]:
    """Confidence and losses; a share `floor` of all answers is turned round, also of the most confident ones."""
    signed = generator.normal(size=n) + 1.2
    return np.abs(signed), (signed <= 0) ^ (generator.random(n) < floor)


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


@pytest.mark.parametrize("case", ["all wrong", "one atom with 6 errors", "too few rows", "the surest is wrong"])
def test_only_where_no_number_would_do_is_that_said(case: str) -> None:
    confidence, losses, settings, _, _ = INFEASIBLE[case]
    hopeless = case == "all wrong"
    assert ("no number" in fit_risk_control(confidence, losses, 0.05, 0.1, **settings).reason) == hopeless


def test_select_is_checked() -> None:
    rows = [0.1, 0.2, 0.3], [0, 0, 1], 0.05, 0.1
    for select, kind, facts in (
        (([0.1],), UsageError, ["select", 1]),
        (([0.1, math.nan], [0, 1]), DataError, ["select_confidence", "nan"]),
        (([0.1, 0.2], [0]), DataError, ["select_losses 1"]),
        (([0.1, 0.2], [0, 1], [1.0]), DataError, ["select_weights 1"]),
        (([0.1, 0.2], [0, 1], [0, 0]), DataError, ["select_weights", 0]),
        (([0.1, 0.2], [0, 1], np.ones((2, 2))), UsageError, [2, 1]),
    ):  # fmt: skip
        refused(kind, lambda select=select: fit_risk_control(*rows, select=select), *facts)  # type: ignore[misc]


def rates_by_hand(
    rows: tuple[Any, Any, Any], others: tuple[Any, Any, Any], alpha: float, delta: float
) -> list[tuple[float, float]]:
    """Pairs of thresholds for the answers 1 and 0 that pass at their step, from loose to strict."""
    grids = [make_grid(others[0][others[1] == a])[::-1] for a in (1, 0)]
    steps = max(map(len, grids))
    passed = []
    for step in range(steps):
        pair = tuple(float(g[math.ceil((step + 1) * len(g) / steps) - 1]) for g in grids)
        c, d, y = rows
        kept = np.where(d == 1, c > pair[0], c > pair[1])
        counts = [(int((kept & (y == label)).sum()), int((kept & (y == label) & (d != y)).sum())) for label in (0, 1)]
        if all(binom.cdf(e, m, alpha) <= delta for m, e in counts):
            passed.append(pair)
    return passed[::-1]


def test_classwise_rates_begin_where_both_are_likely_to_pass() -> None:
    feasible = 0
    for seed in range(10):
        rows, others = answers(700, seed), answers(700, seed + 100)
        found = fit_classwise_risk_control(*rows, 0.1, 0.1, "rates", select=others)
        feasible += found.feasible
        if found.feasible:
            pair = found.positive.threshold, found.negative.threshold
            assert pair in rates_by_hand(rows, others, 0.1, 0.1)
            mixed = fit_classwise_risk_control(*rows, 0.1, 0.1, "rates", select=(*others, np.full(700, 2.0)))
            assert mixed == found
    assert feasible >= 8
    refused(UsageError, lambda: fit_classwise_risk_control(*rows, 0.1, 0.1, "rates", eligible=np.ones(700)), "rates")
    one = answers(50, 0)[0], np.ones(50), answers(50, 0)[2]
    refused(DataError, lambda: fit_classwise_risk_control(*rows, 0.1, 0.1, select=one), "select", 0)


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


def test_a_rate_promises_nothing_where_the_other_answer_has_no_threshold() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500)
    decisions = np.where(generator.random(1000) < 0.02, 1 - labels, labels)
    confidence = np.where(decisions == 1, generator.random(1000) + 1, generator.random(1000) * 0.01)
    found = fit_classwise_risk_control(confidence, decisions, labels, 0.05, 0.1, "rates", min_coverage=0.97)
    parts = found.positive, found.negative
    assert not found.feasible and not any(part.feasible or part.threshold is not None for part in parts)


@pytest.mark.parametrize(
    ("call", "error", "facts"),
    [
        (lambda: fit_risk_control([1.0], [0], 1e-20, 0.1), UsageError, ["alpha", "1e-20"]),
        (lambda: fit_risk_control([1.0], [0], "0.05", 0.1), UsageError, ["alpha", "'0.05'"]),
        (lambda: fit_risk_control([1.0], [0], 0.05, None), UsageError, ["delta", None]),
        (lambda: fit_risk_control([1.0], [0], 0.05, 0.1, np.zeros((0, 1))), DataError, ["eligible", "empty"]),
        (lambda: fit_risk_control([1.0], [0], 0.05, 0.1, 1), DataError, ["eligible", 1]),
        (lambda: fit_risk_control([1.0], [0], 0.05, 0.1, select={"a": 1}), UsageError, ["select"]),
        (lambda: fit_risk_control(np.ma.masked_array([1.0, 2], [0, 1]), [0, 0], 0.1, 0.1), DataError, ["position 1"]),
        (lambda: fit_risk_control([1.0, 2], np.array([0, None]), 0.1, 0.1), DataError, ["losses", None]),
        (lambda: fit_classwise_risk_control(*answers(9, 0), 0.1, 0.1, grid=([1],)), UsageError, ["grid", "two"]),
        (lambda: fit_classwise_risk_control(*answers(9, 0), 0.1, 0.1, eligible=[1, 0]), DataError, ["eligible", 9]),
        (
            lambda: fit_classwise_risk_control(*answers(9, 0), 0.1, 0.1, "rates", select=([1, 2], [0, 1], [1, 1])),
            DataError, ["select", "labelled 0"],
        ),
    ],
)  # fmt: skip
def test_strange_arguments_are_one_line(
    call: Callable[[], object], error: type[Exception], facts: list[object]
) -> None:
    refused(error, call, *facts)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_weights_of_any_size(scale: float) -> None:
    c, wrong = two_gaussians(300, 0.02, np.random.default_rng(0))
    rows = two_gaussians(500, 0.02, np.random.default_rng(1))
    found = fit_risk_control(*rows, 0.1, 0.1, select=(c, wrong, np.full(300, scale)))
    assert found == fit_risk_control(*rows, 0.1, 0.1, select=(c, wrong))
