"""Every key of `phase3`, `phase5` and `phase5.risk` changes something: the table, and its proof."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from natix_hf.data.asked import Asked
from natix_hf.phases import phase3_gate, phase5_scrc, plots
from natix_hf.provenance.files import write_json
from natix_hf.recipe import parse_recipe
from natix_hf.results.candidate import Candidate
from natix_hf.results.logits import LogitTable
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.graph import PHASES
from natix_hf.trainers import gate as gate_trainer
from natix_hf.trainers.gate_config import GATE_DEFAULTS

# section, key, new value, what must differ; a tuple in front of the observer: settings of both sides.
EFFECTS: list[tuple[str, str, Any, Any]] = [
    ("phase3", "method", "confidnet", lambda s: s.compared["aurc"]["learned"]),
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
]

BEFORE: dict[str, dict[str, Any]] = {
    "phase3": {"hidden": 4, "folds": 2, "n_resamples": 100, "num_train_epochs": 3, "learning_rate": 1e-2},
    "phase5": {"n_resamples": 100, "risk": {"alpha": 0.05, "delta": 0.1}},
}


def _table(role: str) -> LogitTable:
    rng = np.random.default_rng(len(role))
    labels = np.repeat(rng.integers(0, 2, 300), 2)
    logits = 6 * (labels - 0.5) + 2.2 * rng.normal(size=600) + 0.3
    groups = np.array([f"{role}{i // 2}" for i in range(600)])
    return LogitTable(Asked([f"{role}/{i}" for i in range(600)], groups, labels), logits, "c" * 64)


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`look(number, content)`: what phase 3 or 5 reports of fixed answers."""
    tables = {role: _table(role) for role in ("val_select", "val_calib")}
    features = {role: np.column_stack([t.logits, t.labels]).astype(np.float32) for role, t in tables.items()}
    monkeypatch.setattr(Candidate, "stored_logits", lambda self, role: tables[role])
    monkeypatch.setattr(phase5_scrc, "_ERRORS", ("ece", "nll"))
    for module in (phase3_gate, phase5_scrc):
        monkeypatch.setattr(module, "compute_answers", lambda _, rows, exam: (tables[rows.role], features[rows.role]))
    for plot in ("reliability", "risk_coverage"):
        monkeypatch.setattr(plots, plot, lambda *args: None)
    decision = {"champion": "phase1_baseline", "threshold_logit": 0.0}
    for folder in ("phase2_threshold", "phase3_gate", "phase5_scrc"):
        (tmp_path / folder).mkdir()
    write_json(tmp_path / "phase2_threshold" / "threshold.json", decision)
    data = SimpleNamespace(role=lambda role: SimpleNamespace(role=role, ids=tables[role].ids))

    def run(number: int, content: dict[str, Any]) -> SimpleNamespace:
        recipe = parse_recipe(content)
        context = PhaseContext(PHASES[number], recipe, tmp_path, lambda: data)  # type: ignore[arg-type, return-value]
        if number == 3:
            return SimpleNamespace(**phase3_gate.run(context))
        found = phase5_scrc.run(context)
        return SimpleNamespace(calibration=found["calibration"], risk=found["risk_control"])

    return run


@pytest.mark.parametrize(
    ("section", "key", "value", "observe"), EFFECTS, ids=[f"{s}.{k}={v}" for s, k, v, _ in EFFECTS]
)
def test_every_key_changes_something(
    section: str, key: str, value: Any, observe: Callable[[Any], Any], look: Callable[..., Any]
) -> None:
    number, (outer, _, inner) = int(section[5]), section.partition(".")
    given = BEFORE[outer]
    changed = given | ({inner: given[inner] | {key: value}} if inner else {key: value})
    before, after = (observe(look(number, {outer: content})) for content in (given, changed))
    assert before != after
    assert observe(look(number, {outer: given})) == before  # what differed was the key, not chance


TRAINING: dict[str, Any] = {
    "num_train_epochs": 3.0, "learning_rate": 1e-4, "weight_decay": 0.0, "lr_scheduler_type": "linear",
    "warmup_steps": 7.0, "per_device_train_batch_size": 5, "ddp_find_unused_parameters": True,
    "report_to": "tensorboard", "seed": 1,
    # and some that have no default here
    "gradient_accumulation_steps": 4, "max_grad_norm": 0.3, "optim": "adafactor", "adam_beta2": 0.9, "max_steps": 12,
}  # fmt: skip


def test_all_defaults_are_among_them() -> None:
    assert set(GATE_DEFAULTS) <= set(TRAINING)


class _Seen(Exception):
    """Carries what a stubbed Trainer was given."""


@pytest.mark.parametrize("key", TRAINING)
def test_phase3_training_arguments(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any field of TrainingArguments, given under phase3, reaches the gate's Trainer."""

    def stop(*, args: Any, **_: Any) -> None:
        raise _Seen(args)

    monkeypatch.setattr(gate_trainer, "GateTrainer", stop)
    config = parse_recipe({"phase3": {key: TRAINING[key]}}).phase3
    if key in GATE_DEFAULTS:
        assert config.training[key] != GATE_DEFAULTS[key]
    with pytest.raises(_Seen) as caught:
        gate_trainer.train_gate(np.zeros((4, 3), dtype=np.float32), np.zeros(4, dtype=np.float32), config)
    value = getattr(caught.value.args[0], key)
    value = getattr(value, "value", value)
    assert (value[0] if key == "report_to" else value) == TRAINING[key]


@pytest.mark.parametrize("key", ["alpha", "delta", "min_coverage", "loss", "classwise", "other"])
def test_the_promise_of_a_recipe_is_checked(key: str) -> None:
    from natix_hf.errors import RecipeError

    wrong: dict[str, list[Any]] = {"loss": ["fdr", 1], "classwise": ["yes", 1], "other": [1]}
    for value in wrong.get(key, [0, 1.5, -0.1, "x"]):
        with pytest.raises(RecipeError, match=rf"phase5\.risk\.{key}"):
            parse_recipe({"phase5": {"risk": {key: value}}})
    assert json.dumps(parse_recipe({"phase5": {"risk": {"min_coverage": 1.0}}}).section("phase5"))
