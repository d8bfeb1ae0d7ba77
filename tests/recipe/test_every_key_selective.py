"""Every key of `phase3`, `phase5` and `phase5.risk` changes something: the table, and its proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from effects import Look, remembered, require_effect
from given import decision, give_answers, rows_of

from natix_hf.data.asked import Asked
from natix_hf.metrics.table import METRICS
from natix_hf.phases import phase3_gate, phase5_scrc
from natix_hf.recipe import parse_recipe
from natix_hf.results import calibration, plots
from natix_hf.results.logits import LogitTable
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.graph import PHASES

pytestmark = pytest.mark.usefixtures("upstream_by_hand")

# section, key, new value, what must differ.
EFFECTS: list[tuple[str, str, Any, Any]] = [
    ("phase3", "method", "confidnet", lambda s: s.compared["aurc"]["learned"]),
    ("phase3", "alpha", 0.2, lambda s: (s.fnr_at_most, s.compared["aurc"]["learned"])),
    ("phase3", "abstention_cost", 3.0, lambda s: s.compared["aurc"]["learned"]),
    ("phase3", "softness", 1.0, lambda s: s.compared["aurc"]["learned"]),
    ("phase3", "hidden", 5, lambda s: s.compared["aurc"]["learned"]),
    ("phase3", "folds", 4, lambda s: (s.folds, s.compared["aurc"]["learned"])),
    ("phase3", "n_resamples", 150, lambda s: s.compared["aurc"]["low"]),
    ("phase5", "method", "platt", lambda s: s.calibration["intercept"]),
    ("phase5", "method", "none", lambda s: s.calibration["slope"]),
    ("phase5", "n_resamples", 150, lambda s: s.calibration["after"]["nll"]["interval"]),
    ("phase5.risk", "loss", "fnr", lambda s: s.risk["thresholds"]),
    ("phase5.risk", "loss", "fpr", lambda s: s.risk["thresholds"]),
    ("phase5.risk", "alpha", 0.1, lambda s: s.risk["thresholds"]),
    ("phase5.risk", "delta", 0.5, lambda s: s.risk["thresholds"]),
    ("phase5.risk", "min_coverage", 0.99, lambda s: s.risk["feasible"]),
    ("phase5.risk", "classwise", True, lambda s: s.risk["thresholds"]),
    ("phase5.risk", "prior", [0.4, 0.6], lambda s: s.risk["thresholds"]),
    ("phase5.risk", "looks", 4, lambda s: s.risk["thresholds"]),
]

BEFORE: dict[str, dict[str, Any]] = {
    "phase3": {"hidden": 4, "folds": 2, "n_resamples": 100, "num_train_epochs": 3, "learning_rate": 1e-2},
    "phase5": {"n_resamples": 100, "risk": {"alpha": 0.05, "delta": 0.1}},
}
# Keys that only this method takes. A batch of 80 suits both methods.
OF_CONFORMAL, CONFORMAL = ("alpha", "abstention_cost", "softness"), {"method": "conformal", "alpha": 0.05}
BEFORE["phase3"]["per_device_train_batch_size"] = 80


def _table(role: str) -> LogitTable:
    rng = np.random.default_rng(len(role))
    labels = np.repeat(rng.integers(0, 2, 300), 2)
    logits = 6 * (labels - 0.5) + 2.2 * rng.normal(size=600) + 0.3
    groups = np.array([f"{role}{i // 2}" for i in range(600)])
    return LogitTable(Asked([f"{role}/{i}" for i in range(600)], groups, labels), logits, "c" * 64)


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    """`look(content)`: what phase 3 or 5, whichever has a section, reports of fixed answers."""
    run_dir = tmp_path_factory.mktemp("run")
    tables = {role: _table(role) for role in ("val_select", "val_calib")}
    features = {role: np.column_stack([t.logits, t.labels]).astype(np.float32) for role, t in tables.items()}
    for folder in ("phase2_threshold", "phase3_gate", "phase5_scrc"):
        (run_dir / folder).mkdir()
    decision(run_dir, 0.0)
    answers = {role: (table, features[role]) for role, table in tables.items()}

    def run(content: dict[str, Any]) -> SimpleNamespace:
        number = int(next(iter(content))[-1])
        recipe = parse_recipe(content)
        context = PhaseContext(PHASES[number], recipe, run_dir, rows_of(answers))
        if number == 3:
            return SimpleNamespace(**phase3_gate.run(context).metrics)
        found = phase5_scrc.run(context).metrics
        return SimpleNamespace(calibration=found["calibration"], risk=found["risk_control"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "calibration_scores", lambda: {name: METRICS[name] for name in ("ece", "nll")})
        for module in (phase3_gate, phase5_scrc):
            give_answers(patch, module, answers)
        for plot in ("reliability", "risk_coverage"):
            patch.setattr(plots, plot, lambda *args: None)
        yield remembered(run)


@pytest.mark.parametrize(
    ("section", "key", "value", "observe"), EFFECTS, ids=[f"{s}.{k}={v}" for s, k, v, _ in EFFECTS]
)
def test_every_key_changes_something(
    section: str, key: str, value: Any, observe: Callable[[Any], Any], look: Look
) -> None:
    outer = section.partition(".")[0]
    before = BEFORE[outer] | (CONFORMAL if section == "phase3" and key in OF_CONFORMAL else {})
    require_effect(look, observe, {outer: before}, f"{section}.{key}", value)
