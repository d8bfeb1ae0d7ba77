"""Phase 5: calibrated on val_select, measured and promised on val_calib, by the very functions of `calibration`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facts import tells
from given import decision, give_answers, rows_of
from refusals import refused

from natix_hf.bundle.policy import GateUse, Policy
from natix_hf.calibration import Calibration, Promise, fit_platt, fit_temperature
from natix_hf.calibration.classwise import fit_classwise_risk_control
from natix_hf.calibration.risk_control import fit_risk_control
from natix_hf.calibration.risk_rows import one_row_per_group, subsample_to_prior
from natix_hf.data.asked import Asked
from natix_hf.errors import RunError, VerificationError
from natix_hf.metrics import compute_metrics, group_weights, prior_weights
from natix_hf.metrics.table import METRICS
from natix_hf.models.gate import Gate, gate_inputs, save_gate
from natix_hf.phases import phase5_scrc, phase6_evaluate
from natix_hf.provenance.files import read_json
from natix_hf.provenance.stored import to_json
from natix_hf.recipe import parse_recipe
from natix_hf.results import calibration as calibration_results
from natix_hf.results.evaluation import evaluate, evaluate_selective
from natix_hf.results.gate import GateReport, write_cross_fitted
from natix_hf.results.logits import LogitTable, read_logits
from natix_hf.results.promise import SelectRows
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.graph import PHASES

pytestmark = pytest.mark.usefixtures("upstream_by_hand")

THRESHOLD = 0.4
SHA = "c" * 64


def _table(role: str, separation: float = 3.0, groups: int = 400, share: float = 0.4, seed: int = 0) -> LogitTable:
    """Overconfident logits, two rows a group of one class."""
    rng = np.random.default_rng([seed, len(role)])
    labels = np.repeat((rng.random(groups) < share).astype(np.int64), 2)
    logits = 2.5 * (separation * (labels - 0.5) + rng.normal(size=labels.size))
    names = np.array([f"{role}-{i // 2}" for i in range(labels.size)])
    return LogitTable(Asked([f"{role}/{i}" for i in range(labels.size)], names, labels), logits, SHA)


def _features(table: LogitTable) -> np.ndarray:
    rng = np.random.default_rng(len(table.ids))
    return np.column_stack([table.logits * rng.uniform(0.5, 2, len(table.ids)), table.labels]).astype(np.float32)


Run = Any


@pytest.fixture
def phase5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`phase5(select, calib, **recipe)`: both reports of the phase; the run lies in `tmp_path`."""
    # smooth_ece takes seconds in every bootstrap; one test has it back.
    quick = {name: METRICS[name] for name in ("ece", "brier", "nll")}
    monkeypatch.setattr(calibration_results, "calibration_scores", lambda: quick)

    def run(
        select: LogitTable,
        calib: LogitTable,
        prior: float | None = None,
        seed: int = 0,
        group_by: str | None = "video",
        **section: Any,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {"target_prior": prior, "seed": seed, "group_by": group_by}
        recipe = parse_recipe({"phase5": {"n_resamples": 100} | section, "data": data})
        answers = {role: (t, _features(t)) for role, t in {"val_select": select, "val_calib": calib}.items()}
        context = PhaseContext(PHASES[5], recipe, tmp_path, rows_of(answers))
        give_answers(monkeypatch, phase5_scrc, answers)
        decision(tmp_path, THRESHOLD)
        for folder in ("phase3_gate", "phase5_scrc"):
            (tmp_path / folder).mkdir(exist_ok=True)
        metrics = json.loads(json.dumps(phase5_scrc.run(context).metrics))
        assert context.rows_read == {role: table.ids for role, (table, _) in answers.items()}
        calibration, risk = (read_json(tmp_path / "phase5_scrc" / f"{name}.json") for name in ("calibration", "scrc"))
        assert calibration.pop("schema") == risk.pop("schema") == 1
        assert metrics == {"calibration": calibration, "risk_control": risk}
        assert risk["candidate_sha256"] == SHA
        return calibration, risk

    return run


# Calibration.


@pytest.mark.parametrize("prior", [None, 0.2])
@pytest.mark.parametrize("method", ["temperature", "platt", "none"])
def test_fitted_on_val_select_and_measured_on_val_calib(
    method: str, prior: float | None, phase5: Run, tmp_path: Path
) -> None:
    select, calib = _table("val_select"), _table("val_calib", share=0.5)
    report, _ = phase5(select, calib, prior, method=method)
    weights = prior_weights(select.labels, prior)
    slope, intercept = {
        "temperature": lambda: (1 / fit_temperature(select.logits, select.labels, weights), 0.0),
        "platt": lambda: fit_platt(select.logits, select.labels, weights),
        "none": lambda: (1.0, 0.0),
    }[method]()
    assert (report["method"], report["slope"], report["intercept"]) == (method, slope, intercept)
    assert report["temperature"] == (1 / slope if method == "temperature" else None)
    if method == "temperature":
        assert report["temperature"] != pytest.approx(fit_temperature(calib.logits, calib.labels), rel=1e-3)
    assert (report["target_prior"], report["rows"], report["groups"]["groups"]) == (prior, 800, 400)
    stored = read_logits(tmp_path / "phase5_scrc" / "logits" / "val_calib.parquet", SHA)
    assert stored.ids == calib.ids
    for name, (a, b) in {"before": (1.0, 0.0), "after": (slope, intercept)}.items():
        p = 1 / (1 + np.exp(-(a * stored.logits + b)))
        expected = compute_metrics(p, stored.labels, sample_weight=prior_weights(stored.labels, prior))
        for key, value in ((key, expected[key]) for key in ("ece", "brier", "nll")):
            assert report[name][key]["value"] == pytest.approx(value, abs=1e-9), (name, key)
            low, high = report[name][key]["interval"]
            assert low < high and low - 0.02 < value < high + 0.02
    gain = report["ece_reduction_percent"]
    before, after = report["before"]["ece"]["value"], report["after"]["ece"]["value"]
    assert gain == pytest.approx(100 * (before - after) / before)
    if method == "temperature":
        assert report["after"]["nll"]["value"] < report["before"]["nll"]["value"]
    for name in ("before", "after"):
        assert (tmp_path / "phase5_scrc" / "plots" / f"reliability_{name}.png").is_file()


def test_where_no_temperature_is_best_none_is_taken(phase5: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a wrong answer on val_select the likelihood grows on to verdicts."""
    report, _ = phase5(_table("val_select", separation=30.0), _table("val_calib"))
    assert (report["no_optimum"], report["method"], report["slope"], report["intercept"]) == (True, "none", 1.0, 0.0)
    assert report["after"] == report["before"] and report["ece_reduction_percent"] == 0
    assert "temperature" in capsys.readouterr().out
    assert phase5(_table("val_select"), _table("val_calib"))[0]["no_optimum"] is False


# Risk control.


def _chosen(calib: LogitTable, loss: str, prior: float | None, seed: int = 0) -> np.ndarray:
    at = one_row_per_group(calib.groups, seed)
    if loss == "error" and prior is not None:
        at = at[subsample_to_prior(calib.labels[at], prior, seed)]
    return at


def _seen(select: LogitTable, loss: str, prior: float | None) -> tuple[Any, Any, Any]:
    """All of val_select, in which every group counts once: two rows a group, and the prior of an error rate."""
    positive = select.logits > THRESHOLD
    labels = select.labels == 1
    eligible = {"error": np.ones(labels.size, bool), "fnr": labels, "fpr": ~labels}[loss]
    weights = prior_weights(select.labels, prior if loss == "error" else None)
    return np.abs(select.logits - THRESHOLD), (labels != positive) & eligible, weights * eligible / 2


@pytest.mark.parametrize("prior", [None, 0.2])
@pytest.mark.parametrize("loss", ["error", "fnr", "fpr"])
def test_the_promise_is_that_of_risk_control_on_one_row_a_group(
    loss: str, prior: float | None, phase5: Run, tmp_path: Path
) -> None:
    select, calib = _table("val_select"), _table("val_calib", separation=2.4)
    alpha, delta = {"error": 0.06, "fnr": 0.1, "fpr": 0.05}[loss], 0.1
    risk = phase5(select, calib, prior, seed=3, risk={"loss": loss, "alpha": alpha, "delta": delta})[1]
    at = _chosen(calib, loss, prior, seed=3)
    labels, positive = calib.labels[at] == 1, calib.logits[at] > THRESHOLD
    eligible = {"error": np.ones(at.size, bool), "fnr": labels, "fpr": ~labels}[loss]
    losses = (labels != positive) & eligible
    margin = np.abs(calib.logits[at] - THRESHOLD)
    found = fit_risk_control(margin, losses, alpha, delta, eligible, select=_seen(select, loss, prior))
    assert found.coverage is not None and found.risk_bound is not None and 0.1 < found.coverage < 1
    assert risk["thresholds"] == {"None": found.threshold, "Roadwork": found.threshold}
    assert (risk["feasible"], risk["rows"], risk["gate"]) == (True, at.size, "margin")
    assert (risk["loss"], risk["alpha"], risk["delta"], risk["classwise"]) == (loss, alpha, delta, False)
    (part,) = risk["parts"].values()
    accepted = margin > found.threshold
    assert part["coverage"] == accepted.mean()
    assert part["accepted"] == (accepted & eligible).sum() and part["errors"] == losses[accepted].sum()
    assert part["risk_bound"] == found.risk_bound <= alpha and part["reason"] == found.reason
    assert part["coverage_interval"] == list(found.coverage_interval or ())
    if loss == "error" and prior is not None:
        assert labels.mean() == pytest.approx(prior, abs=0.01)
    else:
        assert at.size == 400  # no prior in a rate of one class: every group counts
    told = {"error": ["wrong"], "fnr": ['answered "None"', 'labelled "Roadwork"'],
            "fpr": ['answered "Roadwork"', 'labelled "None"']}[loss]  # fmt: skip
    assert tells(risk["guarantee"], *told, f"{alpha:g}", "0.9", "groups")
    assert ("0.2" in risk["guarantee"]) == (loss == "error" and prior is not None)
    assert ("every share" in risk["guarantee"]) == (loss != "error")
    assert risk.get("prior") == ([0.2, 0.2] if loss == "error" and prior is not None else None)
    assert ("error_at_share" in risk) == (loss == "error")
    assert (tmp_path / "phase5_scrc" / "plots" / "risk_coverage.png").is_file()


def test_an_interval_of_priors_is_certified_at_both_of_its_ends(phase5: Run) -> None:
    """The error rate rises or falls with the prior, so the whole interval is promised; a slow count confirms it."""
    select, calib = _table("val_select", groups=900), _table("val_calib", separation=2.4, groups=3000, share=0.5)
    single, interval = (
        phase5(select, calib, 0.5, risk={"alpha": 0.06} | keys)[1] for keys in ({}, {"prior": [0.3, 0.8]})
    )
    assert interval["prior"] == [0.3, 0.8] and tells(interval["guarantee"], 'of "Roadwork" from 0.3 to 0.8')
    (part,), (alone,) = interval["parts"].values(), single["parts"].values()
    assert part["feasible"] and part["threshold"] > alone["threshold"]
    at = one_row_per_group(calib.groups, 0)
    labels, margin = calib.labels[at], np.abs(calib.logits[at] - THRESHOLD)
    wrong, accepted = (calib.logits[at] > THRESHOLD) != (labels == 1), margin > part["threshold"]
    assert part["rows"] == at.size and part["coverage"] == accepted.mean()
    ends = {}
    for share in (0.3, 0.8):
        kept = np.isin(np.arange(at.size), subsample_to_prior(labels, share, 0)) & accepted
        ends[int(kept.sum()), int(wrong[kept].sum())] = None
    assert (part["accepted"], part["errors"]) in ends
    for share, error in interval["error_at_share"].items():
        share = float(share)
        w = np.where(labels == 1, share / labels.mean(), (1 - share) / (1 - labels.mean())) * accepted
        assert error == pytest.approx(np.average(wrong, weights=w))
        assert error < 0.06 or not 0.3 <= share <= 0.8


def test_looks_are_counted_and_share_delta(phase5: Run) -> None:
    select, calib = _table("val_select"), _table("val_calib", separation=2.4)
    looks = [phase5(select, calib, risk=risk)[1] for risk in
             ({"alpha": 0.06}, {"alpha": 0.06}, {"alpha": 0.05}, {"alpha": 0.05, "min_coverage": 0.01})]  # fmt: skip
    assert [len(look["looks"]) for look in looks] == [1, 1, 2, 2]  # the same one again is no new look
    assert "certified" not in looks[0]["guarantee"] and tells(looks[2]["guarantee"], "2 times", "0.8")
    assert tells(looks[2]["guarantee"], "error at most 0.06; error at most 0.05)")
    other = LogitTable(Asked([f"o/{i}" for i in calib.ids], calib.groups, calib.labels), calib.logits, SHA)
    assert len(phase5(select, other, risk={"alpha": 0.07})[1]["looks"]) == 1  # other rows
    shared = phase5(select, calib, risk={"alpha": 0.06, "delta": 0.1, "looks": 4})[1]
    assert shared["looks"][-1]["delta"] == 0.025 and len(shared["looks"]) == 3 and shared["delta"] == 0.1
    (tight,), (loose,) = shared["parts"].values(), looks[0]["parts"].values()
    assert tight["coverage"] < loose["coverage"] and tells(shared["guarantee"], "3 times", "0.775")


def test_no_repeated_or_restored_phase_takes_a_look_back(phase5: Run, tmp_path: Path) -> None:
    select, calib = _table("val_select"), _table("val_calib", separation=2.4)
    phase5(select, calib, risk={"alpha": 0.06})
    phase5(select, calib, risk={"alpha": 0.07})
    shutil.rmtree(tmp_path / "phase5_scrc")  # what an older result that is brought back knows does not count
    assert len(phase5(select, calib, risk={"alpha": 0.06})[1]["looks"]) == 2
    other = LogitTable(Asked(select.ids, select.groups, select.labels), select.logits * 1.01, SHA)
    assert len(phase5(other, calib, risk={"alpha": 0.06})[1]["looks"]) == 3  # other rows choose the cuts and the start
    (tmp_path / "looks.json").unlink()  # the last result knows them
    assert len(phase5(other, calib, risk={"alpha": 0.08})[1]["looks"]) == 4
    looks = read_json(tmp_path / "looks.json")
    for damage in ("nonsense", json.dumps(looks | {"looks": []}), json.dumps(looks | {"looks": looks["looks"][:1]})):
        (tmp_path / "looks.json").write_text(damage, encoding="utf-8")
        refused(VerificationError, lambda: phase5(select, calib), tmp_path / "looks.json", "data.seed")


def test_groups_of_any_size_stand_for_a_prior(phase5: Run) -> None:
    labels = np.repeat([1, 0], [9000, 1500])
    groups = np.concatenate([np.repeat(np.arange(300), 30), 300 + np.arange(1500)])
    weights = SelectRows(np.zeros(10500), labels, labels, groups).weights(0.4)
    assert weights[labels == 1].sum() / weights.sum() == pytest.approx(0.4)
    assert np.ptp(np.bincount(groups, weights)[:300]) < 1e-12  # each group as much as another of its class


def test_the_share_that_is_promised_for_is_that_of_the_groups(phase5: Run) -> None:
    """Without a target prior. Groups of label 1 have many rows here, and one row of each counts."""
    many, few = _table("val_calib", groups=100, share=1.0), _table("val_calib", groups=500, share=0.0, seed=1)
    labels = np.concatenate([np.repeat(many.labels, 5), few.labels[::2]])
    logits = np.concatenate([np.repeat(many.logits, 5), few.logits[::2]])
    groups = np.concatenate([np.repeat(many.groups, 5), np.char.add("f", few.groups[::2])])
    calib = LogitTable(Asked([str(i) for i in range(labels.size)], groups, labels), logits, SHA)
    risk = phase5(_table("val_select"), calib, risk={"alpha": 0.1})[1]
    assert labels.mean() == pytest.approx(2 / 3, abs=0.01) and risk["feasible"]
    assert tells(risk["guarantee"], f"{100 / 600:.3g}") and "0.667" not in risk["guarantee"]


def test_calibration_groups_of_one_class_are_certified_and_nothing_is_said_of_other_shares(phase5: Run) -> None:
    calib = _table("val_calib", groups=600, share=0.0)
    risk = phase5(_table("val_select"), calib, risk={"alpha": 0.2})[1]
    assert risk["feasible"] and set(risk["error_at_share"].values()) == {None}


def test_where_no_groups_are_known_the_promise_is_about_rows_and_says_what_it_rests_on(phase5: Run) -> None:
    words = phase5(
        _table("val_select"), _table("val_calib", separation=2.4), group_by=None, risk={"alpha": 0.06, "delta": 0.1}
    )[1]["guarantee"]
    assert tells(words, "0.06", "0.9", "if rows are independent", "data.group_by") and "new group" not in words


def test_the_seed_draws_the_row_of_a_group(phase5: Run) -> None:
    select, calib = _table("val_select"), _table("val_calib", separation=2.4)
    rng = np.random.default_rng(0)
    loose = LogitTable(Asked(calib.ids, calib.groups, calib.labels), calib.logits + rng.normal(size=800), SHA)
    parts = [phase5(select, loose, seed=seed)[1]["parts"] for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize("keys", [{"alpha": 0.001}, {"min_coverage": 0.999}])
def test_where_nothing_can_be_promised_every_answer_is_accepted(keys: dict[str, float], phase5: Run) -> None:
    risk = phase5(_table("val_select"), _table("val_calib", separation=2.4), risk={"alpha": 0.06} | keys)[1]
    (part,) = risk["parts"].values()
    assert (risk["feasible"], risk["thresholds"], part["threshold"]) == (False, None, None)
    assert risk["guarantee"].startswith("none") and tells(risk["guarantee"], part["reason"])
    policy = Policy(THRESHOLD, SHA, SHA, promise=Promise(accept_above=risk["thresholds"], feasible=risk["feasible"]))
    assert policy.accepts(np.array([-9.0, THRESHOLD, 9.0]), np.zeros(3)).all()


@pytest.mark.parametrize(
    ("gone", "risk", "facts"),
    [
        ("val_select answers None", {"classwise": True}, ["val_select", "Roadwork"]),
        ("val_calib answers None", {"classwise": True}, ["decisions", 0]),
        ("no roadwork", {"loss": "fnr"}, [0]),
    ],
)
def test_where_a_class_or_an_answer_is_missing_nothing_is_promised(
    gone: str, risk: dict[str, Any], facts: list[object], phase5: Run, tmp_path: Path
) -> None:
    select, calib = _table("val_select"), _table("val_calib", separation=2.4)
    low = {name: LogitTable(Asked(t.ids, t.groups, t.labels), t.logits - 99, SHA) for name, t in
           {"val_select": select, "val_calib": calib}.items()}  # fmt: skip
    if gone == "no roadwork":
        calib = LogitTable(Asked(calib.ids, calib.groups, np.zeros_like(calib.labels)), calib.logits, SHA)
    select = low["val_select"] if gone.startswith("val_select") else select
    calib = low["val_calib"] if gone.startswith("val_calib") else calib
    found = phase5(select, calib, risk=risk)[1]
    assert (found["feasible"], found["thresholds"]) == (False, None)
    assert found["guarantee"].startswith("none") and tells(found["guarantee"], *facts)
    assert (tmp_path / "phase5_scrc" / "plots" / "risk_coverage.png").is_file()


@pytest.mark.parametrize("loss", ["error", "fnr", "fpr"])
def test_classwise_gives_each_answer_its_own_threshold(loss: str, phase5: Run) -> None:
    """`fnr` and `fpr` both mean the two rates together."""
    select, calib = _table("val_select", separation=2.0), _table("val_calib", separation=2.4, share=0.5)
    alpha = 0.1
    risk = phase5(select, calib, risk={"loss": loss, "alpha": alpha, "delta": 0.2, "classwise": True})[1]
    at = _chosen(calib, loss, None)
    decisions, margin = (calib.logits[at] > THRESHOLD).astype(int), np.abs(calib.logits[at] - THRESHOLD)
    found = fit_classwise_risk_control(
        margin, decisions, calib.labels[at], alpha, 0.2, "error" if loss == "error" else "rates",
        select=(np.abs(select.logits - THRESHOLD), select.logits > THRESHOLD, select.labels, np.full(800, 0.5)),
    )  # fmt: skip
    assert found.feasible and found.positive.threshold != found.negative.threshold
    assert risk["thresholds"] == {"Roadwork": found.positive.threshold, "None": found.negative.threshold}
    assert {name: part["coverage"] for name, part in risk["parts"].items()} == {
        "Roadwork": found.positive.coverage, "None": found.negative.coverage,
    }  # fmt: skip
    assert (risk["feasible"], risk["classwise"]) == (True, True)
    assert tells(risk["guarantee"], f"{alpha:g}", "0.8", "answer")


def test_classwise_is_not_feasible_where_one_answer_is_not(phase5: Run) -> None:
    calib = _table("val_calib", separation=2.4, share=0.02)  # next to no roadwork: few such answers, and half wrong
    risk = phase5(_table("val_select"), calib, risk={"alpha": 0.1, "classwise": True})[1]
    assert risk["parts"]["None"]["feasible"] and not risk["parts"]["Roadwork"]["feasible"]
    assert (risk["feasible"], risk["thresholds"]) == (False, None)
    assert "Roadwork: " in risk["guarantee"] and "None: " not in risk["guarantee"]


# The gate.


def test_a_learned_gate_ranks_the_answers(phase5: Run, tmp_path: Path) -> None:
    select, calib = _table("val_select"), _table("val_calib", separation=2.4)
    gate = Gate(4, 2)  # of the margin, and half as much of the first feature
    gate.standardise(gate_inputs(_features(select), select.logits, THRESHOLD))
    gate.load_state_dict(
        gate.state_dict()
        | {
            "layers.0.weight": torch.tensor([[0.0, 0, 0, 1], [1, 0, 0, 0]]), "layers.0.bias": torch.full((2,), 9.0),
            "layers.2.weight": torch.tensor([[1.0, 0.5]]), "layers.2.bias": torch.zeros(1),
        }
    )  # fmt: skip
    (tmp_path / "phase3_gate").mkdir()
    save_gate(tmp_path / "phase3_gate" / "gate.safetensors", gate)
    by_margin = phase5(select, calib)[1]  # phase 3 has not finished: what lies there is not its result
    assert by_margin["gate"] == "margin"
    (tmp_path / "phase3_gate" / "manifest.json").write_text("{}", encoding="utf-8")
    risk = phase5(select, calib)[1]
    assert risk["gate"] == "learned" and risk["thresholds"] != by_margin["thresholds"]
    scores = [gate.confidence(gate_inputs(_features(t), t.logits, THRESHOLD)) for t in (select, calib)]
    at = _chosen(calib, "error", None)
    wrong = (calib.logits[at] > THRESHOLD) != (calib.labels[at] == 1)
    seen = scores[0], *_seen(select, "error", None)[1:]
    found = fit_risk_control(scores[1][at], wrong, 0.05, 0.1, select=seen)
    assert found.feasible and found.coverage is not None and found.coverage < 1
    assert risk["thresholds"]["Roadwork"] == found.threshold
    assert risk["parts"]["every answer"]["coverage"] == found.coverage
    # Phase 3 has rated these rows by gates that had not seen them: the walk begins where those say.
    fair = np.random.default_rng(0).permutation(scores[0])
    write_cross_fitted(tmp_path / "phase3_gate", select.ids, fair)
    by_fair = phase5(select, calib)[1]
    seen = fair, *_seen(select, "error", None)[1:]
    found = fit_risk_control(scores[1][at], wrong, 0.05, 0.1, select=seen)
    part = by_fair["parts"]["every answer"]
    assert (part["threshold"], part["accepted"], part["needed"]) == (found.threshold, found.accepted, found.needed)
    write_cross_fitted(tmp_path / "phase3_gate", select.ids[::-1], fair)
    refused(VerificationError, lambda: phase5(select, calib), "phase 3 again")


# What phase 6 makes of it.


def _phase6(run: Path, sha256: str = SHA) -> tuple[Policy, Path | None]:
    model = run / "phase1_baseline" / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text('{"id2label": {"0": "None", "1": "Roadwork"}}', encoding="utf-8")
    context = PhaseContext(PHASES[6], parse_recipe({}), run, lambda: None)  # type: ignore[arg-type, return-value]
    return phase6_evaluate.make_policy(context, decision(run, THRESHOLD, sha256=sha256))


def test_the_policy_holds_what_was_fitted(phase5: Run, tmp_path: Path) -> None:
    assert _phase6(tmp_path)[0].calibration == Calibration("none")
    calibration, risk = phase5(_table("val_select"), _table("val_calib"), method="platt")
    assert _phase6(tmp_path)[0].promise.accept_above is None  # not finished, so not taken
    (tmp_path / "phase5_scrc" / "manifest.json").write_text("{}", encoding="utf-8")
    policy, gate = _phase6(tmp_path)
    assert gate is None and policy.gate == GateUse("margin")
    assert policy.calibration == Calibration("platt", calibration["slope"], calibration["intercept"])
    taken = to_json(policy.promise)
    assert taken.pop("looks") == len(risk["looks"]) == 1
    assert taken == {key: risk[key] for key in taken} and risk["feasible"]
    assert {"feasible", "guarantee", "thresholds", "alpha", "delta", "loss"} <= set(taken)


@pytest.mark.parametrize("other", ["candidate", "gate"])
def test_a_promise_about_another_candidate_or_gate_is_refused(other: str, phase5: Run, tmp_path: Path) -> None:
    phase5(_table("val_select"), _table("val_calib"))
    (tmp_path / "phase5_scrc" / "manifest.json").write_text("{}", encoding="utf-8")
    if other == "gate":  # one that was learned after phase 5 was run
        save_gate(tmp_path / "phase3_gate" / "gate.safetensors", Gate(4, 3))
        GateReport("learned", "correctness", SHA, 9, None, None, "it wins").write(tmp_path / "phase3_gate")
        (tmp_path / "phase3_gate" / "manifest.json").write_text("{}", encoding="utf-8")
    sha256 = "d" * 64 if other == "candidate" else SHA
    refused(RunError, lambda: _phase6(tmp_path, sha256), tmp_path / "phase5_scrc", "phase 5 again")


@pytest.mark.parametrize("prior", [None, 0.2])
@pytest.mark.parametrize("loss", ["error", "fnr", "fpr"])
def test_selective_figures_equal_a_slow_loop(loss: str, prior: float | None) -> None:
    table = _table("test", separation=1.5, groups=60)
    accepted = np.random.default_rng(1).random(len(table.ids)) < 0.3 + 0.4 * (table.logits > THRESHOLD)
    policy = Policy(THRESHOLD, SHA, SHA, promise=Promise(loss=loss, alpha=0.07))
    found = to_json(evaluate_selective(table, policy, accepted, prior, 100))
    assert found["promised"] == 0.07 and list(found["risks"]) == [loss]
    found["risk"] = found["risks"][loss]
    weights = prior_weights(table.labels, prior)

    def figures(times: np.ndarray) -> dict[str, float]:
        sums = dict.fromkeys(["all", "accepted", "counted", "lost", "1", "accepted 1", "0", "accepted 0"], 0.0)
        for i, label in enumerate(table.labels):
            w, answer = weights[i] * times[i], int(table.logits[i] > THRESHOLD)
            counts = {"error": True, "fnr": label == 1, "fpr": label == 0}[loss]
            sums["all"] += w
            sums[str(answer)] += w
            if accepted[i]:
                sums["accepted"] += w
                sums[f"accepted {answer}"] += w
                sums["counted"] += w * counts
                sums["lost"] += w * (counts and answer != label)
        return {
            "coverage": sums["accepted"] / sums["all"], "risk": sums["lost"] / sums["counted"],
            "coverage_yes": sums["accepted 1"] / sums["1"], "coverage_no": sums["accepted 0"] / sums["0"],
        }  # fmt: skip

    drawn = [row for chunk in group_weights(table.groups, table.labels, 100, 0) for row in chunk]
    resampled = [figures(row) for row in drawn]
    for name, value in figures(np.ones(len(table.ids))).items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12) and 0 < value < 1
        low, high = np.quantile([each[name] for each in resampled], [0.025, 0.975])
        assert found[name]["interval"] == pytest.approx([low, high], abs=1e-12)


@pytest.mark.parametrize("loss", ["error", "fnr", "fpr"])
def test_classwise_both_promised_risks_are_measured(loss: str) -> None:
    table = _table("test", separation=1.5, groups=60)
    accepted = np.random.default_rng(1).random(len(table.ids)) < 0.6
    policy = Policy(THRESHOLD, SHA, SHA, promise=Promise(loss=loss, alpha=0.07, classwise=True))
    risks = to_json(evaluate_selective(table, policy, accepted, None, 100))["risks"]
    answers = table.logits > THRESHOLD
    rows = list(zip(accepted, answers, table.labels, strict=True))
    expected = {}
    for name, truth in {"fnr": 1, "fpr": 0}.items():  # of the accepted of a class, the wrongly answered
        errors = [answer != label for accept, answer, label in rows if accept and label == truth]
        expected[name] = sum(errors) / len(errors)
    if loss == "error":  # of the accepted rows with an answer, those that are wrong
        expected = {}
        for name, given in {"error of Roadwork": 1, "error of None": 0}.items():
            errors = [answer != label for accept, answer, label in rows if accept and answer == given]
            expected[name] = sum(errors) / len(errors)
    assert {name: figure["value"] for name, figure in risks.items()} == pytest.approx(expected, abs=1e-12)
    assert all(0 < value < 1 for value in expected.values()) and len(set(expected.values())) == 2


def test_what_cannot_be_divided_is_null() -> None:
    table = _table("test", groups=10)
    policy = Policy(1e6, SHA, SHA, promise=Promise(loss="fnr", alpha=0.07))
    found = to_json(evaluate_selective(table, policy, np.zeros(20, bool), None, 100))
    assert found["coverage"]["value"] == 0
    for figure in (found["risks"]["fnr"], found["coverage_yes"]):
        assert figure == {"value": None, "interval": [None, None]}
    assert json.dumps(found, allow_nan=False)


def test_rates_are_those_of_the_decisions_where_probabilities_saturate() -> None:
    """At a small temperature both sides of the threshold have probability 1 in float64."""
    labels = np.array([0, 1] * 20)
    asked = Asked([str(i) for i in range(40)], np.array([f"g{i}" for i in range(40)]), labels)
    table = LogitTable(asked, np.where(labels == 1, 1.0, 0.9), SHA)
    policy = Policy(0.95, SHA, SHA, calibration=Calibration("temperature", 80.0))
    assert set(policy.probability(table.logits)) == {1.0}
    found = to_json(evaluate(table, policy, np.ones(40, bool), {}, None, 100, True))["as_found"]
    assert [found["metrics"][name] for name in ("mcc", "recall", "specificity", "tp", "fp")] == [1, 1, 1, 20, 0]
    assert found["intervals"]["mcc"][1] == 1 and "mcc" in found["exact"] and found["metrics"]["brier"] == 0.5
