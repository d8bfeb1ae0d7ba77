"""Probes of a frozen backbone: a linear classifier and nearest neighbours on its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from natix_hf.models.architectures import prefix_tokens
from natix_hf.ssl.explora import plain_backbone

_NEIGHBOURS = 20


@torch.no_grad()
def backbone_features(
    backbone: nn.Module, views: Dataset[Any], rows: Sequence[int], batch_size: int, workers: int = 0
) -> np.ndarray:
    """Compute the features of some rows: the cls token, followed by the mean of the patch tokens.

    Args:
        backbone: A ViT, DINOv2 or DINOv3, or a PeftModel around one, on any device. Its mode is restored afterwards.
        views: Dataset whose items hold `pixel_values`, by row.
        rows: Rows to read.
        batch_size: Pictures per batch.
        workers: Processes that load pictures.

    Returns:
        float32 [n, 2 d].
    """
    inner = plain_backbone(backbone)
    training, device = inner.training, next(inner.parameters()).device
    found = []
    backbone.eval()
    try:
        for batch in DataLoader(views, sampler=list(rows), batch_size=batch_size, num_workers=workers):
            tokens = inner(pixel_values=batch["pixel_values"].to(device)).last_hidden_state.float()
            found.append(cls_and_mean_patch(tokens, inner.config).cpu().numpy())
    finally:
        backbone.train(training)
    return np.concatenate(found)


def cls_and_mean_patch(tokens: torch.Tensor, config: Any) -> torch.Tensor:
    """The features of pictures, [n, 2 d], from the tokens [n, tokens, d] of a backbone with this config."""
    return torch.cat([tokens[:, 0], tokens[:, prefix_tokens(config) :].mean(dim=1)], dim=1)


def probe_scores(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """Score a logistic regression and 20 nearest neighbours (by cosine) on features.

    Args:
        train, test: Features to fit on and to score on, float [n, d].
        train_labels, test_labels: Labels, 0 or 1.

    Returns:
        The AUROC on `test` as `linear_auroc` and `knn_auroc`.
    """
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    nearest = KNeighborsClassifier(min(_NEIGHBOURS, len(train)), metric="cosine")
    scores = {}
    for name, model in (("linear", linear), ("knn", nearest)):
        model.fit(train, train_labels)
        scores[f"{name}_auroc"] = float(roc_auc_score(test_labels, model.predict_proba(test)[:, 1]))
    return scores
