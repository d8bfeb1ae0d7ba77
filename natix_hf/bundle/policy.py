"""The decision policy of a bundle, and how it is folded into the classifier layer and taken out again.

For the logit difference z of the candidate, the bundle's model answers z' = a z - c. With `fold: decision`, a is the
calibration's slope (1/T) and c the decision threshold on the calibrated scale, so that a stock pipeline that cuts at
probability .5 (the official miner, whose validator rounds) follows the fitted threshold; with `calibration` it answers
the calibrated probability, with `none` the candidate's own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from natix_hf.calibration import Calibration
from natix_hf.errors import UsageError, VerificationError
from natix_hf.models.classifier import ID2LABEL
from natix_hf.provenance.files import read_json, write_json

POLICY = "policy.json"
SCHEMA = 2
Fold = Literal["decision", "calibration", "none"]
NO_RISK_CONTROL = {
    "feasible": False,
    "guarantee": "none: every answer is accepted, nothing is promised about how many of them are wrong",
    "thresholds": None,
}


@dataclass(frozen=True)
class Policy:
    """How a logit becomes an answer. Thresholds are logits of the candidate, float64: positive iff z > threshold."""

    threshold_logit: float
    candidate_sha256: str
    model_sha256: str
    calibration: Calibration = field(default_factory=lambda: Calibration("none"))
    fold: Fold = "decision"
    gate: dict[str, Any] = field(default_factory=lambda: {"kind": "margin"})
    risk_control: dict[str, Any] = field(default_factory=lambda: dict(NO_RISK_CONTROL))
    # Of a model.onnx: its sha256, and the largest difference of its logits from those of the weights above.
    onnx: dict[str, Any] | None = None

    @property
    def folded_slope(self) -> float:
        return 1.0 if self.fold == "none" else self.calibration.slope

    @property
    def folded_shift(self) -> float:
        """c of z' = a z - c."""
        if self.fold == "decision":  # the calibration's intercept moves rows and threshold alike
            return self.calibration.slope * self.threshold_logit
        return -self.calibration.intercept if self.fold == "calibration" else 0.0

    @property
    def folded_threshold(self) -> float:
        """Where the bundle's own model is cut: 0, the stock pipeline's .5, when the decision is folded."""
        return self.folded_slope * self.threshold_logit - self.folded_shift

    def unfold(self, folded: np.ndarray) -> np.ndarray:
        """The candidate's z, float64 [n], from the bundle model's z'."""
        return (np.asarray(folded, dtype=np.float64) + self.folded_shift) / self.folded_slope

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Calibrated P(label 1), float64 [n], from the candidate's z."""
        return self.calibration.probability(z)

    def accepts(self, z: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """bool [n]: whether the answer to each z is accepted; without a certified threshold every one is."""
        thresholds = self.risk_control.get("thresholds")
        if thresholds is None:
            return np.ones(len(z), dtype=bool)
        of_answer = np.where(self.decide(z), thresholds[ID2LABEL[1]], thresholds[ID2LABEL[0]])
        return np.asarray(confidence > of_answer)

    def decide(self, z: np.ndarray) -> np.ndarray:
        """bool [n]: positive, strictly above the threshold."""
        return np.asarray(z, dtype=np.float64) > self.threshold_logit


@torch.no_grad()
def fold_into(head: nn.Linear, policy: Policy) -> None:
    """Changes a two-label head in place so that its logit difference is a z - c. The arithmetic is float64."""
    for parameter in (head.weight, head.bias):
        parameter.copy_(parameter.double() * policy.folded_slope)
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
        policy = Policy(**content | {"calibration": Calibration(**content["calibration"])})
        accepting = policy.risk_control.get("thresholds")
        labelled = accepting is None or set(accepting) == set(ID2LABEL.values())
        finite = bool(np.isfinite([policy.threshold_logit, *(accepting or {}).values()]).all())
        known = policy.gate["kind"] == "margin" or (policy.gate["kind"] == "learned" and "sha256" in policy.gate)
        known = known and (policy.onnx is None or "sha256" in policy.onnx)
        fits = labelled and finite and known
        fits = fits and policy.fold in get_args(Fold) and shift in (None, policy.folded_shift)
    except (AttributeError, KeyError, TypeError, ValueError, UsageError):
        fits = False
    if not fits:
        raise VerificationError(f"{path} is damaged: its keys or numbers are not those of a policy")
    return policy
