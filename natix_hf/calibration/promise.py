"""The promise about accepted answers, as a policy carries it from phase 5 to whoever loads a bundle."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from natix_hf.calibration.risk_rows import Loss
from natix_hf.provenance.stored import OPTIONAL


@dataclass(frozen=True)
class Promise:
    """Which answers are accepted, and what is promised of them.

    Args:
        feasible (`bool`): Whether an acceptance cut could be certified. Where not, every answer is accepted.
        guarantee (`str`): The promise in words, or why there is none.
        accept_above (`dict[str, float]`, *optional*): By the name of the answer, the confidence above which it is
            accepted, strictly. These are confidences, not logits; the decision threshold is another thing.
        loss, alpha, delta, classwise (*optional*): What was asked of risk control; `None` where it did not run.
    """

    feasible: bool = False
    guarantee: str = "none: every answer is accepted, nothing is promised about how many of them are wrong"
    accept_above: dict[str, float] | None = field(default=None, metadata={"key": "thresholds"})
    loss: Loss | None = field(default=None, metadata=OPTIONAL)
    alpha: float | None = field(default=None, metadata=OPTIONAL)
    delta: float | None = field(default=None, metadata=OPTIONAL)
    classwise: bool | None = field(default=None, metadata=OPTIONAL)

    @property
    def asked_for(self) -> bool:
        """Whether risk control ran, feasible or not."""
        return self.loss is not None

    def accepts(self, positive: np.ndarray, confidence: np.ndarray, labels: dict[int, str]) -> np.ndarray:
        """Which answers are accepted, bool [n].

        Args:
            positive (`np.ndarray` of bool, of shape `(n,)`): The answers.
            confidence (`np.ndarray` of shape `(n,)`): How far each is trusted.
            labels (`dict[int, str]`): The names of answers 0 and 1.
        """
        if self.accept_above is None:
            return np.ones(len(positive), dtype=bool)
        cuts = np.where(positive, self.accept_above[labels[1]], self.accept_above[labels[0]])
        return np.asarray(confidence > cuts)
