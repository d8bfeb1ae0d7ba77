"""How far an answer is trusted: the margin to the decision threshold, or a learned gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from natix_hf.models.gate import gate_inputs, load_gate


class Confidence:
    """Confidence of answers, float64 [n]; only its order means anything.

    Args:
        threshold: of the decision, a logit of the candidate.
        gate: file of a learned gate; None: the margin |z - threshold|.
    """

    def __init__(self, threshold: float, gate: Path | None = None) -> None:
        self.threshold = threshold
        self._gate = load_gate(gate) if gate is not None else None

    @property
    def kind(self) -> str:
        return "margin" if self._gate is None else "learned"

    @property
    def reads_features(self) -> bool:
        return self._gate is not None

    def __call__(self, logits: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
        """Of the candidate's logits [n], and for a gate the inputs of its classifier layer [n, d]."""
        if self._gate is None:
            margin: np.ndarray = np.abs(np.asarray(logits, dtype=np.float64) - self.threshold)
            return margin
        assert features is not None, "a learned gate reads features"
        return self._gate.confidence(gate_inputs(features, logits, self.threshold))
