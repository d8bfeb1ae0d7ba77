"""A bundle with calibration, a promise and a gate: what it answers is what its policy.json says, and it is told."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import describe, edit, read
from conftest import TINY_RECIPE, refused, write_parquet_source, write_recipe
from PIL import Image

from natix_hf.bundle.contents import bundle_problems
from natix_hf.bundle.load import load_bundle
from natix_hf.errors import UsageError, VerificationError
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import describe_files, file_sha256, list_files, write_json
from natix_hf.provenance.manifest import manifest_digest, manifest_seal
from natix_hf.results import gate as gate_results
from natix_hf.results.logits import LogitTable, read_logits
from natix_hf.runs.verify import find_problems

BUNDLE = Path("phase6_export") / "bundle"


def _run(folder: Path, phases: list[int], **sections: Any) -> Path:
    """The pictures of every fifth group are misleading, so some answers are wrong."""
    source = folder / "source"
    if not source.exists():
        write_parquet_source(source, groups=200, frames=2, official_test=60, positive_share=0.4, seed=3, unclear=5)
    content = {
        **TINY_RECIPE,
        "data": {**TINY_RECIPE["data"], "source": str(source), "target_prior": 0.5},
        "phase1": {**TINY_RECIPE["phase1"], "num_train_epochs": 1},
        "phase6": {"n_resamples": 100},
    }
    content |= {name: content.get(name, {}) | section for name, section in sections.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(folder / "cache"))
        return run_recipe(str(write_recipe(folder / "promise.yaml", content)), phases, folder / "run")


@pytest.fixture(scope="session")
def margin_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temperature, one threshold for all answers, and no gate."""
    folder = tmp_path_factory.mktemp("margin")
    return _run(folder, [1, 2, 5, 6], phase5={"risk": {"alpha": 0.15, "delta": 0.3}})


CLASSWISE: dict[str, Any] = {
    "phase3": {"num_train_epochs": 40, "learning_rate": 5e-3},
    "phase5": {"method": "platt", "risk": {"alpha": 0.15, "delta": 0.6, "classwise": True}},
    "phase6": {"fold": "calibration"},
}


CONFORMAL: dict[str, Any] = {"method": "conformal", "alpha": 0.5, "per_device_train_batch_size": 16}


def _gate_run(margin_run: Path, folder: Path, **phase3: Any) -> Path:
    """The same candidate with a learned gate (which wins by decree), Platt, and a threshold for each answer."""
    shutil.copytree(margin_run.parent, folder, dirs_exist_ok=True)
    won = {"a": 0.2, "b": 0.1, "difference": -0.1, "low": -0.2, "high": -0.05}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_results, "paired_selective_difference", lambda *args: {"aurc": won, "augrc": won})
        patch.setattr(gate_results, "paired_difference_at_fnr", lambda *args: {"cost": won})
        # there are three groups a class
        patch.setattr(gate_results, "paired_bounds", lambda low, high, *rows: (low, high, None))
        return _run(folder, [3, 5, 6], **CLASSWISE | {"phase3": CLASSWISE["phase3"] | phase3})


