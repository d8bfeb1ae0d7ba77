"""The plan beside rows that are drawn here and certified by `fit_risk_control`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from refusals import refused

from natix_hf.calibration import fit_classwise_risk_control, fit_risk_control, simulation
from natix_hf.calibration.plan import groups_needed, groups_needed_classwise
from natix_hf.calibration.plan import groups_needed_for as needed_for
from natix_hf.errors import DataError, UsageError

DRAWS = 400
NEAR = 4 * math.sqrt(0.25 / DRAWS)  # four standard errors of a share, at most


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "DRAWS", 600)
    monkeypatch.setattr(simulation, "PRECISION", 0.02)
    monkeypatch.setattr(simulation, "GUESS", 200)


def rows_of_model(rng: np.random.Generator, n: int, coverage: float, mean: float, floor: float, rest: float) -> Any:
    score = rng.random(n)
    depth = (1 - score) / coverage
    error = np.where(depth <= 1, floor + 2 * (mean - floor) * depth, rest)
    return score, rng.random(n) < error


@pytest.mark.parametrize(
    ("alpha", "delta", "n", "model"),
    [
        (0.05, 0.1, 430, (0.6, 0.02, 0.02, 0.3)), (0.1, 0.05, 150, (0.8, 0.05, 0.0, 0.5)),
        (0.02, 0.1, 1500, (0.5, 0.006, 0.002, 0.1)), (0.3, 0.4, 9, (0.5, 0.1, 0.1, 0.9)),
    ],
)  # fmt: skip
def test_the_model_against_rows(alpha: float, delta: float, n: int, model: tuple[float, ...]) -> None:
    """1500 rows have more than the 1000 thresholds of a grid."""
    coverage, mean, floor, rest = model
    plan = groups_needed(alpha, delta, mean, coverage, floor, rest, groups=[n])
    [row] = [row for row in plan.table if row.groups == n]
    rng, found = np.random.default_rng(3), []
    for _ in range(DRAWS):
        (c, losses), select = (rows_of_model(rng, n, *model) for _ in range(2))
        found.append(fit_risk_control(c, losses, alpha, delta, select=select).coverage or 0.0)
    assert row.certified == pytest.approx(np.mean(np.array(found) > 0), abs=NEAR)
    assert row.reached == pytest.approx(np.mean(np.array(found) >= 0.95 * coverage), abs=NEAR)
    assert row.coverage == pytest.approx(np.mean(found), abs=NEAR)


@pytest.mark.parametrize("n", [60, 900])
def test_answers_against_rows_drawn_from_them(n: int) -> None:
    """Tied confidences, weights of 0, and rows that do not count. 900 is more than three times the distinct ones."""
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, 150, 500)
    losses = rng.random(500) < np.where(confidence > 60, 0.02, 0.4)
    weights, eligible = rng.integers(0, 3, 500), rng.random(500) < 0.7
    plan = needed_for(confidence, losses, 0.1, 0.1, 0.5, weights, eligible, groups=[n])
    [row] = [row for row in plan.table if row.groups == n]
    found = []
    for _ in range(DRAWS):
        a, b = (rng.choice(500, n, p=weights / weights.sum()) for _ in range(2))
        select = confidence[b], losses[b], eligible[b].astype(float)
        fitted = fit_risk_control(confidence[a], losses[a], 0.1, 0.1, eligible[a], select=select)
        found.append(fitted.coverage or 0.0)
    assert row.certified == pytest.approx(np.mean(np.array(found) > 0), abs=NEAR)
    assert row.reached == pytest.approx(np.mean(np.array(found) >= 0.475), abs=NEAR)


@pytest.mark.parametrize("loss", ["error", "rates"])
def test_both_answers_must_be_certified(loss: Any) -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 200)
    logits = rng.normal(3 * labels - 1.5)
    answers = np.abs(logits), (logits > 0).astype(int), labels
    plan = groups_needed_classwise(*answers, 0.15, 0.2, loss, 0.7, groups=[120])
    [row] = [row for row in plan.table if row.groups == 120]
    found = []
    for _ in range(100):
        (c, d, y), select = ([column[at] for column in answers] for at in rng.integers(0, 400, (2, 120)))
        both = fit_classwise_risk_control(c, d, y, 0.15, 0.2, loss, select=select)
        parts = (both.positive.coverage, both.negative.coverage)
        found.append(min(part or 0.0 for part in parts) if both.feasible else 0.0)
    assert row.certified == pytest.approx(np.mean(np.array(found) > 0), abs=0.15)
    assert row.reached == pytest.approx(np.mean(np.array(found) >= 0.665), abs=0.15)


@pytest.mark.parametrize(
    ("delta", "alpha", "groups"),
    [(0.05, 0.05, 59), (0.05, 0.02, 149), (0.05, 0.01, 299), (0.1, 0.05, 45), (0.1, 0.02, 114), (0.1, 0.01, 230)],
)
def test_without_an_error_it_is_exact(delta: float, alpha: float, groups: int) -> None:
    plan = groups_needed(alpha, delta, groups=[groups - 1])
    assert (plan.groups, plan.probability) == (groups, 1.0)
    shares = {row.groups: row.certified for row in plan.table}
    assert (shares[groups - 1], shares[groups]) == (0.0, 1.0) and list(shares) == sorted(shares)


def test_the_smallest_number_that_succeeds() -> None:
    plan = groups_needed(0.1, 0.1, 0.02, 0.7)
    assert plan.groups is not None and plan.probability is not None and plan.probability >= 0.9
    at = round(0.8 * plan.groups)
    [fewer] = [row for row in groups_needed(0.1, 0.1, 0.02, 0.7, groups=[at]).table if row.groups == at]
    assert fewer.groups < plan.groups and fewer.reached < 0.9
    assert groups_needed(0.1, 0.1, 0.02, 0.7) == plan


def test_harder_plans_need_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "AROUND", ())

    def groups(*arguments: Any) -> int:
        found = groups_needed(*arguments).groups
        assert found is not None
        return found

    easy = groups(0.1, 0.1, 0.02, 0.8)
    assert groups(0.1, 0.1, 0.03, 0.8) > easy and groups(0.1, 0.1, 0.02, 0.4) > 1.5 * easy
    assert groups(0.07, 0.1, 0.02, 0.8) > 1.3 * easy and groups(0.1, 0.02, 0.02, 0.8) > 1.3 * easy


def test_no_number_would_do_only_where_it_is_so() -> None:
    hopeless = needed_for(np.arange(100), np.arange(100) % 2, 0.05, 0.1, 0.5)
    assert hopeless.groups is None and "no number of groups would do" in hopeless.reason and not hopeless.table
    for near in (groups_needed(0.05, 0.1, 0.0499), groups_needed(1e-9, 0.1)):
        assert near.groups is None and "100,000" in near.reason and "no number" not in near.reason
    finer = groups_needed(0.05, 0.1, coverage=0.0003)  # the first of 1000 thresholds that can pass accepts too much
    assert finer.groups is None and "no number of groups would do" in finer.reason
    # The most confident row of 100 is right, so ever more rows like these are certified at a coverage of 0.01.
    assert "no number" not in needed_for(np.arange(100), np.arange(100) < 99, 0.05, 0.1).reason


def test_strange_inputs_are_answered() -> None:
    refused(UsageError, lambda: groups_needed(1e-300, 0.1), "alpha", "1e-300")
    assert groups_needed(0.9999, 0.1, 0.5, 0.5).groups is not None
    assert groups_needed(0.05, 1e-300).groups == math.ceil(math.log(1e-300) / math.log(0.95))
    assert needed_for([1.0], [0], 0.05, 0.1).groups == 45
    assert needed_for([1.0, 1.0], [0, 1], 0.05, 0.1).groups is None
    assert {row.groups: row.certified for row in groups_needed(0.05, 0.1, groups=[1]).table}[1] == 0.0


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"alpha": 0}, [0]), ({"alpha": math.nan}, ["nan"]), ({"delta": 1}, [1]),
        ({"error_rate": 0.05}, ["alpha", 0.05]), ({"error_rate": -0.1}, [-0.1]), ({"floor": 0.06}, ["alpha", 0.06]),
        ({"floor": 0.02, "error_rate": 0.01}, [0.02, 0.01]), ({"coverage": 0}, [0]), ({"coverage": 1.1}, [1.1]),
        ({"rest": 2}, [2]), ({"groups": [0]}, ["1", "100,000"]), ({"groups": [10**9]}, [10**9]),
    ],
)  # fmt: skip
def test_bad_arguments(change: dict[str, Any], facts: list[object]) -> None:
    refused(UsageError, lambda: groups_needed(**({"alpha": 0.05, "delta": 0.1} | change)), *change, *facts)


def test_bad_answers() -> None:
    refused(UsageError, lambda: needed_for([1, 2], [0, 1], 0.05, 0.1, 0), "coverage", 0)
    refused(DataError, lambda: needed_for([1, 2], [0], 0.05, 0.1), "losses", 1)
    refused(DataError, lambda: needed_for([1, 2], [0, 1], 0.05, 0.1, weights=[0, 0]), "weights")
    refused(DataError, lambda: needed_for([1, 2], [0, 1], 0.05, 0.1, eligible=[0, 0]), "eligible")
    refused(DataError, lambda: groups_needed_classwise([1, 2], [1, 1], [0, 1], 0.05, 0.1), "decisions")
    refused(UsageError, lambda: groups_needed(0.9, 0.1, error_rate=0.8, floor=0.1), "floor", 0.1, "error_rate", 0.8)
