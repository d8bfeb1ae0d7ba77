"""The one place where PEFT is put around a model."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from torch import nn
from transformers import PreTrainedModel


def wrap_with_tuner(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Call `get_peft_model` without the warning of PEFT 0.21 under transformers 5.23 that the caller cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def count_trainable(model: nn.Module) -> int:
    """Count the trainable parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class Adapted(nn.Module):
    """A classifier in its PeftModel as a plain module, so that a checkpoint holds the trained tensors only.

    `pixel_values` float [n, 3, H, W] -> {"logits": float [n, 2]}; in training with AdaLoRA also `penalty`, a scalar.

    Args:
        model (`PeftModel`): As [`add_adapter`] returns it.
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
        """Pass on what Trainer calls for `activation_checkpointing: true`."""
        base: Any = self.model.get_base_model()
        base.activation_checkpointing_enable(**kwargs)


def orthogonality_penalty(model: PeftModel) -> torch.Tensor:
    """Compute AdaLoRA's regulariser (arXiv 2303.10512, eq. 4): the mean of ||P P^T - I|| over the factors.

    It is multiplied by `orth_reg_weight`. PEFT adds it only to a loss that the model computes itself; here the Trainer
    computes the loss.
    """
    gaps = []
    for name, factor in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = factor @ factor.T if "lora_A" in name else factor.T @ factor
            gaps.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    weight: float = model.peft_config[model.active_adapter].orth_reg_weight  # type: ignore[attr-defined]
    return weight * torch.stack(gaps).mean()
