"""What to label next: every reason is planted and told with its numbers, and nothing is told without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facts import tells

from natix_hf.calibration import groups_needed
from natix_hf.metrics.confusion import Cells, Confusion
from natix_hf.metrics.intervals import Interval
from natix_hf.report.facts import RunFacts, read_run
from natix_hf.report.label_next import Step, find_steps
from natix_hf.results.evaluation import SliceFigures
from natix_hf.runs.graph import PHASES


def _with(facts: RunFacts, **changed: Any) -> RunFacts:
    assert facts.results.evaluation is not None
    plain = {"confusion": None, "slices": {}, "slices_left_out": None}
    evaluation = replace(facts.results.evaluation, **(plain | changed))
    facts.results = replace(facts.results, evaluation=evaluation)
    return facts


def _confusion(fn: int, fp: int, rows: int, groups: int, share: tuple[float, float] | None = None) -> Confusion:
    half = rows // 2
    cells = Cells(half - fn, fp, half - fp, fn)
    interval = Interval(*share) if share else Interval()
    return Confusion(cells, None, groups, fn / (fn + fp) if fn + fp else None, interval)


def _slice(of: Confusion, half: float = 0.01) -> SliceFigures:
    n, bounds = of.answers.answers, {"mcc": Interval(0.5 - half, 0.5 + half)}
    return SliceFigures(n, n / 2, 0.5, 0.5, 0.5, 1.0, bounds, of)


def _titles(steps: list[Step], word: str) -> list[str]:
    return [step.title for step in steps if word in step.title]


def test_the_kind_of_error_is_told_only_beyond_chance(whole_run: Path) -> None:
    facts, whole = read_run(whole_run), (30, 10, 400, 200)
    for share, said in (((0.6, 0.9), "Roadwork"), ((0.4, 0.9), ""), ((0.1, 0.4), "look like"), (None, "")):
        steps = find_steps(_with(facts, confusion=_confusion(*whole, share)))
        found = [step for step in steps if "For training: pictures labelled" in step.title]
        assert len(found) == bool(said)
        if said:
            assert tells(found[0].title, said) and tells(found[0].text, "40 wrong", "30" if share[0] > 0.5 else "10")


def test_a_slice_is_weak_only_beyond_chance_and_by_its_groups(whole_run: Path) -> None:
    facts, whole = read_run(whole_run), _confusion(20, 20, 400, 200)
    weak = _confusion(20, 10, 100, 100)
    assert _titles(find_steps(_with(facts, confusion=whole, slices={"w": {"fog": _slice(weak)}})), "w = fog")
    # The same 30 of 100 answers, but from five groups only, are no proof.
    few = replace(weak, groups=5)
    assert not _titles(find_steps(_with(facts, confusion=whole, slices={"w": {"fog": _slice(few)}})), "w = fog")
    # Nor is a value that is no worse than the rest, nor one of very many values that are compared.
    better = {"a": _slice(_confusion(5, 5, 100, 100))}
    assert not _titles(find_steps(_with(facts, confusion=whole, slices={"w": better})), "w = a")
    just = _confusion(9, 9, 100, 100)
    alone = find_steps(_with(facts, confusion=whole, slices={"w": {"fog": _slice(just)}}))
    among = {f"v{i:03d}": _slice(_confusion(5, 5, 100, 100)) for i in range(400)} | {"fog": _slice(just)}
    assert _titles(alone, "w = fog") and not _titles(find_steps(_with(facts, slices={"w": among})), "w = fog")


def test_widest_intervals_and_small_values_are_told_with_numbers(whole_run: Path) -> None:
    halves = {"a": 0.3, "b": 0.1, "c": 0.2, "d": 0.4, "e": 0.04}
    slices = {"w": {name: _slice(_confusion(2, 2, 100, 50), half) for name, half in halves.items()}}
    left = {"w": {"fog": 18, "hail": 3, "snow": 19, "smoke": 1}}
    steps = find_steps(_with(read_run(whole_run), slices=slices, slices_left_out=left))
    assert _titles(steps, "For test") == [f"For test: w = {name}" for name in ("d", "a", "c", "snow", "fog", "hail")]
    assert tells(steps[[s.title for s in steps].index("For test: w = d")].text, "0.40", "50 groups", "150 more")
    assert tells(steps[[s.title for s in steps].index("For test: w = fog")].text, "18 rows", "2 more")


def test_four_times_the_groups_halve_an_interval() -> None:
    """The rule behind `3 x groups more`, on resampled groups."""
    from natix_hf.metrics import metric_intervals

    def width(groups: int) -> float:
        rng = np.random.default_rng(0)
        labels = np.arange(groups) % 2
        called = np.where(rng.random(groups) < 0.2, 1 - labels, labels).astype(float)
        found = metric_intervals(called, labels, np.arange(groups), n_resamples=400, metrics=["mcc"])["mcc"]
        assert found.high is not None and found.low is not None
        return found.high - found.low

    assert width(400) / width(100) == pytest.approx(0.5, abs=0.12)


def test_what_the_promise_lacks(whole_run: Path) -> None:
    facts = read_run(whole_run)
    report = facts.results.promise
    assert report is not None
    needed = groups_needed(alpha=0.05, delta=0.1).groups
    [(name, part)] = report.parts.items()
    part = replace(part, feasible=False, accepted=15, eligible=30, needed=needed)
    for change, told in (({}, ("60 more groups", "15 of its 30", "45 would do")), ({"needed": None}, ("alpha",))):
        bad = replace(report, feasible=False, parts={name: replace(part, **change)}, loss="error")
        facts.results = replace(facts.results, promise=bad)
        first = find_steps(_with(facts))[0]
        assert tells(f"{first.title} {first.text}", *told)
    fnr = replace(report, feasible=False, parts={name: part}, loss="fnr", classwise=False)
    facts.results = replace(facts.results, promise=fnr)
    assert 'labelled "Roadwork"' in find_steps(_with(facts))[0].title
    facts.results = replace(facts.results, promise=report if report.feasible else None)
    assert not _titles(find_steps(_with(facts)), "promise")


def test_unsure_pictures_and_wrong_labels(whole_run: Path) -> None:
    facts = read_run(whole_run)
    policy = facts.results.policy
    assert policy is not None
    for feasible, word in ((True, "--only abstain"), (False, "--out answers.csv")):
        promise = replace(policy.promise, feasible=feasible)
        facts.results = replace(facts.results, policy=replace(policy, promise=promise))
        of = replace(_confusion(3, 3, 40, 20), abstained=Cells(5, 2, 5, 3))
        step = next(step for step in find_steps(_with(facts, confusion=of)) if "new pictures" in step.title)
        assert word in step.command and facts.bundle in step.command
        assert not feasible or tells(step.text, "5 of 15", "1 of the 25")
    assert "phase1.folds" in find_steps(facts)[-1].text
    (facts.folder / PHASES[1].folder / "out_of_fold.parquet").touch()
    assert find_steps(facts)[-1].command == "natix-hf audit ."
    facts.results = replace(facts.results, evaluation=None)
    assert find_steps(facts) == []
