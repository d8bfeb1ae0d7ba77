"""`natix-hf plan`: the answer for people and for programs, from a model and from a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, refused
from facts import tells

from natix_hf.calibration import groups_needed, groups_needed_for, simulation
from natix_hf.data.splits import SPLITS, read_splits
from natix_hf.errors import UsageError
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.results.gate import read_cross_fitted
from natix_hf.runs.planned import run_answers


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "DRAWS", 300)
    monkeypatch.setattr(simulation, "GUESS", 100)


def _json(command: Command, *arguments: object) -> dict[str, Any]:
    code, out, err = command("plan", *arguments, "--json")
    assert (code, err) == (0, "")
    content: dict[str, Any] = json.loads(out)
    return content


def test_a_model(command: Command) -> None:
    arguments = ("--alpha", 0.1, "--delta", 0.1, "--coverage", 0.6, "--floor", 0.01, "--error-rate", 0.03)
    code, out, err = command("plan", *arguments, "--groups", 50)
    found, plan = _json(command, *arguments, "--groups", 50), groups_needed(0.1, 0.1, 0.03, 0.6, 0.01, groups=[50])
    assert (code, err) == (0, "")
    assert [found[key] for key in ("groups", "probability", "coverage")] == [plan.groups, plan.probability, 0.6]
    assert {key: found[key] for key in ("error_rate", "floor", "rest")} == {
        "error_rate": 0.03,
        "floor": 0.01,
        "rest": 0.3,
    }
    rows = [(row["groups"], row["certificate"], row["probability"], row["coverage"]) for row in found["table"]]
    assert rows == [(row.groups, row.certified, row.reached, row.coverage) for row in plan.table]
    assert out.startswith(f"{plan.groups} ") and {50, plan.groups} < {row[0] for row in rows}
    shown = [line.split()[:4] for line in out.splitlines()[-len(rows) :]]
    assert shown == [[str(n), f"{a:.2f}", f"{b:.2f}", f"{c:.3f}"] for n, a, b, c in rows]


def test_what_is_not_given(command: Command) -> None:
    assert _json(command, "--alpha", 0.05, "--delta", 0.05)["groups"] == 59
    both = _json(command, "--alpha", 0.05, "--delta", 0.05, "--floor", 0.01)
    assert (both["error_rate"], both["floor"], both["coverage"]) == (0.01, 0.01, 1.0)


def test_too_many(command: Command) -> None:
    found = _json(command, "--alpha", 0.05, "--delta", 0.1, "--error-rate", 0.0499)
    assert (found["groups"], found["probability"], found["table"]) == (None, None, [])
    assert tells(found["reason"], "100,000", "alpha")


def _answers_by_hand(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, losses and weights of every answer on val_select, for the loss error at a prior of 0.5."""
    decision = Decision.read(run / "phase2_threshold")
    table = decision.val_select(run / "phase2_threshold", Candidate(run / decision.champion))
    confidence = np.abs(table.logits - decision.threshold_logit)
    if (run / "phase3_gate" / "gate.safetensors").is_file():
        cross_fitted = read_cross_fitted(run / "phase3_gate", table.ids)
        assert cross_fitted is not None and not np.array_equal(cross_fitted, confidence)
        confidence = cross_fitted
    losses = (table.logits > decision.threshold_logit) != (table.labels == 1)
    weights = np.array([1 / (table.groups == group).sum() for group in table.groups])
    for label in (0, 1):
        weights[table.labels == label] *= 0.5 / weights[table.labels == label].sum()
    return confidence, losses, weights


def test_a_run(command: Command, _whole_run: Path) -> None:
    found = _json(command, "--run", _whole_run, "--groups", 40)
    confidence, losses, weights = _answers_by_hand(_whole_run)
    plan = groups_needed_for(confidence, losses, 0.6, 0.3, weights=weights, groups=[40])
    assert (found["groups"], found["coverage"]) == (plan.groups, pytest.approx(plan.coverage))
    rows = {row["groups"]: row["probability"] for row in found["table"]}
    assert found["val_calib_usable"] in rows  # what the run has now
    expected = {row.groups: row.reached for row in plan.table}
    assert {n: rows[n] for n in expected} == pytest.approx(expected, abs=0.02)  # weights differ by rounding
    counts = read_splits(_whole_run / "phase0_data" / SPLITS).counts()
    assert found["val_calib_groups"] == counts["val_calib"]["groups"]
    assert found["val_select_groups"] == counts["val_select"]["groups"]
    assert (found["alpha"], found["delta"], found["prior"], found["loss"]) == (0.6, 0.3, 0.5, "error")
    code, out, _ = command("plan", "--run", _whole_run, "--alpha", 0.7, "--coverage", 0.5)
    assert code == 0 and str(counts["val_calib"]["groups"]) in out and "0.7" in out


def test_a_run_that_has_certified_nothing(command: Command, finished_run: Path) -> None:
    code, _, err = command("plan", "--run", finished_run)
    assert code == 2 and tells(err.rstrip("\n"), finished_run, "--alpha", "--delta")
    found = _json(command, "--run", finished_run, "--alpha", 0.6, "--delta", 0.3)
    assert (found["loss"], found["prior"], found["gate"]) == ("error", None, "margin")
    (finished_run / "phase2_threshold" / "manifest.json").unlink()
    with refused(UsageError, finished_run, "phase 2"):
        run_answers(finished_run)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ([], ["--alpha", "--run"]), (["--alpha", 0.1], ["--delta"]), (["--run", "nowhere"], ["nowhere"]),
        (["--run", "nowhere", "--floor", 0.1], ["--floor", "--run"]),
        (["--alpha", 0.1, "--delta", 0.1, "--groups", 0], ["groups", 0]),
        (["--alpha", 0.1, "--delta", 0.1, "--error-rate", 0.2], ["error_rate", 0.1, 0.2]),
    ],
)  # fmt: skip
def test_refused_in_one_line(command: Command, arguments: list[object], facts: list[object]) -> None:
    code, out, err = command("plan", *arguments)
    assert (code, out) == (2, "") and tells(err.rstrip("\n"), *facts)
