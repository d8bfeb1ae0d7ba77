"""The one way in which PEFT is put around a model here."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from torch import nn
from transformers import PreTrainedModel


def wrap_with_tuner(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """`get_peft_model` without the one warning of PEFT 0.21 under transformers 5.23 that is not about the caller."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def count_trainable(model: nn.Module) -> int:
    """How many numbers an optimizer would change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class Adapted(nn.Module):
    """A classifier in its PeftModel as a plain module, of which Trainer keeps what is trained.

    `pixel_values` float [n, 3, H, W] -> {"logits": float [n, 2]}, in training with AdaLoRA also its `penalty`.
    """

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model
        self._regularised = model.peft_config[model.active_adapter].peft_type == PeftType.ADALORA

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {"logits": self.model(pixel_values=pixel_values).logits}
        if self.training and self._regularised:
            outputs["penalty"] = orthogonality_penalty(self.model)
        return outputs

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """What Trainer calls for `activation_checkpointing: true`."""
        base: Any = self.model.get_base_model()
        base.activation_checkpointing_enable(**kwargs)


def orthogonality_penalty(model: PeftModel) -> torch.Tensor:
    """AdaLoRA's regulariser (arXiv 2303.10512, eq. 4), times `orth_reg_weight`: mean over the factors of
    ||P P^T - I||. PEFT adds it to a loss that the model itself computes, and here the Trainer computes it."""
    gaps = []
    for name, factor in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = factor @ factor.T if "lora_A" in name else factor.T @ factor
            gaps.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    weight: float = model.peft_config[model.active_adapter].orth_reg_weight  # type: ignore[attr-defined]
    return weight * torch.stack(gaps).mean()