@pytest.fixture(scope="session")
def gate_run(margin_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _gate_run(margin_run, tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="session")
def conformal_run(margin_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _gate_run(margin_run, tmp_path_factory.mktemp("conformal"), **CONFORMAL)


@pytest.fixture(params=["margin_run", "gate_run", "conformal_run"])
def promised_run(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def _table(run: Path) -> LogitTable:
    sha256 = file_sha256(run / "phase1_baseline" / "model" / "model.safetensors")
    return read_logits(run / "phase6_export" / "logits" / "test.parquet", sha256)


def _images(run: Path) -> list[Image.Image]:
    import pyarrow.parquet as pq

    cells = pq.read_table(next((run.parent / "source" / "data").glob("test-*.parquet")))["image"].to_pylist()
    return [Image.open(io.BytesIO(cells[int(row_id.split("/")[1])]["bytes"])) for row_id in _table(run).ids]


def _confidence(run: Path) -> np.ndarray:
    """By hand: the margin, or the gate's layers on the features of the plain candidate."""
    table, policy = _table(run), read(run / BUNDLE / "policy.json")
    distance = table.logits - policy["threshold_logit"]
    if policy["gate"]["kind"] == "margin":
        return np.asarray(np.abs(distance))
    import torch
    from safetensors.torch import load_file

    from natix_hf.bundle.inference import ImageList, Inference
    from natix_hf.models.classifier import head_of

    seen: list[Any] = []
    plain = Inference(run / "phase1_baseline" / "model", "cpu")
    head_of(plain.model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain.logits(ImageList(_images(run), plain.preprocess), batch_size=50)
    gate = {name: tensor.double() for name, tensor in load_file(run / BUNDLE / "gate.safetensors").items()}
    x = torch.cat([torch.cat(seen).double(), torch.tensor(np.stack([distance, np.abs(distance)], axis=1))], dim=1)
    x = (x - gate["mean"]) / gate["std"]
    hidden = torch.clamp(x @ gate["layers.0.weight"].T + gate["layers.0.bias"], min=0)
    return np.asarray((hidden @ gate["layers.2.weight"].T + gate["layers.2.bias"])[:, 0].numpy())


def _accepted(run: Path) -> np.ndarray:
    policy, z, confidence = read(run / BUNDLE / "policy.json"), _table(run).logits, _confidence(run)
    thresholds = policy["risk_control"]["thresholds"]
    answers = ["Roadwork" if value > policy["threshold_logit"] else "None" for value in z]
    margins = np.array([confidence[i] - thresholds[answer] for i, answer in enumerate(answers)])
    assert np.abs(margins).min() > 1e-5  # else rounding could decide
    return margins > 0


# What it answers.


def test_predictions_are_what_the_policy_says(promised_run: Path) -> None:
    """Computed from policy.json, the gate's file and the stored logits, without the classes that `predict` uses."""
    policy, table = read(promised_run / BUNDLE / "policy.json"), _table(promised_run)
    accepted = _accepted(promised_run)
    found = load_bundle(promised_run).predict(_images(promised_run), batch_size=17)
    a, b = policy["calibration"]["slope"], policy["calibration"]["intercept"]
    assert a != 1
    np.testing.assert_allclose([p.probability for p in found], 1 / (1 + np.exp(-(a * table.logits + b))), atol=1e-5)
    positive = table.logits > policy["threshold_logit"]
    assert [p.label for p in found] == ["Roadwork" if yes else "None" for yes in positive]
    assert [p.accepted for p in found] == accepted.tolist()
    assert [p.decision for p in found] == [p.label if p.accepted else "abstain" for p in found]
    assert {p.decision for p in found} >= {"Roadwork", "abstain"}


def _but_the_planted_verdict(run: Path) -> list[str]:
    """The problems of a run, but for the one that these runs have: their gate wins by planted figures, which do not
    follow from the stored confidences."""
    problems = find_problems(str(run))
    planted = [problem for problem in problems if "gate.json does not follow" in problem]
    assert len(planted) == int((run / "phase3_gate" / "gate.safetensors").is_file())
    return [problem for problem in problems if problem not in planted]


def test_a_conformal_gate_is_named(conformal_run: Path, gate_run: Path) -> None:
    policy = read(conformal_run / BUNDLE / "policy.json")
    sha256 = file_sha256(conformal_run / "phase3_gate" / "gate.safetensors")
    assert policy["gate"] == {"kind": "learned", "method": "conformal", "sha256": sha256}
    assert sha256 != file_sha256(gate_run / BUNDLE / "gate.safetensors")
    assert _but_the_planted_verdict(conformal_run) == [] and bundle_problems(conformal_run / BUNDLE) == []


def test_the_two_runs_are_what_they_claim(margin_run: Path, gate_run: Path) -> None:
    one, two = (read(run / BUNDLE / "policy.json") for run in (margin_run, gate_run))
    assert (one["gate"], one["calibration"]["method"], one["fold"]) == ({"kind": "margin"}, "temperature", "decision")
    assert (two["calibration"]["method"], two["fold"]) == ("platt", "calibration")
    assert two["calibration"]["intercept"] != 0
    sha256 = file_sha256(gate_run / "phase3_gate" / "gate.safetensors")
    assert two["gate"] == {"kind": "learned", "method": "correctness", "sha256": sha256}
    assert file_sha256(gate_run / BUNDLE / "gate.safetensors") == sha256
    assert not (margin_run / BUNDLE / "gate.safetensors").exists()
    assert len(set(one["risk_control"]["thresholds"].values())) == 1
    assert len(set(two["risk_control"]["thresholds"].values())) == 2
    for run in (margin_run, gate_run):
        assert _but_the_planted_verdict(run) == [] and bundle_problems(run / BUNDLE) == []


def test_a_stock_pipeline_follows_the_fold(promised_run: Path) -> None:
    """`decision`: cut at .5 it decides as phase 2 fitted. `calibration`: it scores the calibrated probability."""
    from transformers import pipeline

    policy, table = read(promised_run / BUNDLE / "policy.json"), _table(promised_run)
    squares = [image.crop((3, 0, 33, 30)) for image in _images(promised_run)]
    answers = pipeline("image-classification", model=str(promised_run / BUNDLE))(squares)
    scores = np.array([next(a["score"] for a in answer if a["label"] == "Roadwork") for answer in answers])
    threshold = read(promised_run / "phase2_threshold" / "threshold.json")["threshold_logit"]
    a, b = policy["calibration"]["slope"], policy["calibration"]["intercept"]
    if policy["fold"] == "decision":
        np.testing.assert_array_equal(scores > 0.5, table.logits > threshold)
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-a * (table.logits - threshold))), atol=1e-5)
        assert abs(a * threshold) > 0.01, "the scores show the threshold"
    else:
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-(a * table.logits + b))), atol=1e-5)
        np.testing.assert_array_equal(scores > 1 / (1 + np.exp(-(a * threshold + b))), table.logits > threshold)


