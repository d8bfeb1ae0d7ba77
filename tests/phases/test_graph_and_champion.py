"""Which phases run, in which order, on which rows, and which candidate wins. No training here."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facts import tells
from refusals import refused

from natix_hf.data.asked import Asked
from natix_hf.data.splits import ROLES
from natix_hf.errors import LeakageError, RunError, UsageError
from natix_hf.metrics import select_threshold
from natix_hf.recipe import parse_recipe
from natix_hf.results.decision import choose_champion
from natix_hf.results.logits import LogitTable
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.graph import ORDER, PHASES, order_phases, parse_phases

pytestmark = pytest.mark.usefixtures("upstream_by_hand")


def test_any_order_is_dependency_order() -> None:
    for given in itertools.permutations([1, 2, 6]):
        assert order_phases(given) == parse_phases(",".join(map(str, given))) == [1, 2, 6]
    for text, expected in (("all", [1, 4, 2, 3, 5, 6]), (" all ", [1, 4, 2, 3, 5, 6]), ("6,5,3,1,6", [1, 3, 5, 6])):
        assert parse_phases(text) == expected
    for text in ("", "1,,2", "one", "1;2", "9", "0", "-1", "1.5", "1,7"):
        with pytest.raises(UsageError) as caught:
            parse_phases(text)
        assert caught.value.exit_code == 2, text


def test_every_need_comes_earlier() -> None:
    for phase in PHASES.values():
        for number in phase.needs + phase.uses:
            assert ORDER.index(number) < ORDER.index(phase.number)
    for role, reader in (("test", 6), ("val_calib", 5)):
        assert [phase.number for phase in PHASES.values() if role in phase.roles] == [reader]


class _Data:
    def role(self, role: str) -> Any:
        return LogitTable(Asked([f"{role}/0"], np.array([]), np.array([])), np.array([]), "")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("number", sorted(PHASES))
def test_rights_to_rows(number: int, role: str, tmp_path: Path) -> None:
    fitting, trainings = ("val_select",), ("train", "val_select")
    granted: dict[int, tuple[str, ...]] = {
        0: (), 1: trainings, 4: trainings, 2: fitting, 3: fitting, 5: ("val_select", "val_calib"), 6: ("test",)
    }  # fmt: skip
    context = PhaseContext(PHASES[number], parse_recipe({}), tmp_path, _Data)  # type: ignore[arg-type]
    if role in granted[number]:
        assert context.rows(role).ids == [f"{role}/0"]
        context.note_rows(role, ["x"])
        return
    for ask in (lambda: context.rows(role), lambda: context.note_rows(role, ["x"])):
        refused(LeakageError, ask, PHASES[number].folder, role, *(granted[number] or ("none",)))


def test_only_declared_upstream_folders(tmp_path: Path) -> None:
    context = PhaseContext(PHASES[1], parse_recipe({}), tmp_path, _Data)  # type: ignore[arg-type]
    assert context.upstream(0) == tmp_path / "phase0_data"
    refused(RunError, lambda: context.upstream(6), "phase1_baseline", "phase 6")


def _tables(gains: dict[str, float], n: int = 400, seed: int = 0) -> tuple[dict[str, LogitTable], dict[str, float]]:
    """Logits of one sample whose separation is `gain`: the larger, the better the candidate."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    groups = np.array([f"g{i // 2}" for i in range(n)])
    ids = [f"train/{i}" for i in range(n)]
    noise = {gain: rng.normal(size=n) for gain in gains.values()}
    tables = {
        name: LogitTable(Asked(ids, groups, labels), gain * (labels - 0.5) + noise[gain], name)
        for name, gain in gains.items()
    }
    return tables, {name: select_threshold(t.logits, t.labels).threshold for name, t in tables.items()}


@pytest.mark.parametrize(
    ("gains", "champion"),
    [
        ({"control": 1.0}, "control"),
        ({"control": 1.0, "challenger": 1.0}, "control"),  # a tie
        ({"control": 1.0, "challenger": 1.2}, "control"),  # better, but not beyond doubt
        ({"control": 2.0, "challenger": 1.0}, "control"),
        ({"control": 1.0, "challenger": 4.0}, "challenger"),
        ({"control": 1.0, "second": 2.5, "third": 6.0}, "third"),
        ({"control": 1.0, "second": 6.0, "third": 2.5}, "second"),
    ],
)
def test_champion(gains: dict[str, float], champion: str) -> None:
    tables, thresholds = _tables(gains)
    chosen, comparisons = choose_champion(tables, thresholds, None, 200)
    assert chosen == champion
    assert len(comparisons) == len(gains) - 1
    for comparison in comparisons:
        gain = comparison.mcc_gain
        if gain.low is None or gain.high is None:
            assert gain.difference == 0 and tells(gain.no_interval, "every resample"), "a tie on every row"
            continue
        assert gain.low <= gain.difference <= gain.high
        if gains.get("challenger") == 1.2:
            assert gain.difference > 0 > gain.low, "the case is the one that it claims to be"


def test_champions_are_compared_at_the_prior() -> None:
    """At a prior of .99 what counts is the positives: a challenger that is better there only wins there only."""
    tables, _ = _tables({"control": 1.0})
    control = tables["control"]
    better = np.where(control.labels == 1, control.logits + 2.0, control.logits + 0.4)
    tables["challenger"] = LogitTable(Asked(control.ids, control.groups, control.labels), better, "challenger")
    thresholds = {"control": 0.0, "challenger": 0.0}
    gains = [choose_champion(tables, thresholds, p, 200)[1][0].mcc_gain.difference for p in (0.02, 0.98)]
    assert gains[0] != gains[1]


def test_candidates_of_different_rows_are_not_compared() -> None:
    tables, thresholds = _tables({"control": 1.0, "challenger": 2.0})
    other = tables["challenger"]
    tables["challenger"] = LogitTable(Asked(other.ids[::-1], other.groups, other.labels), other.logits, "challenger")
    refused(RunError, lambda: choose_champion(tables, thresholds, None, 200), "control", "challenger", "rows")
