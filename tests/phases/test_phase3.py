"""Phase 3: the learned gate stays only where it beats the margin on rows it has not seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facts import tells
from given import decision, give_answers, rows_of

from natix_hf.data.asked import Asked
from natix_hf.metrics import aurc, prior_weights
from natix_hf.metrics.at_fnr import figures_at_fnr
from natix_hf.models.gate import gate_inputs, load_gate
from natix_hf.phases import phase3_gate
from natix_hf.provenance.files import file_sha256
from natix_hf.recipe import parse_recipe
from natix_hf.results import gate as gate_results
from natix_hf.results.gate import GateComparison, GateReport, read_cross_fitted, verdict
from natix_hf.results.logits import LogitTable
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.graph import PHASES
from natix_hf.trainers.gate import cross_fit, gate_targets

pytestmark = pytest.mark.usefixtures("upstream_by_hand")

THRESHOLD = 0.3


def _case(signal: float, wrong_groups: int = 60, n: int = 600, seed: int = 0) -> tuple[LogitTable, np.ndarray]:
    """Answers of 2 rows a group; those of some groups are wrong at any margin; a feature tells, by `signal`."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(n) // 2
    wrong = np.isin(numbers, rng.permutation(n // 2)[:wrong_groups])
    logits = rng.choice([-1.0, 1.0], n) * rng.uniform(0.2, 4.0, n) + THRESHOLD
    labels = np.where(wrong, logits <= THRESHOLD, logits > THRESHOLD).astype(np.int64)
    features = rng.normal(size=(n, 5)).astype(np.float32)
    features[:, 0] += np.float32(signal) * wrong
    groups = np.array([f"v{number}" for number in numbers])
    return LogitTable(Asked([f"train/{i}" for i in range(n)], groups, labels), logits, "c" * 64), features


Run = Any


@pytest.fixture
def phase3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`phase3(table, features, **keys)`: the report of the phase on these answers of a champion."""

    def run(table: LogitTable, features: np.ndarray, prior: float | None = None, **keys: Any) -> dict[str, Any]:
        section = {"hidden": 16, "num_train_epochs": 12, "learning_rate": 1e-2, "folds": 3, "n_resamples": 200} | keys
        recipe = parse_recipe({"phase3": section, "data": {"target_prior": prior}})
        answers = {"val_select": (table, features)}
        context = PhaseContext(PHASES[3], recipe, tmp_path, rows_of(answers))
        asked = give_answers(monkeypatch, phase3_gate, answers)
        decision(tmp_path, THRESHOLD, "phase4_explora")
        (tmp_path / "phase3_gate").mkdir(exist_ok=True)
        report = phase3_gate.run(context).metrics
        assert set(asked) == {(tmp_path / "phase4_explora", "val_select")}  # the champion's, wherever it comes from
        assert context.rows_read == {"val_select": table.ids}
        stored = json.loads((tmp_path / "phase3_gate" / "gate.json").read_text(encoding="utf-8"))
        assert stored == {"schema": 1, **report}
        return report

    return run


def _gate(tmp_path: Path) -> Path:
    return tmp_path / "phase3_gate" / "gate.safetensors"


@pytest.mark.parametrize("method", ["correctness", "confidnet"])
def test_a_gate_that_knows_more_than_the_margin_stays(method: str, phase3: Run, tmp_path: Path) -> None:
    table, features = _case(signal=4.0)
    if method == "confidnet":  # its target is the model's own probability: let that say who is wrong, and no more
        flat = np.where(table.logits > THRESHOLD, 2.0, -2.0) + 0.01 * table.logits
        table = replace(table, logits=flat)
    report = phase3(table, features, method=method)
    assert (report["kind"], report["method"], report["candidate_sha256"]) == ("learned", method, "c" * 64)
    assert report["gate_sha256"] == file_sha256(_gate(tmp_path))
    assert report["wrong_rows"] == 120 and report["folds"] == 3
    compared = report["compared"]["aurc"]
    assert compared["low"] <= compared["difference"] <= compared["high"] < 0
    assert compared["difference"] == pytest.approx(compared["learned"] - compared["margin"], abs=1e-12)
    assert tells(report["reason"], f"{compared['learned']:.4f}", f"{compared['margin']:.4f}")
    assert set(report["compared"]) == {"aurc", "augrc"}
    assert (tmp_path / "phase3_gate" / "plots" / "gate.png").is_file()
    # The stored gate was trained on all of val_select, and ranks it.
    confidence = load_gate(_gate(tmp_path)).confidence(gate_inputs(features, table.logits, THRESHOLD))
    wrong = (table.logits > THRESHOLD) != (table.labels == 1)
    assert aurc(confidence, wrong) < 0.5 * compared["margin"]
    # Phase 5 gets a fair confidence of each of these rows, by the gates of the folds.
    fair = read_cross_fitted(tmp_path / "phase3_gate", table.ids)
    assert fair is not None and aurc(fair, wrong, prior_weights(table.labels, None)) == compared["learned"]


def test_the_figures_are_those_of_the_cross_fit(phase3: Run) -> None:
    """At a target prior; of the gates of the folds, not of the one that is stored."""
    table, features = _case(signal=1.0)
    report = phase3(table, features, prior=0.2)
    config = parse_recipe({"phase3": {"hidden": 16, "num_train_epochs": 12, "learning_rate": 1e-2, "folds": 3}}).phase3
    wrong = ((table.logits > THRESHOLD) != (table.labels == 1)).astype(np.int64)
    targets = gate_targets("correctness", table.logits, table.labels, THRESHOLD)
    learned = cross_fit(gate_inputs(features, table.logits, THRESHOLD), targets, wrong, table.groups, config)
    weights = prior_weights(table.labels, 0.2)
    assert report["compared"]["aurc"]["learned"] == aurc(learned, wrong, weights)
    assert report["compared"]["aurc"]["margin"] == aurc(np.abs(table.logits - THRESHOLD), wrong, weights)
    assert aurc(learned, wrong, weights) != aurc(learned, wrong)


def test_a_gate_that_knows_nothing_goes(phase3: Run, tmp_path: Path) -> None:
    table, features = _case(signal=0.0)
    report = phase3(table, features)
    assert report["kind"] == "margin" and "gate_sha256" not in report
    assert report["compared"]["aurc"]["high"] >= 0
    assert tells(report["reason"], "margin")
    assert not _gate(tmp_path).exists()
    fair = read_cross_fitted(tmp_path / "phase3_gate", table.ids)  # kept, so that the decision can be recomputed
    wrong = (table.logits > THRESHOLD) != (table.labels == 1)
    assert fair is not None and aurc(fair, wrong) == pytest.approx(report["compared"]["aurc"]["learned"])
    assert (tmp_path / "phase3_gate" / "plots" / "gate.png").is_file()


def test_better_but_not_beyond_doubt_is_not_enough(phase3: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"a": 0.2, "b": 0.1, "difference": -0.1, "low": -0.2, "high": 0.0}
    monkeypatch.setattr(
        gate_results, "paired_selective_difference", lambda *args: {"aurc": found, "augrc": found | {"high": -0.05}}
    )
    assert phase3(*_case(signal=4.0))["kind"] == "margin"


@pytest.mark.parametrize(("wrong_groups", "kept"), [(0, False), (2, False), (3, True)])
def test_too_few_groups_with_a_wrong_answer(wrong_groups: int, kept: bool, phase3: Run, tmp_path: Path) -> None:
    """Groups and not rows are counted: each has two wrong rows here. With enough of them the gate is tried."""
    report = phase3(*_case(signal=8.0, wrong_groups=wrong_groups))
    assert report["wrong_rows"] == 2 * wrong_groups
    assert ("compared" in report) == kept
    if not kept:
        assert report["kind"] == "margin" and not _gate(tmp_path).exists()
        assert tells(report["reason"], wrong_groups, 3, "margin")


# Conformal risk training.

CONFORMAL = {"method": "conformal", "per_device_train_batch_size": 256, "num_train_epochs": 40, "alpha": 0.1}


def test_a_conformal_gate_stays_by_the_figures_it_was_trained_for(
    phase3: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cross-fitted, at the loosest cut of each gate on val_select, whatever the prior."""
    table, features = _case(signal=4.0, n=800)
    report = phase3(table, features, prior=0.2, **CONFORMAL)
    assert (report["kind"], report["method"], report["fnr_at_most"]) == ("learned", "conformal", 0.1)
    assert report["gate_sha256"] == file_sha256(_gate(tmp_path))
    fair = read_cross_fitted(tmp_path / "phase3_gate", table.ids)
    wrong = (table.logits > THRESHOLD) != (table.labels == 1)
    sides = {"margin": np.abs(table.logits - THRESHOLD), "learned": fair}
    for side, confidence in sides.items():
        at = figures_at_fnr(confidence, wrong, table.labels, 0.1, 0.5)
        for name in ("cost", "abstained"):
            assert report["compared"][name][side] == pytest.approx(getattr(at, name)[0])
    cost = report["compared"]["cost"]
    assert cost["low"] <= cost["difference"] <= cost["high"] < 0 and {"aurc", "augrc"} < set(report["compared"])
    assert tells(report["reason"], "0.1", f"{cost['learned']:.4f}", f"{cost['margin']:.4f}", "AURC")
    assert tells(" ".join(capsys.readouterr().out.split()), "phase5.risk.loss=fnr", "error", "0.05")


def test_a_conformal_gate_that_knows_nothing_goes(phase3: Run, tmp_path: Path) -> None:
    report = phase3(*_case(signal=0.0), **CONFORMAL)
    assert report["kind"] == "margin" and not _gate(tmp_path).exists() and tells(report["reason"], "margin", "cost")


def test_too_few_rows_for_a_batch(phase3: Run) -> None:
    report = phase3(*_case(signal=4.0), **CONFORMAL | {"per_device_train_batch_size": 512})
    assert report["kind"] == "margin" and "compared" not in report and report["fnr_at_most"] == 0.1
    assert tells(report["reason"], "margin", 256, "phase3.per_device_train_batch_size", 512)


@pytest.mark.parametrize(
    ("fpr", "abstained", "kept"),
    [
        ((-0.2, -0.1), (-0.2, -0.1), True), ((-0.1, 0.1), (-0.1, 0.1), True), (None, (-0.2, -0.1), True),
        ((0.01, 0.1), (-0.9, -0.8), False), ((-0.9, -0.8), (0.01, 0.1), False),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_gate_wins_must_not_be_paid_for(
    fpr: tuple[float, float] | None, abstained: tuple[float, float], kept: bool
) -> None:
    """The cost falls beyond doubt; neither of its parts may rise beyond doubt."""
    config = parse_recipe({"phase3": {"method": "conformal", "per_device_train_batch_size": 256}}).phase3
    parts = {"cost": (-0.2, -0.1), "aurc": (0.1, 0.2), "fpr": fpr, "abstained": abstained}
    compared = {name: GateComparison(0.3, 0.2, -0.1, *bounds) for name, bounds in parts.items() if bounds is not None}
    wins, reason = verdict(compared, config)
    worse = [name for name in ("fpr", "abstained") if (parts[name] or (0, 0))[0] > 0]
    assert wins == kept and tells(reason, "0.025", *worse)
    without_gain = compared | {"cost": GateComparison(0.3, 0.2, -0.1, -0.2, 0.0)}
    assert not verdict(without_gain, config)[0]
    unknown = compared | {"cost": GateComparison(0.3, 0.2, -0.1, None, None, "cannot be estimated")}
    assert not verdict(unknown, config)[0] and tells(verdict(unknown, config)[1], "cannot be estimated")


def test_a_report_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It has no `fnr_at_most`. A new one of another method holds the same keys as before."""
    compared = {"aurc": GateComparison(0.3, 0.2, -0.1, -0.2, 0.0)}
    old = GateReport("learned", "correctness", "c" * 64, 9, compared, 5, "x")
    old.write(tmp_path)
    stored = json.loads((tmp_path / "gate.json").read_text(encoding="utf-8"))
    assert "fnr_at_most" not in stored and GateReport.read(tmp_path) == old
