"""The image-classification head that transformers does not ship for DINOv3.

Importing this module registers it with `AutoModelForImageClassification`. The subnet's official miner lacks it, so it
cannot load a DINOv3 bundle.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageClassification, DINOv3ViTConfig, DINOv3ViTModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTPreTrainedModel


class DINOv3ViTForImageClassification(DINOv3ViTPreTrainedModel):
    """DINOv3 with a linear layer on [cls ; mean of the patch tokens], like `Dinov2ForImageClassification`."""

    base_model_prefix = "dinov3_vit"

    def __init__(self, config: DINOv3ViTConfig) -> None:
        super().__init__(config)
        self.dinov3_vit = DINOv3ViTModel(config)
        self.classifier = nn.Linear(2 * config.hidden_size, len(config.id2label or {}))
        self.post_init()  # type: ignore[no-untyped-call]  # inherited, so not covered by the exclusion

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Compute logits [n, num_labels] of `pixel_values` [n, 3, H, W], and the loss if `labels` are given."""
        outputs = self.dinov3_vit(pixel_values, **kwargs)
        tokens = outputs.last_hidden_state
        patches = tokens[:, 1 + self.config.num_register_tokens :]
        logits = self.classifier(torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1))
        loss = nn.functional.cross_entropy(logits, labels) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# Without exist_ok, register() silently does nothing for a config class that transformers ships.
AutoModelForImageClassification.register(DINOv3ViTConfig, DINOv3ViTForImageClassification, exist_ok=True)
