"""The counts of right and wrong answers against a count by hand, and what holds between them and the rates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from natix_hf.bundle.policy import Policy
from natix_hf.data.asked import Asked
from natix_hf.errors import DataError
from natix_hf.metrics.confusion import Confusion, count_answers
from natix_hf.metrics.intervals import Interval, exact_interval
from natix_hf.provenance.stored import from_json, to_json
from natix_hf.results.evaluation import Evaluation, evaluate
from natix_hf.results.logits import LogitTable
from natix_hf.subnet.marks import ExamAnswers, confusion_by_level, mark_exam


def _drawn(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int)
    called = np.where(rng.random(n) < 0.2, 1 - labels, labels) == 1
    return called, labels, np.array([f"g{i // 3}" for i in range(n)]), rng.random(n) < 0.6


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_a_count_by_hand(seed: int) -> None:
    called, labels, groups, accepted = _drawn(seed)
    found = count_answers(called, labels, groups, accepted, 200)
    names = {(1, True): "tp", (1, False): "fn", (0, True): "fp", (0, False): "tn"}
    every, left = dict.fromkeys(names.values(), 0), dict.fromkeys(names.values(), 0)
    for yes, label, taken in zip(called, labels, accepted, strict=True):
        every[names[int(label), bool(yes)]] += 1
        left[names[int(label), bool(yes)]] += not taken
    assert vars(found.answers) == every and found.abstained is not None and vars(found.abstained) == left
    assert found.groups == 100 and found.missed == pytest.approx(every["fn"] / (every["fn"] + every["fp"]))
    assert found.interval.low is not None and found.interval.high is not None
    assert found.interval.low <= found.missed <= found.interval.high and not found.interval.exact
    # Named the other way round, misses are false alarms, and the interval turns over.
    other = count_answers(~called, 1 - labels, groups, accepted, 200)
    assert other.missed == pytest.approx(1 - found.missed)
    assert (other.answers.fn, other.answers.fp) == (found.answers.fp, found.answers.fn)
    assert from_json(Confusion, to_json(found)) == found


def test_few_errors_have_exact_bounds_and_none_have_no_share() -> None:
    labels, groups = np.arange(40) % 2, np.array([str(i) for i in range(40)])
    called = labels == 1
    none = count_answers(called, labels, groups, None, 100)
    assert none.missed is None and none.interval == Interval() and none.abstained is None
    called[[1, 3]] = False  # two misses, no false alarm: every resample says 1
    two = count_answers(called, labels, groups, None, 100)
    assert two.missed == 1.0 and two.interval.exact
    assert (two.interval.low, two.interval.high) == exact_interval([1, 1])
    with pytest.raises(DataError):
        count_answers(called, labels[:-1], groups)


def test_levels_agree_with_their_rates_and_add_up() -> None:
    called, labels, groups, accepted = _drawn(7, 480)
    levels = np.arange(480) % 4
    logits = np.where(called, 1.0, -1.0)
    real = ExamAnswers(logits, labels, levels, groups, 4)
    marks = mark_exam(real, 0.0, replace(real, groups=np.char.add("s", groups)), 100)
    of = confusion_by_level(real, 0.0, accepted, 100)
    for name, rates in marks.levels.items():
        cells = of[name].answers
        assert rates.tpr == pytest.approx(cells.tp / (cells.tp + cells.fn))
        assert rates.tnr == pytest.approx(cells.tn / (cells.tn + cells.fp))
        assert (cells.answers, cells.tp + cells.fn) == (rates.answers, rates.positives) and rates.cells == cells
    for part in ("answers", "abstained"):
        for cell in ("tp", "fp", "tn", "fn"):
            counts = [getattr(getattr(of[name], part), cell) for name in ("0", "1", "2", "3", "all")]
            assert sum(counts[:4]) == counts[4]
    assert confusion_by_level(real, 0.0, None, 0)["all"].abstained is None
    others = marks.others
    assert others is not None and others["synthetic"].levels["all"].cells == of["all"].answers
    assert all(rates.cells is None for rates in others["both"].levels.values()), "answers that weigh unlike"
    one_level = replace(real, levels=np.zeros(480, int))
    assert list(confusion_by_level(one_level, 0.0, accepted, 100)) == ["0", "all"]


def test_a_file_from_before_is_read_and_keeps_its_content() -> None:
    called, labels, groups, accepted = _drawn(3)
    table = LogitTable(
        Asked([str(i) for i in range(300)], groups, labels), np.where(called, 1.0, -1.0), "a" * 64
    )
    now = evaluate(table, Policy(0.0, "", ""), accepted, {"x": ["a"] * 300}, None, 100, True)
    assert now.confusion is not None and now.slices["x"]["a"].confusion == now.confusion
    content = to_json(now)
    del content["confusion"], content["slices"]["x"]["a"]["confusion"]
    old = from_json(Evaluation, content)
    assert old.confusion is None and to_json(old) == content
