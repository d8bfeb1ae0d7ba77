"""The detector sees planted collapses and leaves healthy trainings alone; the probes find what is there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import tiny_backbone
from facts import tells
from refusals import refused
from torch.utils.data import Dataset

from natix_hf.errors import RunError
from natix_hf.ssl.collapse import collapse_reason, feature_figures
from natix_hf.ssl.probe import backbone_features, probe_scores


def test_uniform_directions_have_spread_one_and_full_rank() -> None:
    features = np.random.default_rng(0).standard_normal((4000, 16))
    figures = feature_figures(features)
    assert figures["spread"] == pytest.approx(1.0, abs=0.01)
    assert figures["rank"] == pytest.approx(16, rel=0.01)
    assert collapse_reason(figures) is None


def test_features_that_are_no_numbers_say_so() -> None:
    bad = np.array([[1.0, np.nan], [0.0, 1.0]])
    refused(RunError, lambda: feature_figures(bad), "NaN", "phase4.learning_rate")


def test_equal_features_and_a_line_are_collapses() -> None:
    rng = np.random.default_rng(0)
    same = feature_figures(np.ones((50, 16)) + rng.normal(0, 1e-4, (50, 16)))
    assert tells(collapse_reason(same), "spread", f"{same['spread']:.4f}")
    assert feature_figures(np.ones((50, 16))) == {"spread": pytest.approx(0.0, abs=1e-9), "rank": 0.0}
    line = feature_figures(np.outer(rng.choice([-1.0, 1.0], 50), rng.standard_normal(16)))
    assert tells(collapse_reason(line), "rank", f"{line['rank']:.2f}")
    features = rng.standard_normal((100, 8))  # scale says nothing
    assert feature_figures(features * 1e-3) == pytest.approx(feature_figures(features), rel=1e-9)


def test_assignments() -> None:
    assert tells(collapse_reason({"target_entropy": 0.1, "usage_entropy": 0.0}), "prototype")
    assert tells(collapse_reason({"target_entropy": 0.9999, "usage_entropy": 1.0}), "log K")
    assert collapse_reason({"target_entropy": 0.5, "usage_entropy": 0.9}) is collapse_reason({"loss": 0.3}) is None


class _Pictures(Dataset[dict[str, torch.Tensor]]):
    """Pictures of one colour; label 1 is brighter."""

    labels = np.array([0, 1] * 30)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        noise = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(row))
        return {"pixel_values": noise + 2.0 * float(self.labels[row])}


@pytest.mark.parametrize("model_type", ["vit", "dinov2", "dinov2_with_registers"])
def test_features_are_cls_and_mean_patch_in_the_order_asked_for(model_type: str) -> None:
    backbone = tiny_backbone(model_type)
    features = backbone_features(backbone, _Pictures(), [5, 2, 7], batch_size=2)
    assert features.shape == (3, 64) and backbone.training
    with torch.no_grad():
        tokens = backbone.eval()(pixel_values=_Pictures()[2]["pixel_values"][None]).last_hidden_state[0]
    first = 1 + getattr(backbone.config, "num_register_tokens", 0)
    expected = torch.cat([tokens[0], tokens[first:].mean(dim=0)]).numpy()
    np.testing.assert_allclose(features[1], expected, atol=1e-5)


def test_probes_find_what_is_there_and_nothing_in_noise() -> None:
    pictures = _Pictures()
    features = backbone_features(tiny_backbone("dinov2"), pictures, range(60), batch_size=32)
    scores = probe_scores(features[:40], pictures.labels[:40], features[40:], pictures.labels[40:])
    assert scores["linear_auroc"] > 0.95 and scores["knn_auroc"] > 0.95
    shuffled = np.random.default_rng(0).permutation(400) % 2
    noise = np.random.default_rng(1).standard_normal((400, 8))
    blind = probe_scores(noise[:200], shuffled[:200], noise[200:], shuffled[200:])
    assert all(abs(score - 0.5) < 0.12 for score in blind.values()), blind
    assert not any(math.isnan(score) for score in blind.values())
