"""The decision policy: folded into a head, taken out again, and never taken on trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from natix_hf.bundle.policy import Policy, fold_into, read_policy, write_policy
from natix_hf.errors import VerificationError

POLICIES = [
    (0.0, 1.0), (0.7, 1.0), (-1.3, 2.5), (3.0, 0.4), (30.0, 1.7), (-45.0, 0.3), (200.0, 5.0),
]  # fmt: skip


def _policy(threshold: float, temperature: float = 1.0, **changed: Any) -> Policy:
    given = {"candidate_sha256": "a" * 64, "model_sha256": "b" * 64} | changed
    return Policy(threshold_logit=threshold, temperature=temperature, **given)


def _z(head: nn.Linear, features: torch.Tensor) -> np.ndarray:
    logits = head(features).detach().double().numpy()
    return logits[:, 1] - logits[:, 0]


@pytest.mark.parametrize("fold", ["decision", "none"])
@pytest.mark.parametrize(("threshold", "temperature"), POLICIES)
def test_fold_and_unfold(threshold: float, temperature: float, fold: Any) -> None:
    """In float64, so that what is measured is the arithmetic and not the rounding of a stored float32 bias."""
    torch.manual_seed(0)
    head = nn.Linear(16, 2).double()
    features = torch.randn(500, 16).double() * (1 + abs(threshold))
    policy = _policy(threshold, temperature, fold=fold)
    z = _z(head, features)
    fold_into(head, policy)
    folded = _z(head, features)
    expected = z / temperature - threshold / temperature if fold == "decision" else z
    np.testing.assert_allclose(folded, expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(policy.unfold(folded), z, atol=1e-6, rtol=0)
    clear = np.abs(z - threshold) > 1e-6
    assert 0 < (z > threshold).sum() < len(z)
    np.testing.assert_array_equal((folded > policy.folded_threshold)[clear], policy.decide(z)[clear])


@pytest.mark.parametrize(("threshold", "temperature"), [(0.0, 1.0), (0.7, 1.0), (-1.3, 2.5), (3.0, 0.4), (12.0, 1.7)])
def test_fold_in_float32(threshold: float, temperature: float) -> None:
    """What is stored is float32; within the logits that a classifier gives it still is exact to 1e-5."""
    torch.manual_seed(0)
    head = nn.Linear(16, 2)
    features = torch.randn(500, 16)
    policy = _policy(threshold, temperature)
    z = _z(head, features)
    fold_into(head, policy)
    np.testing.assert_allclose(policy.unfold(_z(head, features)), z, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("threshold", "temperature"), POLICIES)
def test_the_folded_cut_is_zero_and_strict(threshold: float, temperature: float) -> None:
    policy = _policy(threshold, temperature)
    assert policy.folded_threshold == 0.0
    assert not policy.decide(np.array([threshold]))[0]
    assert policy.decide(np.array([np.nextafter(threshold, np.inf)]))[0]
    plain = _policy(threshold, temperature, fold="none")
    assert (plain.folded_shift, plain.folded_temperature, plain.folded_threshold) == (0.0, 1.0, threshold)


def test_probabilities_do_not_overflow() -> None:
    probabilities = _policy(0.0, 0.01).probability(np.array([-1e6, -1.0, 0.0, 1.0, 1e6]))
    assert probabilities[[0, 2, 4]].tolist() == [0.0, 0.5, 1.0]
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize("policy", [_policy(0.123456789012345678, 1.7), _policy(-3.0, fold="none")])
def test_round_trip(policy: Policy, tmp_path: Path) -> None:
    write_policy(tmp_path / "policy.json", policy)
    assert read_policy(tmp_path / "policy.json") == policy


@pytest.mark.parametrize(
    "changed",
    [
        {"schema": 2}, {"schema": None}, {"temperature": 0.0}, {"temperature": -1.0}, {"temperature": "1"},
        {"temperature": None}, {"threshold_logit": float("nan")}, {"threshold_logit": float("inf")},
        {"threshold_logit": "0"}, {"threshold_logit": [0.0]}, {"fold": "all"}, {"fold": None}, {"folded_shift": 0.5},
        {"surprise": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_policy_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    write_policy(path, _policy(0.25, 2.0))
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")
    with pytest.raises(VerificationError, match=r"policy\.json"):
        read_policy(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{", '{"schema": 1}'])
def test_what_is_no_policy_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(text, encoding="utf-8")
    with pytest.raises(VerificationError, match=r"policy\.json"):
        read_policy(tmp_path / "policy.json")


@pytest.mark.parametrize("key", ["threshold_logit", "candidate_sha256", "model_sha256"])
def test_a_policy_that_lacks_a_key(key: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    write_policy(path, _policy(0.25))
    content = json.loads(path.read_text(encoding="utf-8"))
    del content[key]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(VerificationError, match="damaged"):
        read_policy(path)