# What it says of itself.


def test_the_selective_figures_of_test_are_those_of_its_answers(promised_run: Path) -> None:
    """At the target prior, from what is accepted by hand."""
    table, accepted = _table(promised_run), _accepted(promised_run)
    evaluation, policy = read(promised_run / BUNDLE / "evaluation.json"), read(promised_run / BUNDLE / "policy.json")
    positive = table.logits > policy["threshold_logit"]
    wrong = positive != (table.labels == 1)
    share = table.labels.mean()
    w = np.where(table.labels == 1, 0.5 / share, 0.5 / (1 - share))
    expected = {
        "coverage": w[accepted].sum() / w.sum(),
        "coverage_yes": w[accepted & positive].sum() / w[positive].sum(),
        "coverage_no": w[accepted & ~positive].sum() / w[~positive].sum(),
    }
    assert 0 < expected["coverage"] < 1
    found = evaluation["selective"]
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12)
    answers = {"error": np.ones_like(accepted)}
    if policy["risk_control"]["classwise"]:
        answers = {"error of Roadwork": positive, "error of None": ~positive}
    risks = {name: w[accepted & wrong & a].sum() / w[accepted & a].sum() for name, a in answers.items()}
    assert {name: figure["value"] for name, figure in found["risks"].items()} == pytest.approx(risks, abs=1e-12)
    assert found["promised"] == policy["risk_control"]["alpha"]
    slices = evaluation["slices"]["scene_level_tags.weather"]
    counts = [row["coverage"] * row["n"] for row in slices.values()]
    assert sum(counts) == pytest.approx(accepted.sum()) and len(counts) == 2


def test_the_card_tells_the_promise(promised_run: Path) -> None:
    card = (promised_run / BUNDLE / "README.md").read_text(encoding="utf-8")
    policy, evaluation = (read(promised_run / BUNDLE / f"{name}.json") for name in ("policy", "evaluation"))
    promise = policy["risk_control"]
    assert promise["feasible"] and promise["guarantee"] in card
    assert str(promise["alpha"]) in card and str(1 - promise["delta"]) in card
    selective = evaluation["selective"]
    for figure in (selective["coverage"], *selective["risks"].values()):
        low, high = figure["interval"]
        assert f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]" in card
    learned = policy["gate"]["kind"] == "learned"
    assert (policy["gate"].get("method", "correctness") in card) == learned
    assert ("Platt" in card) == learned and ("temperature" in card) == (not learned)
    for plot in ("reliability_before", "reliability_after", "risk_coverage"):
        assert f"(plots/{plot}.png)" in card and (promised_run / BUNDLE / "plots" / f"{plot}.png").is_file()
    body = card.split("---\n", 2)[2]
    assert all(word not in body for word in ("{{", "{%", "Undefined", "nan"))


