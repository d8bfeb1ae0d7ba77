"""The confidence in an answer: the margin to the decision threshold, or a learned gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from natix_hf.models.gate_file import gate_inputs, read_gate


class Confidence:
    """The confidence in answers, float64 [n]. Only its order has a meaning.

    Args:
        threshold: The decision threshold, a logit of the candidate.
        gate: The file of a learned gate; None uses the margin |z - threshold|.
    """

    def __init__(self, threshold: float, gate: Path | None = None) -> None:
        self.threshold = threshold
        self._gate = read_gate(gate) if gate is not None else None

    @property
    def kind(self) -> str:
        return "margin" if self._gate is None else "learned"

    @property
    def reads_features(self) -> bool:
        return self._gate is not None

    def __call__(self, logits: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
        """Compute the confidence.

        Args:
            logits: The candidate's logits, [n].
            features: The inputs of its classifier layer, [n, d]. A learned gate needs them.
        """
        if self._gate is None:
            margin: np.ndarray = np.abs(np.asarray(logits, dtype=np.float64) - self.threshold)
            return margin
        assert features is not None, "a learned gate reads features"
        return self._gate.confidence(gate_inputs(features, logits, self.threshold))
