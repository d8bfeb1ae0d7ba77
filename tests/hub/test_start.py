"""A bundle on the Hub as the start of PROFIT: its policy is read wherever its weights are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import REPO
from local_hub import LocalHub
from refusals import refused

from natix_hf.bundle.policy import read_policy
from natix_hf.bundle.push import Published
from natix_hf.errors import UsageError
from natix_hf.labels import stored_names
from natix_hf.models.classifier import build_classifier, head_of
from natix_hf.models.config import ModelConfig
from natix_hf.trainers.converged import start_of_training


def test_the_threshold_of_a_bundle_on_the_hub_is_undone(
    published: Published, bundle: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can tell whether a cached classifier has a policy, it is no start: its head may be a folded one."""
    labels, policy = stored_names(bundle), read_policy(bundle / "policy.json")
    assert abs(policy.folded_shift) > 1e-4

    def weights(name: str, revision: str | None = None) -> torch.Tensor:
        config = ModelConfig(backbone=name, image_size=28, revision=revision)
        return torch.cat([p.flatten() for p in head_of(start_of_training(config, 0, labels, True)).parameters()])

    wanted = weights(str(bundle))
    folded = head_of(build_classifier(ModelConfig(backbone=REPO, image_size=28), 0, labels, keep_head=True))
    assert not torch.equal(folded.bias, wanted[-2:])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(UsageError, lambda: weights(REPO), "model.backbone", REPO, "policy.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert torch.equal(weights(REPO), wanted)
    hub.create("lab/plain", {path.name: path.read_bytes() for path in bundle.glob("*config.json")}
               | {"model.safetensors": (bundle / "model.safetensors").read_bytes()})  # fmt: skip
    plain = weights("lab/plain")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(weights(REPO), wanted) and torch.equal(weights("lab/plain"), plain)
    assert torch.equal(plain[-2:], folded.bias), "without a policy it goes on as it is"
