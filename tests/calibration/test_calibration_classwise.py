"""Risk control with a threshold for each answer: two single controls, and one joint walk of both rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from facts import tells
from refusals import refused
from risk_cases import answers, within_delta
from scipy.stats import binom

from natix_hf.calibration.classwise import fit_classwise_risk_control
from natix_hf.calibration.grid import make_grid
from natix_hf.calibration.risk_control import RiskControl, fit_risk_control
from natix_hf.errors import DataError, UsageError


def counted(confidence: Any, decisions: Any, labels: Any, positive: RiskControl, negative: RiskControl) -> Any:
    """Of each label, the accepted rows and the wrong ones among them."""
    accepted = np.where(decisions == 1, confidence > positive.threshold, confidence > negative.threshold)
    of = [accepted & (labels == label) for label in (0, 1)]
    return [(rows.sum(), (rows & (decisions != labels)).sum()) for rows in of]


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


def test_a_rate_promises_nothing_where_the_other_answer_has_no_threshold() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500)
    decisions = np.where(generator.random(1000) < 0.02, 1 - labels, labels)
    confidence = np.where(decisions == 1, generator.random(1000) + 1, generator.random(1000) * 0.01)
    found = fit_classwise_risk_control(confidence, decisions, labels, 0.05, 0.1, "rates", min_coverage=0.97)
    parts = found.positive, found.negative
    assert not found.feasible and not any(part.feasible or part.threshold is not None for part in parts)
