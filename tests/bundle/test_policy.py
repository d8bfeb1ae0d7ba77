"""The decision policy: folded into a head, taken out again, and never taken on trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refused
from torch import nn

from natix_hf.bundle.folding import fold_into, unfold
from natix_hf.bundle.policy import GateUse, Half, MadeFrom, Policy, read_policy, write_policy
from natix_hf.calibration import Calibration, Promise
from natix_hf.errors import VerificationError
from natix_hf.provenance.manifest import manifest_seal

NONE = Calibration("none")


def _written(path: Path, content: dict[str, Any]) -> None:
    """A file of these values, with a seal that fits them as far as they have one: what is refused is a value."""
    content = {key: value for key, value in content.items() if not (isinstance(value, str) and value == "absent")}
    if "seal" in content and "nan" not in json.dumps(content).lower() and "Infinity" not in json.dumps(content):
        content["seal"] = manifest_seal(content)
    path.write_text(json.dumps(content), encoding="utf-8")


POLICIES = [
    (0.0, NONE), (0.7, NONE), (-1.3, Calibration("temperature", 1 / 2.5)), (3.0, Calibration("temperature", 2.5)),
    (30.0, Calibration("temperature", 1 / 1.7)), (-45.0, Calibration("temperature", 1 / 0.3)),
    (200.0, Calibration("temperature", 0.2)), (0.7, Calibration("platt", 0.6, -0.8)),
    (-3.0, Calibration("platt", 2.2, 1.5)),
]  # fmt: skip


def _policy(threshold: float, calibration: Calibration = NONE, **changed: Any) -> Policy:
    given = {"candidate_sha256": "a" * 64, "model_sha256": "b" * 64} | changed
    return Policy(threshold_logit=threshold, calibration=calibration, **given)


def _z(head: nn.Linear, features: torch.Tensor) -> np.ndarray:
    logits = head(features).detach().double().numpy()
    return logits[:, 1] - logits[:, 0]


@pytest.mark.parametrize("fold", ["decision", "calibration", "none"])
@pytest.mark.parametrize(("threshold", "calibration"), POLICIES)
def test_fold_and_unfold(threshold: float, calibration: Calibration, fold: Any) -> None:
    """In float64, so that what is measured is the arithmetic and not the rounding of a stored float32 bias."""
    torch.manual_seed(0)
    head = nn.Linear(16, 2).double()
    features = torch.randn(500, 16).double() * (1 + abs(threshold))
    policy = _policy(threshold, calibration, fold=fold)
    z = _z(head, features)
    fold_into(head, policy)
    folded = _z(head, features)
    a, b = calibration.slope, calibration.intercept
    expected = {"decision": a * (z - threshold), "calibration": a * z + b, "none": z}[fold]
    np.testing.assert_allclose(folded, expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(policy.unfold(folded), z, atol=1e-6, rtol=0)
    clear = np.abs(z - threshold) > 1e-6
    assert 0 < (z > threshold).sum() < len(z)
    np.testing.assert_array_equal((folded > policy.folded_threshold)[clear], policy.decide(z)[clear])
    if fold == "calibration":
        np.testing.assert_allclose(1 / (1 + np.exp(-folded)), policy.probability(z), atol=1e-6)
    unfold(head, policy)
    np.testing.assert_allclose(_z(head, features), z, atol=1e-9, rtol=1e-12)


@pytest.mark.parametrize(
    ("threshold", "calibration"),
    [policy for policy in POLICIES if abs(policy[0]) < 5] + [(12.0, Calibration("temperature", 1 / 1.7))],
)
def test_fold_in_float32(threshold: float, calibration: Calibration) -> None:
    """What is stored is float32; within the logits that a classifier gives it still is exact to 1e-5."""
    torch.manual_seed(0)
    head = nn.Linear(16, 2)
    features = torch.randn(500, 16)
    policy = _policy(threshold, calibration)
    z = _z(head, features)
    fold_into(head, policy)
    np.testing.assert_allclose(policy.unfold(_z(head, features)), z, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("threshold", "calibration"), POLICIES)
def test_the_folded_cut_is_zero_and_strict(threshold: float, calibration: Calibration) -> None:
    policy = _policy(threshold, calibration)
    assert policy.folded_threshold == 0.0
    assert not policy.decide(np.array([threshold]))[0]
    assert policy.decide(np.array([np.nextafter(threshold, np.inf)]))[0]
    plain = _policy(threshold, calibration, fold="none")
    assert (plain.folded_shift, plain.folded_slope, plain.folded_threshold) == (0.0, 1.0, threshold)
    calibrated = _policy(threshold, calibration, fold="calibration")
    assert (calibrated.folded_slope, calibrated.folded_shift) == (calibration.slope, -calibration.intercept)
    assert calibrated.folded_threshold == calibration.slope * threshold + calibration.intercept


def test_answers_are_accepted_strictly_above_the_threshold_of_their_own_answer() -> None:
    z, confidence = np.array([3.0, 3.0, 3.0, -1.0, -1.0, -1.0]), np.array([1.9, 2.0, 2.1, 0.4, 0.5, 0.6])
    policy = _policy(0.0)
    assert policy.accepts(z, confidence).all()  # nothing promised, so nothing refused
    certified = _policy(0.0, promise=Promise(feasible=True, accept_above={"None": 0.5, "Roadwork": 2.0}))
    assert certified.accepts(z, confidence).tolist() == [False, False, True, False, False, True]


def test_probabilities_do_not_overflow() -> None:
    probabilities = _policy(0.0, Calibration("temperature", 100.0)).probability(np.array([-1e6, -1.0, 0.0, 1.0, 1e6]))
    assert probabilities[[0, 2, 4]].tolist() == [0.0, 0.5, 1.0]
    assert np.isfinite(probabilities).all()


CERTIFIED = Promise(True, "x", {"None": 0.1, "Roadwork": 0.7}, "error", 0.05, 0.1, True)
MADE = MadeFrom("resnet", True, True, 1e-7, True, 3, 0.25, Half(20, 4), Half(30, 5))
FOREIGN = {"candidate_sha256": None, "model_sha256": None, "fold": "none", "made_from": MADE}


@pytest.mark.parametrize(
    "policy",
    [
        _policy(0.123456789012345678, Calibration("temperature", 1 / 1.7)), _policy(-3.0, fold="none"),
        _policy(0.1, Calibration("platt", 1 / 3, 0.1), fold="calibration", promise=CERTIFIED),
        _policy(0.1, gate=GateUse("learned", "confidnet", "c" * 64)),
        _policy(0.1, **FOREIGN),
        _policy(0.1, promise=Promise(
            True, "x", {"None": 0.1, "Roadwork": 0.1}, "error", 0.05, 0.1, False, (0.2, 0.2), 7)),
        _policy(0.1, promise=Promise(False, "x", None, "fnr", 0.05, 0.1, True)),
    ],
)  # fmt: skip
def test_round_trip(policy: Policy, tmp_path: Path) -> None:
    write_policy(tmp_path / "policy.json", policy)
    assert read_policy(tmp_path / "policy.json") == policy


@pytest.mark.parametrize("schema", [2, 3, 4])
def test_an_older_policy_is_read(schema: int, tmp_path: Path) -> None:
    write_policy(tmp_path / "policy.json", _policy(0.25, promise=CERTIFIED))
    content = json.loads((tmp_path / "policy.json").read_text(encoding="utf-8")) | {"schema": schema}
    _written(tmp_path / "policy.json", content | {"seal": "absent"})
    assert read_policy(tmp_path / "policy.json") == _policy(0.25, promise=CERTIFIED)


SETTINGS = {"feasible": True, "guarantee": "x", "loss": "error", "alpha": 0.05, "delta": 0.1, "classwise": True}


@pytest.mark.parametrize(
    "changed",
    [
        {"schema": 1}, {"schema": 6}, {"schema": None}, {"schema": 5.0}, {"schema": True}, {"schema": [5]},
        {"schema": 4}, {"config_sha256": "a" * 64}, {"processor_sha256": "a" * 64},
        {"temperature": 1.0}, {"calibration": None},
        {"calibration": 0.5},
        *({"calibration": {"method": "temperature", "slope": slope, "intercept": 0.0}}
          for slope in (0.0, -1.0, "1", None, float("inf"), float("nan"))),
        {"calibration": {"method": "temperature", "slope": 0.5, "intercept": 0.1}}, {"calibration": {"slope": 0.5}},
        {"calibration": {"method": "other", "slope": 0.5, "intercept": 0.0}},
        *({"risk_control": SETTINGS | {"thresholds": thresholds}} for thresholds in (
            {"None": 0.1}, {"None": 0.1, "Roadwork": float("nan")}, {"None": 0.1, "Roadwork": None}, [0.1, 0.2], 0.5,
            {"None": 0.1, "Roadwork": 0.1, "Other": 0.1})),
        {"risk_control": None}, {"gate": None}, {"gate": {}}, {"gate": {"kind": "x"}}, {"gate": {"kind": "learned"}},
        {"threshold_logit": float("nan")}, {"threshold_logit": float("inf")},
        {"threshold_logit": "0"}, {"threshold_logit": [0.0]}, {"fold": "all"}, {"fold": None}, {"folded_shift": 0.5},
        {"fold": "all", "folded_shift": 0.0}, {"surprise": 1}, *({key: "absent"} for key in (
            "threshold_logit", "candidate_sha256", "model_sha256", "calibration")),
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_policy_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    write_policy(path, _policy(0.25, Calibration("temperature", 0.5)))
    content = json.loads(path.read_text(encoding="utf-8")) | changed
    _written(path, content)
    with refused(VerificationError, "policy.json"):
        read_policy(path)


NAN, HUGE = float("nan"), 10**400
CUTS = {"None": 0.1, "Roadwork": 0.7}


def _edited(folder: Path, policy: Policy, part: str, changed: dict[str, Any]) -> Path:
    """A file of this policy in which somebody changed values of one part, or of the whole."""
    path = folder / "policy.json"
    write_policy(path, policy)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert read_policy(path) == policy
    (content[part] if part else content).update(changed)
    _written(path, content)
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {"thresholds": None}, {"feasible": False}, {"loss": None}, {"alpha": None}, {"delta": None},
        {"classwise": None}, {"classwise": False}, {"prior": [0.9, 0.1]}, {"prior": [NAN, NAN]}, {"prior": [0.0, 0.5]},
        {"prior": [0.5, 1.0]}, {"prior": [0.5]}, {"prior": [0.2, 0.3], "loss": "fnr"}, {"looks": 0}, {"looks": -3},
        {"looks": 1.0}, {"loss": None, "thresholds": None, "feasible": False},
        *({share: value} for share in ("alpha", "delta") for value in (0, 1, -1.0, 7.0, NAN, HUGE, True)),
        {"thresholds": CUTS | {"None": HUGE}}, {"thresholds": CUTS | {"None": float("inf")}},
    ],
    ids=lambda changed: str(changed)[:60],
)  # fmt: skip
def test_a_promise_that_no_version_has_written_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    path = _edited(tmp_path, _policy(0.25, promise=CERTIFIED), "risk_control", changed)
    off = any(word in str(changed) for word in ("nan", "inf", str(HUGE)))
    with refused(VerificationError, "policy.json", "damaged" if off else "risk_control"):
        read_policy(path)


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        *(("", {"schema": schema, "seal": "absent"}) for schema in (2, 3)), ("", {"config_sha256": "a" * 64}),
        ("", {"fold": "decision"}), ("", {"fold": "calibration"}),
        ("", {"model_sha256": "a" * 64}), ("", {"candidate_sha256": "a" * 64}), ("", {"made_from": "absent"}),
        ("", {"gate": {"kind": "learned", "sha256": "a" * 64}}), ("", {"onnx": {"sha256": "a", "max_difference": 0}}),
        ("", {"fold": "decision", "folded_shift": "absent"}),
        *(("made_from", {"share": share}) for share in (-0.1, 5.0, NAN, HUGE)),
        *(("made_from", {"epsilon": epsilon}) for epsilon in (0, 0.5, -1.0, NAN)), ("made_from", {"seed": -1}),
        *(("made_from", {half: {"rows": rows, "groups": groups}}) for half in ("fitting", "certifying")
          for rows, groups in ((-1, 1), (1, -1), (0, 0), (4, 5))),
        ("made_from", {"said": False}), ("made_from", {"model": 5}),
    ],
    ids=lambda changed: str(changed)[:60],
)  # fmt: skip
def test_answers_that_a_policy_cannot_be_made_from_are_refused(part: str, changed: Any, tmp_path: Path) -> None:
    path = _edited(tmp_path, _policy(0.25, **FOREIGN), part, changed)
    with refused(VerificationError, "policy.json"):
        read_policy(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"candidate_sha256": None}, {"model_sha256": None}, {"threshold_logit": HUGE},
        {"calibration": {"method": "temperature", "slope": HUGE, "intercept": 0.0}},
        {"calibration": {"method": "temperature", "slope": 1e308, "intercept": 0.0}, "folded_shift": "absent",
         "threshold_logit": 1e9},
    ],
    ids=lambda changed: str(changed)[:60],
)  # fmt: skip
def test_a_bundle_that_is_named_by_half_or_a_number_off_the_scale_is_refused(changed: Any, tmp_path: Path) -> None:
    path = _edited(tmp_path, _policy(0.25, Calibration("temperature", 0.5)), "", changed)
    with refused(VerificationError, "policy.json"):
        read_policy(path)


def test_a_mark_that_an_editor_put_before_the_text_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    write_policy(path, _policy(0.25, promise=CERTIFIED))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_policy(path) == _policy(0.25, promise=CERTIFIED)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{", '{"schema": 2}'])
def test_what_is_no_policy_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(text, encoding="utf-8")
    with refused(VerificationError, "policy.json"):
        read_policy(tmp_path / "policy.json")


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("", {"threshold_logit": 0.26}), ("", {"fold": "none", "folded_shift": 0.0}), ("", {"seal": "absent"}),
        ("risk_control", {"thresholds": {"None": 0.1, "Roadwork": 0.69}}), ("risk_control", {"guarantee": "y"}),
        ("calibration", {"slope": 0.51}), ("", {"labels": {"no": "None", "yes": "Works"}}),
    ],
    ids=lambda changed: str(changed)[:60],
)  # fmt: skip
def test_an_edit_without_its_seal_is_noticed(part: str, changed: dict[str, Any], tmp_path: Path) -> None:
    """Of a file of this version. Where nothing is folded, no other file would tell that a threshold was moved."""
    policy = _policy(0.25, Calibration("temperature", 0.5), fold="calibration", promise=CERTIFIED)
    path = _edited(tmp_path, policy, part, changed)
    stale = json.loads(path.read_text(encoding="utf-8"))
    if "seal" in stale and "seal" not in changed:
        write_policy(path, policy)
        stale["seal"] = json.loads(path.read_text(encoding="utf-8"))["seal"]
        path.write_text(json.dumps(stale), encoding="utf-8")
    with refused(VerificationError, "policy.json", "seal"):
        read_policy(path)
