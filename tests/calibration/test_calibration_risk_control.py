"""Risk control in simulation, on what cannot be certified, and on input that cannot work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from facts import tells
from refusals import refused
from risk_cases import answers, within_delta

from natix_hf.calibration.binomial import (
    needed_at_rate,
)
from natix_hf.calibration.classwise import fit_classwise_risk_control
from natix_hf.calibration.grid import make_grid
from natix_hf.calibration.risk_control import fit_risk_control
from natix_hf.calibration.risk_rows import losses_for, one_row_per_group, subsample_to_prior
from natix_hf.errors import DataError, UsageError


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
