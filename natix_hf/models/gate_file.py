"""A learned gate read from its file and computed in numpy: the one that answers, with torch or without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from natix_hf.errors import VerificationError, first_line

GATE = "gate.safetensors"


class ReadGate:
    """A gate that computes in float64, so that an answer depends neither on the batch it came in nor on what runs the
    model. [`natix_hf.models.gate.Gate`] is the one that is trained.

    Args:
        tensors: Those of `gate_shapes`, float32.
    """

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        exact = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        self._mean, self._std = exact["mean"], exact["std"]
        self._hidden, self._hidden_bias = exact["layers.0.weight"], exact["layers.0.bias"]
        self._last, self._last_bias = exact["layers.2.weight"], exact["layers.2.bias"]

    def confidence(self, inputs: np.ndarray) -> np.ndarray:
        """The confidence of each row of `gate_inputs`, float64 [n]. It is a logit: a probability would saturate."""
        standard = (np.ascontiguousarray(inputs, dtype=np.float64) - self._mean) / self._std
        hidden = np.maximum(_row_by_row(standard, self._hidden) + self._hidden_bias, 0)
        confidence: np.ndarray = (_row_by_row(hidden, self._last) + self._last_bias)[:, 0]
        return confidence


def _row_by_row(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`rows @ weight.T`, whose sums are in one order. A matrix product has another one for one row than for several,
    and a cut may be the confidence of a row: whether that is accepted must not depend on the batch it came in."""
    product: np.ndarray = np.einsum("nd,hd->nh", rows, weight, optimize=False)
    return product


def read_gate(path: Path) -> ReadGate:
    """Read a gate, to answer.

    Raises:
        [`VerificationError`]: as `gate_tensors`.
    """
    return ReadGate(gate_tensors(path))


def gate_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a gate, float32, by name. Its widths are those of its tensors.

    Raises:
        [`VerificationError`]: the file is missing, damaged or not a gate.
    """
    try:
        tensors = load_file(path)
        hidden, width = tensors["layers.0.weight"].shape
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise VerificationError(f"{path} is not a gate: {first_line(error)}") from None
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != gate_shapes(width, hidden) or any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise VerificationError(f"{path} is not a gate: it holds other tensors")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise VerificationError(f"{path} holds NaN or infinity: train the gate again")
    return dict(tensors)


def gate_inputs(features: np.ndarray, logits: np.ndarray, threshold: float) -> np.ndarray:
    """Join the inputs of a gate: features, signed distance to the decision threshold, and its absolute value.

    The absolute value is the margin, so a gate can always represent the margin itself.

    Args:
        features (`np.ndarray` of shape `(n, d)`): The input of the classifier layer.
        logits (`np.ndarray` of shape `(n,)`): Logit differences.
        threshold (`float`): The decision threshold, a logit.

    Returns:
        `np.ndarray` of float32, of shape `(n, d + 2)`.
    """
    distance = np.asarray(logits, dtype=np.float64) - threshold
    return np.column_stack([features, distance, np.abs(distance)]).astype(np.float32)


def gate_shapes(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a gate, by name."""
    first: dict[str, tuple[int, ...]] = {"layers.0.weight": (hidden, width), "layers.0.bias": (hidden,)}
    return {"mean": (width,), "std": (width,), **first, "layers.2.weight": (1, hidden), "layers.2.bias": (1,)}
