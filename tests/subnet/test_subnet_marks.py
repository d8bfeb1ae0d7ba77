"""The marks of an exam against slow sums: either half, both halves, levels and slices with one label or few rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from refusals import refused
from sklearn.metrics import matthews_corrcoef

from natix_hf.errors import DataError
from natix_hf.metrics import Interval, select_threshold
from natix_hf.provenance.stored import from_json, to_json
from natix_hf.subnet.expectation import mean_reward, reward_of_counts
from natix_hf.subnet.marks import ExamAnswers, ExamMarks, best_threshold, mark_exam, mark_slice


def answers(positives: int, negatives: int, seed: int = 0, gap: float = 1.0, views: int = 4) -> ExamAnswers:
    """Each picture is its own group."""
    rng = np.random.default_rng(seed)
    rows = np.array([1] * positives + [0] * negatives)
    labels = np.repeat(rows, views)
    logits = gap * labels + rng.normal(size=len(labels)).round(1) - gap / 2
    levels = np.tile(np.arange(views) % 4, len(rows))
    groups = np.repeat([f"{seed}/{i}" for i in range(len(rows))], views)
    return ExamAnswers(logits, labels, levels, groups, views)


def shares(of: ExamAnswers, cut: float, at: Any = slice(None)) -> tuple[float, float]:
    called, labels = of.logits[at] > cut, of.labels[at]
    return float(called[labels == 1].mean()), float((~called[labels == 0]).mean())


def test_one_half() -> None:
    real = answers(30, 50)
    found = mark_exam(real, 0.1, n_resamples=100)
    assert (found.rows, found.positives, found.views, found.others) == (80, 30, 320, None)
    assert list(found.halves) == ["real"] and found.paid_half == "real" and found.halves["real"] == found
    for name, rates in found.levels.items():
        at = slice(None) if name == "all" else real.levels == int(name)
        assert (rates.tpr, rates.tnr) == pytest.approx(shares(real, 0.1, at))
        labels = real.labels[at]
        weights = np.where(labels == 1, 1 / labels.sum(), 1 / (labels == 0).sum())
        assert rates.mcc == pytest.approx(matthews_corrcoef(labels, real.logits[at] > 0.1, sample_weight=weights))
        assert (rates.answers, rates.positives) == (len(labels), labels.sum())
        for figure in ("tpr", "tnr", "mcc"):
            low, high = rates.bounds(figure)
            assert low is not None and high is not None and low < getattr(rates, figure) < high
            assert rates.told(figure) == f"{getattr(rates, figure):.3f} [{low:.3f}, {high:.3f}]"
    assert found.rewards["fitted"].expected == float(mean_reward(*shares(real, 0.1)))


def test_both_halves_weigh_one_half_each() -> None:
    """However many pictures each has, and however its labels are mixed."""
    real, synthetic = answers(30, 50), answers(200, 20, seed=1, gap=0.3)
    found = mark_exam(real, 0.1, synthetic, n_resamples=100)
    halves = found.halves
    assert list(halves) == ["real", "synthetic", "both"] and found.paid_half == "both"
    assert replace(found, others=None) == mark_exam(real, 0.1, n_resamples=100)
    assert halves["synthetic"] == mark_exam(synthetic, 0.1, n_resamples=100)
    both = halves["both"]
    assert (both.rows, both.positives, both.views) == (300, 230, 1200)
    for level, rates in both.levels.items():
        of = [half.levels[level] for half in (found, halves["synthetic"])]
        assert rates.tpr == pytest.approx((of[0].tpr + of[1].tpr) / 2)
        assert rates.tnr == pytest.approx((of[0].tnr + of[1].tnr) / 2)
        t, u = rates.tpr, rates.tnr
        assert rates.mcc == pytest.approx((t + u - 1) / np.sqrt((t + 1 - u) * (u + 1 - t)))
        assert all(rates.bounds(name)[0] < getattr(rates, name) < rates.bounds(name)[1] for name in ("tpr", "mcc"))
    for name, paid in both.rewards.items():
        if name != "best":
            t, u = (np.mean(pair) for pair in zip(*(shares(half, {"fitted": 0.1, "half": 0.0}[name])
                                                    for half in (real, synthetic)), strict=True))  # fmt: skip
            assert paid.expected == pytest.approx(float(mean_reward(t, u)), abs=1e-12)
        assert paid.expected <= both.rewards["best"].expected + 1e-12
    assert from_json(ExamMarks, to_json(found)) == found


def test_a_half_of_one_label_says_nothing_about_the_other() -> None:
    real, synthetic = answers(30, 50), answers(40, 0, seed=1)
    found = mark_exam(real, 0.1, synthetic, n_resamples=100)
    for half in ("synthetic", "both"):
        marks = found.halves[half]
        for rates in marks.levels.values():
            assert rates.tpr is not None and rates.tnr is None and rates.mcc is None
            assert rates.told("tnr") == rates.told("mcc") == "undefined"
        for paid in marks.rewards.values():
            assert (paid.tnr, paid.expected, paid.range) == (None, None, (None, None))
    assert found.halves["both"].levels["all"].tpr == pytest.approx(
        np.mean([shares(real, 0.1)[0], (synthetic.logits > 0.1).mean()])
    )
    assert found.rewards["best"].expected is not None
    alone = mark_exam(synthetic, 0.1, n_resamples=100)
    assert alone.levels["2"].positives == 40 and from_json(ExamMarks, to_json(found)) == found


def test_few_rows_get_exact_bounds_or_a_reason() -> None:
    marks = mark_exam(answers(3, 20, gap=20), 0.0, n_resamples=100)
    rates = marks.levels["0"]
    assert rates.intervals is not None and rates.intervals["tnr"].exact and rates.tnr == 1.0
    low, high = rates.bounds("tpr")
    assert low == pytest.approx(0.025 ** (1 / 3)) and high == 1.0
    assert rates.bounds("mcc") == (None, None) and "3 groups" in rates.intervals["mcc"].reason
    assert rates.told("mcc") == "1.000"
    exact, lacking = marks.notes
    assert "TNR of level 0" in exact and "TPR of all levels" in exact and "MCC of level 3" in lacking


def test_marks_of_before_are_read() -> None:
    stored = to_json(mark_exam(answers(9, 9), 0.0, n_resamples=0))
    for rates in stored["levels"].values():
        del rates["answers"], rates["positives"]
    found = from_json(ExamMarks, stored)
    assert found.levels["0"].answers is None and found.levels["0"].bounds("tpr") == (None, None)
    assert to_json(found) == stored


@pytest.mark.parametrize("seed", range(4))
def test_the_best_threshold(seed: int) -> None:
    """Unweighted as phase 2 finds it; weighted against every gap, one by one."""
    of = answers(40, 25, seed=seed, gap=[1.0, 0.2, -2.0, 5.0][seed])
    chosen = select_threshold(of.logits, of.labels, reward_of_counts)
    assert best_threshold(of.logits, of.labels, np.ones(len(of.labels))) == chosen.threshold
    weights = np.random.default_rng(seed).random(len(of.labels)) + 0.1
    found = best_threshold(of.logits, of.labels, weights)

    def paid(cut: float) -> float:
        called, yes = of.logits > cut, of.labels == 1
        return float(mean_reward(min(1, weights[yes & called].sum() / weights[yes].sum()),
                                 min(1, weights[~yes & ~called].sum() / weights[~yes].sum())))  # fmt: skip

    values = np.unique(of.logits)
    assert paid(found) == pytest.approx(max(paid(cut) for cut in values[:-1]), abs=1e-12)
    assert values[0] <= found < values[-1]


def test_answers_that_are_all_alike() -> None:
    of = replace(answers(5, 5), logits=np.full(40, 0.25))
    assert best_threshold(of.logits, of.labels, np.ones(40)) == 0.25
    marks = mark_exam(of, 0.0, n_resamples=100)
    assert marks.levels["all"].mcc == 0 and marks.rewards["best"].tpr == 0
    refused(DataError, lambda: best_threshold(of.logits, np.ones(40, dtype=int), np.ones(40)), "both labels")


def test_slices() -> None:
    of = answers(30, 50)
    values = ["rain"] * 35 + ["fog"] * 19 + ["sun"] * 26
    found, small = mark_slice(of, 0.1, values, n_resamples=100)
    assert list(found) == ["rain", "sun"] and small == {"fog": 19}
    at = np.repeat(np.array(values) == "rain", 4)
    assert (found["rain"].tpr, found["rain"].tnr) == pytest.approx(shares(of, 0.1, at))
    assert (found["rain"].answers, found["rain"].positives) == (140, 120)
    sun = found["sun"]
    assert (sun.tpr, sun.mcc, sun.positives) == (None, None, 0) and sun.bounds("tnr")[0] is not None
    assert isinstance(sun.intervals["tnr"], Interval)
