"""The decision policy of a bundle, and how it is folded into the classifier layer and taken out again.

For the logit difference z of the candidate, the bundle's model answers z' = z/T - c. With `fold: decision`, c is the
decision threshold on the calibrated scale, tau/T, so that a stock pipeline that cuts at probability .5 (the official
miner, whose validator rounds) follows the fitted threshold; with `none`, T = 1 and c = 0 there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from natix_hf.errors import VerificationError
from natix_hf.provenance.files import read_json, write_json

POLICY = "policy.json"
SCHEMA = 1
Fold = Literal["decision", "none"]
NO_RISK_CONTROL = {
    "feasible": False,
    "guarantee": "none: every answer is accepted, nothing is promised about how many of them are wrong",
}


@dataclass(frozen=True)
class Policy:
    """How a logit becomes an answer. Thresholds are logits of the candidate, float64: positive iff z > threshold."""

    threshold_logit: float
    candidate_sha256: str
    model_sha256: str
    temperature: float = 1.0
    fold: Fold = "decision"
    gate: dict[str, Any] = field(default_factory=lambda: {"kind": "margin"})
    risk_control: dict[str, Any] = field(default_factory=lambda: dict(NO_RISK_CONTROL))

    @property
    def folded_temperature(self) -> float:
        return self.temperature if self.fold == "decision" else 1.0

    @property
    def folded_shift(self) -> float:
        return self.threshold_logit / self.temperature if self.fold == "decision" else 0.0

    @property
    def folded_threshold(self) -> float:
        """Where the bundle's own model is cut: 0, the stock pipeline's .5, when the decision is folded."""
        return self.threshold_logit / self.folded_temperature - self.folded_shift

    def unfold(self, folded: np.ndarray) -> np.ndarray:
        """The candidate's z, float64 [n], from the bundle model's z'."""
        return (np.asarray(folded, dtype=np.float64) + self.folded_shift) * self.folded_temperature

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Calibrated P(label 1), float64 [n], from the candidate's z."""
        scaled = np.asarray(z, dtype=np.float64) / self.temperature
        return 0.5 * (1 + np.tanh(scaled / 2))  # the logistic function without overflow

    def decide(self, z: np.ndarray) -> np.ndarray:
        """bool [n]: positive, strictly above the threshold."""
        return np.asarray(z, dtype=np.float64) > self.threshold_logit


@torch.no_grad()
def fold_into(head: nn.Linear, policy: Policy) -> None:
    """Changes a two-label head in place so that its logit difference is z/T - c. The arithmetic is float64."""
    for parameter in (head.weight, head.bias):
        parameter.copy_(parameter.double() / policy.folded_temperature)
    half = policy.folded_shift / 2
    head.bias.copy_(head.bias.double() + torch.tensor([half, -half], dtype=torch.float64, device=head.bias.device))


def write_policy(path: Path, policy: Policy) -> None:
    write_json(path, {"schema": SCHEMA, **asdict(policy), "folded_shift": policy.folded_shift})


def read_policy(path: Path) -> Policy:
    """Reads `policy.json`.

    Raises:
        VerificationError: missing, damaged, or of another schema.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise VerificationError(f"{path} is not a policy of schema {SCHEMA}: use the natix_hf version that wrote it")
    shift = content.pop("folded_shift", None)
    try:
        policy = Policy(**content)
        finite = policy.temperature > 0 and np.isfinite([policy.temperature, policy.threshold_logit]).all()
        fits = bool(finite) and policy.fold in get_args(Fold) and shift in (None, policy.folded_shift)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise VerificationError(f"{path} is damaged: its keys or numbers are not those of a policy")
    return policy