def test_without_a_promise_the_card_says_so(margin_run: Path, tmp_path: Path) -> None:
    shutil.copytree(margin_run.parent, tmp_path, dirs_exist_ok=True)
    run = _run(tmp_path, [5, 6], phase5={"risk": {"alpha": 0.001}})
    card = (run / BUNDLE / "README.md").read_text(encoding="utf-8")
    promise = read(run / BUNDLE / "policy.json")["risk_control"]
    assert not promise["feasible"] and promise["guarantee"] in card and "| nothing |" in card
    assert all(p.accepted and p.decision == p.label for p in load_bundle(run).predict(_images(run)))
    assert read(run / BUNDLE / "evaluation.json")["selective"]["coverage"]["value"] == 1


# Damage, and what belongs to something else.


@pytest.mark.parametrize("damage", ["flip", "missing", "other gate"])
def test_a_tampered_gate_is_refused(damage: str, gate_run: Path, tmp_path: Path) -> None:
    from natix_hf.models.gate import load_gate, save_gate

    bundle = Path(shutil.copytree(gate_run / BUNDLE, tmp_path / "bundle"))
    path = bundle / "gate.safetensors"
    gate = load_gate(path)
    if damage == "flip":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "missing":
        path.unlink()
    else:
        gate.mean += 1
        save_gate(path, gate)
    assert any("gate.safetensors" in problem for problem in bundle_problems(bundle))
    assert any("gate.safetensors" in problem for problem in find_problems(str(bundle)))
    with refused(VerificationError, "gate.safetensors"):
        load_bundle(bundle)
    describe(bundle)  # even then, and even unverified: the policy knows its gate
    for verify in (True, False):
        with refused(VerificationError, "gate.safetensors"):
            load_bundle(bundle, verify=verify)


def _redescribe(run: Path) -> None:
    """Every checksum of the bundle and of phase 6 made anew: only meaning is left to check."""
    describe(run / BUNDLE)
    folder = run / "phase6_export"
    manifest = read(folder / "manifest.json")
    manifest["files"] = describe_files(folder, (name for name in list_files(folder) if name != "manifest.json"))
    manifest["digest"] = manifest_digest(manifest)
    manifest["seal"] = manifest_seal(manifest)
    write_json(folder / "manifest.json", manifest)


PLATT = {"method": "platt", "slope": 0.7, "intercept": 0.1}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"calibration": PLATT, "fold": "none"}, ("calibration", "phase5_scrc")),
        ({"risk_control": {"alpha": 0.01}}, ("promise", "phase5_scrc")),
        ({"risk_control": {"thresholds": {"None": -99.0, "Roadwork": -99.0}}}, ("promise", "phase5_scrc")),
        ({"gate": {"kind": "margin"}}, ("policy.json", "gate.safetensors")),
        ({"gate": {"kind": "margin"}, "and no file": {}}, ("policy.json", "gate", "phase3_gate")),
        ({"gate": {"sha256": "0" * 64}}, ("policy.json", "gate.safetensors")),
    ],
    ids=str,
)
def test_a_policy_other_than_the_phases_fitted_is_found(
    change: dict[str, Any], told: tuple[str, ...] | None, gate_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(gate_run, tmp_path / "run"))
    policy = read(run / BUNDLE / "policy.json")
    if "and no file" in change:
        change = {key: value for key, value in change.items() if value}
        (run / BUNDLE / "gate.safetensors").unlink()
    for key, value in change.items():
        policy[key] = policy[key] | value if key == "risk_control" or "sha256" in value else value
    policy.pop("folded_shift")
    write_json(run / BUNDLE / "policy.json", policy)
    edit(run / BUNDLE / "policy.json")
    _redescribe(run)
    problems = find_problems(str(run))
    told_by = [problem for problem in problems if all(fact in problem for fact in told or ())]
    assert (_but_the_planted_verdict(run) == []) if told is None else told_by, problems


def test_a_promise_about_another_champion_is_refused(margin_run: Path, tmp_path: Path) -> None:
    """After a new phase 1 and 2 the calibration and promise of phase 5 are stale: nothing is exported with them."""
    shutil.copytree(margin_run.parent, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "run" / BUNDLE / "policy.json").read_bytes()
    sections: dict[str, Any] = {"phase1": {"seed": 7}, "phase5": {"risk": {"alpha": 0.15, "delta": 0.3}}}
    run = _run(tmp_path, [1, 2], **sections)
    with refused(UsageError, "phase 6", "phase 5"):
        _run(tmp_path, [6], **sections)
    assert (run / BUNDLE / "policy.json").read_bytes() == before
    _run(tmp_path, [5, 6], **sections)
    assert (run / BUNDLE / "policy.json").read_bytes() != before
    assert find_problems(str(run)) == []
