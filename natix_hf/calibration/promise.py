"""The guarantee about accepted answers, as phase 5 writes it and a bundle's policy carries it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from natix_hf.calibration.risk_rows import Loss
from natix_hf.provenance.stored import OPTIONAL


@dataclass(frozen=True)
class Promise:
    """The acceptance rule of a policy and its guarantee.

    Args:
        feasible (`bool`): True if an acceptance threshold was certified. If False, every answer is accepted.
        guarantee (`str`): The guarantee in words, or the reason why there is none.
        accept_above (`dict[str, float]`, *optional*): Maps the name of an answer to its acceptance threshold. An
            answer is accepted if its confidence is strictly above the threshold. These thresholds are on the scale of
            the confidence; the decision threshold is a logit.
        loss, alpha, delta, classwise (*optional*): Settings of risk control. `None` if risk control did not run.
        prior (`tuple[float, float]`, *optional*): Lowest and highest share of label 1 at which an error rate is
            promised. `None`: the share in the data; the losses `"fnr"` and `"fpr"` hold at every share.
        looks (`int`, *optional*): How many different certifications of the same rows there were, this one included.

    Example:
        >>> import numpy as np
        >>> promise = Promise(feasible=True, guarantee="...", accept_above={"None": 0.5, "Roadwork": 0.5})
        >>> promise.accepts(np.array([True, False]), np.array([0.9, 0.2]), {0: "None", 1: "Roadwork"}).tolist()
        [True, False]
    """

    feasible: bool = False
    guarantee: str = "none: every answer is accepted, nothing is promised about how many of them are wrong"
    accept_above: dict[str, float] | None = field(default=None, metadata={"key": "thresholds"})
    loss: Loss | None = field(default=None, metadata=OPTIONAL)
    alpha: float | None = field(default=None, metadata=OPTIONAL)
    delta: float | None = field(default=None, metadata=OPTIONAL)
    classwise: bool | None = field(default=None, metadata=OPTIONAL)
    prior: tuple[float, float] | None = field(default=None, metadata=OPTIONAL)
    looks: int | None = field(default=None, metadata=OPTIONAL)

    @property
    def asked_for(self) -> bool:
        """True if risk control ran, with or without a result."""
        return self.loss is not None

    def accepts(self, positive: np.ndarray, confidence: np.ndarray, labels: dict[int, str]) -> np.ndarray:
        """Decide which answers are accepted.

        Args:
            positive (`np.ndarray` of bool, shape `(n,)`): The answers; True is answer 1.
            confidence (`np.ndarray` of shape `(n,)`): The confidence of each answer.
            labels (`dict[int, str]`): Names of answers 0 and 1.

        Returns:
            `np.ndarray` of bool, shape `(n,)`: True where the answer is accepted.
        """
        if self.accept_above is None:
            return np.ones(len(positive), dtype=bool)
        cuts = np.where(positive, self.accept_above[labels[1]], self.accept_above[labels[0]])
        return np.asarray(confidence > cuts)
