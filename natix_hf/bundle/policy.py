"""The decision policy of a bundle: how a logit becomes an answer. numpy alone, no torch.

For the logit difference z of the candidate, the bundle's model answers z' = a z - c. With `fold: decision`, a is the
calibration's slope (1/T) and c is the decision threshold on the calibrated scale. A stock pipeline that cuts at
probability 0.5 (the official miner, whose validator rounds) then follows the fitted threshold. With `calibration` it
answers the calibrated probability, with `none` the candidate's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from natix_hf.calibration import Calibration, Promise
from natix_hf.errors import UsageError, VerificationError
from natix_hf.labels import ID2LABEL
from natix_hf.provenance.files import read_json, write_json
from natix_hf.provenance.stored import OPTIONAL, from_json, to_json

POLICY = "policy.json"
SCHEMA = 2
Fold = Literal["decision", "calibration", "none"]


@dataclass(frozen=True)
class GateUse:
    """What confidence is: the margin to the decision threshold, or a learned gate with the hash of its file."""

    kind: Literal["margin", "learned"] = "margin"
    method: str | None = field(default=None, metadata=OPTIONAL)
    sha256: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class OnnxCopy:
    """A `model.onnx` beside the weights, and the largest difference of its logits from theirs."""

    sha256: str
    max_difference: float


@dataclass(frozen=True)
class Policy:
    """How a logit becomes an answer. `threshold_logit` is a logit of the candidate, float64: positive iff above it."""

    threshold_logit: float
    candidate_sha256: str
    model_sha256: str
    calibration: Calibration = field(default_factory=lambda: Calibration("none"))
    fold: Fold = "decision"
    gate: GateUse = field(default_factory=GateUse)
    promise: Promise = field(default_factory=Promise, metadata={"key": "risk_control"})
    onnx: OnnxCopy | None = None

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
        """Where the bundle's own model is cut: 0, the stock pipeline's 0.5, when the decision is folded."""
        return self.folded_slope * self.threshold_logit - self.folded_shift

    def unfold(self, folded: np.ndarray) -> np.ndarray:
        """The candidate's z, float64 [n], from the bundle model's z'."""
        return (np.asarray(folded, dtype=np.float64) + self.folded_shift) / self.folded_slope

    def probability(self, z: np.ndarray) -> np.ndarray:
        """Calibrated P(label 1), float64 [n], from the candidate's z."""
        return self.calibration.probability(z)

    def accepts(self, z: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """bool [n]: whether the answer to each z is accepted. Without a certified cut every one is."""
        return self.promise.accepts(self.decide(z), confidence, ID2LABEL)

    def decide(self, z: np.ndarray) -> np.ndarray:
        """bool [n]: positive, strictly above the threshold."""
        return np.asarray(z, dtype=np.float64) > self.threshold_logit


def write_policy(path: Path, policy: Policy) -> None:
    write_json(path, {"schema": SCHEMA, **to_json(policy), "folded_shift": policy.folded_shift})


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
        policy: Policy = from_json(Policy, content)
        problem = _problem(policy, shift)
    except (TypeError, ValueError, UsageError) as error:
        problem = str(error)
    if problem is not None:
        raise VerificationError(f"{path} is damaged: {problem}")
    return policy


def _problem(policy: Policy, shift: object) -> str | None:
    cuts = policy.promise.accept_above
    if cuts is not None and set(cuts) != set(ID2LABEL.values()):
        return f"risk_control.thresholds names {', '.join(cuts)}"
    if not np.isfinite([policy.threshold_logit, *(cuts or {}).values()]).all():
        return "a threshold is not finite"
    if policy.gate.kind == "learned" and policy.gate.sha256 is None:
        return "its learned gate has no sha256"
    return None if shift in (None, policy.folded_shift) else f"folded_shift is {str(shift)[:80]}"
