"""The learned gate: a confidence for each answer, from the features of the frozen classifier and its logit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from natix_hf.models.gate_file import GATE, ReadGate, gate_inputs, gate_shapes, gate_tensors

__all__ = ["GATE", "Gate", "gate_inputs", "gate_shapes", "load_gate", "save_gate"]


class Gate(nn.Module):
    """A small MLP on standardised inputs: `features` float [n, d] -> {"logits": float [n]}.

    Args:
        width (`int`): d, the number of columns of [`gate_inputs`].
        hidden (`int`): Width of the hidden layer.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.layers((features - self.mean) / self.std).squeeze(-1)}

    def standardise(self, inputs: np.ndarray) -> None:
        """Set mean and standard deviation from the rows that the gate is trained on, float32 [n, d]."""
        self.mean.copy_(torch.from_numpy(inputs.mean(axis=0)))
        self.std.copy_(torch.from_numpy(inputs.std(axis=0) + 1e-6))

    def confidence(self, inputs: np.ndarray) -> np.ndarray:
        """Compute the confidence of each row, float64 [n], as the bundle will ([`ReadGate`]). It is a logit: a
        probability would saturate."""
        return ReadGate({name: tensor.cpu().numpy() for name, tensor in self.state_dict().items()}).confidence(inputs)


def save_gate(path: Path, gate: Gate) -> None:
    """Write a gate as a safetensors file."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in gate.state_dict().items()}, path)


def load_gate(path: Path) -> Gate:
    """Read a gate as a module, to train or to compare it. What answers is `read_gate`.

    Raises:
        [`VerificationError`]: the file is missing, damaged or not a gate.
    """
    tensors = gate_tensors(path)
    hidden, width = tensors["layers.0.weight"].shape
    gate = Gate(width, hidden)
    gate.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    gate.eval()
    return gate
