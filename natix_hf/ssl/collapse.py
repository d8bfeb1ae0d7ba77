"""Detect the collapse of self-supervised training, where every picture gets the same features."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch.nn.functional import normalize

from natix_hf.errors import RunError

# A healthy spread is about 1. Random backbones and short trainings stay above 0.1 (tests/ssl).
_LEAST_SPREAD = 0.02
_LEAST_RANK = 1.5
# Entropies below and above these shares of log K count as 0 and 1.
_NO_ENTROPY, _FULL_ENTROPY = 0.02, 0.995


def feature_figures(features: np.ndarray) -> dict[str, float]:
    """Compute the spread and the effective rank of features.

    `spread` is the standard deviation over pictures of the L2-normalised features, averaged over the dimensions and
    multiplied by sqrt(d) (Chen and He, arXiv:2011.10566). It is 1 for uniform directions. `rank` is the exponential of
    the entropy of the singular values of the centred features (RankMe, arXiv:2210.02885). Both are 0 if all pictures
    have the same features.

    Args:
        features: float [n, d], one row per picture.

    Returns:
        `spread` and `rank`.

    Raises:
        RunError: If a feature is NaN or infinite.
    """
    if not np.isfinite(features).all():
        raise RunError("the backbone answers NaN or infinity: lower phase4.learning_rate")
    values = features.astype(np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    directions = values / np.maximum(norms, 1e-12)
    spread = float(directions.std(axis=0).mean() * math.sqrt(values.shape[1]))
    singular = np.linalg.svd(directions - directions.mean(axis=0), compute_uv=False)
    total = singular.sum()
    if total < 1e-9:
        return {"spread": spread, "rank": 0.0}
    share = singular[singular > 0] / total
    return {"spread": spread, "rank": float(np.exp(-(share * np.log(share)).sum()))}


def feature_std(features: torch.Tensor) -> torch.Tensor:
    """Compute the spread of a batch of features: the `spread` of `feature_figures`, on any device.

    Args:
        features: float [n, d], without gradient.

    Returns:
        Scalar float32. It is about 1 for uniform directions and 0 if all features are the same.
    """
    directions = normalize(features.float(), dim=-1)
    return directions.std(dim=0, correction=0).mean() * math.sqrt(features.shape[-1])


def collapse_reason(figures: Mapping[str, float]) -> str | None:
    """Give the reason why training has collapsed, or None if it has not.

    Args:
        figures: Any of `spread` and `rank` of features (`feature_figures`), `target_entropy` (mean entropy of the
            teacher's targets) and `usage_entropy` (entropy of the mean target). The entropies are shares of log K.
    """
    spread, rank = figures.get("spread", math.inf), figures.get("rank", math.inf)
    if spread < _LEAST_SPREAD:
        return f"the features of different pictures agree (spread {spread:.4f}, 1 is healthy)"
    if rank < _LEAST_RANK:
        return f"the features lie on one line (effective rank {rank:.2f})"
    if figures.get("usage_entropy", 1.0) < _NO_ENTROPY:
        return "the teacher assigns every picture to the same prototype (entropy 0)"
    if figures.get("target_entropy", 0.0) > _FULL_ENTROPY:
        # Whatever the student does, the cross-entropy against flat targets cannot fall below log K.
        return "the teacher's targets are flat, so the loss is stuck at log K"
    return None
