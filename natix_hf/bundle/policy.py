"""The decision policy of a bundle: how a logit becomes an answer. It needs numpy and no torch.

If the candidate's logit difference is z, the bundle's model answers z' = a z - c. With `fold: decision`, a is the
slope of the calibration (1/T) and c is the decision threshold on the calibrated scale. A plain pipeline that cuts at
probability 0.5 (the official miner does, because its validator rounds) then follows the fitted threshold. With
`calibration` the pipeline gives the calibrated probability, and with `none` the candidate's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from natix_hf.calibration import Calibration, Promise
from natix_hf.errors import UsageError, VerificationError, shortened
from natix_hf.labels import LabelNames
from natix_hf.provenance.files import write_json
from natix_hf.provenance.manifest import manifest_seal
from natix_hf.provenance.stored import OPTIONAL, from_json, to_json
from natix_hf.provenance.strict import read_strictly

SCHEMA = 5
# 2 has no labels: they were always the subnet's. 4 may belong to no bundle, and its promise may name a prior. 5 has a
# seal, and a bundle's names the hashes of the configs.
_READ = (2, 3, 4, 5)
_FOREIGN, _SEALED = 4, 5
Fold = Literal["decision", "calibration", "none"]


@dataclass(frozen=True)
class GateUse:
    """The source of confidence: the margin to the decision threshold, or a learned gate with the hash of its file."""

    kind: Literal["margin", "learned"] = "margin"
    method: str | None = field(default=None, metadata=OPTIONAL)
    sha256: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class OnnxCopy:
    """The `model.onnx` beside the weights, and the largest difference between the logits of the two."""

    sha256: str
    max_difference: float


@dataclass(frozen=True)
class Half:
    """One half of the answers that a foreign policy was made from."""

    rows: int
    groups: int


@dataclass(frozen=True)
class MadeFrom:
    """The answers of a foreign model that a policy was made from, by [`SelectiveClassifier`]. A bundle has none.

    Args:
        model (`str`, *optional*): Which model gave the answers, in the words or with the hash that the caller stated.
        probabilities (`bool`): The answers were probabilities, which count as at least `epsilon`; else logits.
        said (`bool`): The caller said which; else the values could not be probabilities.
        groups_known (`bool`): The caller said which rows belong together; else each row counts as a group.
        share (`float`): Share of label 1 among the groups that certify, one row of each.
        fitting, certifying ([`Half`]): The half for temperature and threshold, and the half for the certificate.
    """

    model: str | None
    probabilities: bool
    said: bool
    epsilon: float
    groups_known: bool
    seed: int
    share: float = 0.0
    fitting: Half = field(default_factory=lambda: Half(0, 0))
    certifying: Half = field(default_factory=lambda: Half(0, 0))

    @property
    def halves(self) -> dict[str, Half]:
        return {"fitting": self.fitting, "certifying": self.certifying}


@dataclass(frozen=True)
class Policy:
    """How a logit becomes an answer.

    Args:
        threshold_logit (`float`): A logit of the candidate. The answer is yes strictly above it.
        candidate_sha256 (`str`, *optional*): Hash of the candidate's weights, before folding. `None`: the policy is of
            a foreign model, and no bundle may hold it.
        model_sha256 (`str`, *optional*): Hash of the bundle's weights, after folding. `None` likewise.
        calibration ([`Calibration`]): The map from logits to probabilities.
        fold (`str`): What is folded into the classifier layer: `"decision"`, `"calibration"` or `"none"`.
        gate ([`GateUse`]): The source of confidence.
        promise ([`Promise`]): The guarantee and the acceptance cuts.
        onnx ([`OnnxCopy`]): The ONNX file, or None.
        labels ([`LabelNames`]): The names of the answers, as the bundle's `config.json` holds them.
        config_sha256, processor_sha256 (`str`, *optional*): Hashes of the bundle's `config.json` and
            `preprocessor_config.json`. `None`: an older bundle, which does not bind them, or a foreign model.
        made_from ([`MadeFrom`], *optional*): The answers of a foreign model that the policy was made from.
    """

    threshold_logit: float
    candidate_sha256: str | None
    model_sha256: str | None
    calibration: Calibration = field(default_factory=lambda: Calibration("none"))
    fold: Fold = "decision"
    gate: GateUse = field(default_factory=GateUse)
    promise: Promise = field(default_factory=Promise, metadata={"key": "risk_control"})
    onnx: OnnxCopy | None = None
    labels: LabelNames = field(default_factory=LabelNames, metadata=OPTIONAL)
    config_sha256: str | None = field(default=None, metadata=OPTIONAL)
    processor_sha256: str | None = field(default=None, metadata=OPTIONAL)
    made_from: MadeFrom | None = field(default=None, metadata=OPTIONAL)

    @property
    def binds_configs(self) -> bool:
        """True if the policy names the hashes of the bundle's two configs. Older bundles do not."""
        return self.config_sha256 is not None and self.processor_sha256 is not None

    @property
    def folded_slope(self) -> float:
        return 1.0 if self.fold == "none" else self.calibration.slope

    @property
    def folded_shift(self) -> float:
        """The shift c in z' = a z - c."""
        if self.fold == "decision":  # the calibration's intercept moves logits and threshold by the same amount
            return self.calibration.slope * self.threshold_logit
        return -self.calibration.intercept if self.fold == "calibration" else 0.0

    @property
    def folded_threshold(self) -> float:
        """The threshold for the bundle's own logit. If the decision is folded it is 0, a probability of 0.5."""
        return self.folded_slope * self.threshold_logit - self.folded_shift

    def unfold(self, folded: np.ndarray) -> np.ndarray:
        """The candidate's logits z, float64 [n], from the bundle model's z'."""
        return (np.asarray(folded, dtype=np.float64) + self.folded_shift) / self.folded_slope

    def probability(self, z: np.ndarray) -> np.ndarray:
        """The calibrated probability of label 1, float64 [n], from the candidate's z."""
        return self.calibration.probability(z)

    def margin(self, z: np.ndarray) -> np.ndarray:
        """The distance of each logit to the threshold, float64 [n]: the confidence without a learned gate."""
        return np.abs(np.asarray(z, dtype=np.float64) - self.threshold_logit)

    def accepts(self, z: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """True for each accepted answer, bool [n]. Without a certified cut every answer is accepted."""
        return self.promise.accepts(self.decide(z), confidence, self.labels.id2label)

    def decide(self, z: np.ndarray) -> np.ndarray:
        """True for each logit strictly above the threshold, bool [n]."""
        return np.asarray(z, dtype=np.float64) > self.threshold_logit


def write_policy(path: Path, policy: Policy) -> None:
    """Write `policy.json`."""
    content = {"schema": SCHEMA, **to_json(policy), "folded_shift": policy.folded_shift}
    write_json(path, content | {"seal": manifest_seal(content)})


def read_policy(path: Path) -> Policy:
    """Read `policy.json`.

    Raises:
        VerificationError: if the file is missing, damaged, edited, or of another schema.
    """
    content = read_strictly(path)
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is not int or schema not in _READ:
        raise VerificationError(f"{path} is not a policy of schema {SCHEMA}: use the natix_hf version that wrote it")
    if schema >= _SEALED and content.pop("seal", None) != manifest_seal(content):
        raise VerificationError(f"{path} was changed: its seal does not fit its content")
    shift = content.pop("folded_shift", None)
    del content["schema"]
    try:
        policy: Policy = from_json(Policy, content)
        problem = next(_problems(policy, schema, shift), None)
    except (TypeError, ValueError, UsageError) as error:
        problem = str(error)
    except OverflowError:
        problem = "a number is too large"
    if problem is not None:
        raise VerificationError(f"{path} is damaged: {shortened(str(problem), 200)}")
    return policy


def _problems(policy: Policy, schema: int, shift: object) -> Iterator[str]:
    """One line for everything that no version has written."""
    if not math.isfinite(policy.threshold_logit):
        yield "threshold_logit is not finite"
    if not math.isfinite(policy.folded_shift) or shift not in (None, policy.folded_shift):
        yield f"folded_shift is {str(shift)[:80]}, and slope and threshold give {policy.folded_shift:g}"
    if policy.gate.kind == "learned" and policy.gate.sha256 is None:
        yield "its learned gate has no sha256"
    yield from _of_promise(policy.promise, policy.labels)
    made = policy.made_from
    hashes = (policy.candidate_sha256, policy.model_sha256)
    configs = (policy.config_sha256, policy.processor_sha256)
    if made is None and None in hashes:
        yield "it names neither the weights of a bundle nor, in made_from, other answers"
    if (configs[0] is None) != (configs[1] is None):
        yield "config_sha256 and processor_sha256 belong together"
    if schema < _SEALED and configs != (None, None):
        yield f"config_sha256 and processor_sha256 came with schema {_SEALED}, and it has schema {schema}"
    if made is None:
        return
    if schema < _FOREIGN:
        yield f"made_from came with schema {_FOREIGN}, and it has schema {schema}"
    of_bundle = policy.onnx is not None or {*hashes, *configs} != {None}
    if policy.fold != "none" or policy.gate.kind != "margin" or of_bundle:
        yield "made_from is of another model's answers: beside it fold is none, gate is margin, and no file has a hash"
    yield from _of_answers(made)


def _of_promise(promise: Promise, labels: LabelNames) -> Iterator[str]:
    cuts, settings = promise.accept_above, (promise.loss, promise.alpha, promise.delta, promise.classwise)
    if promise.feasible != (cuts is not None):
        found = "null" if cuts is None else "given"
        yield f"risk_control.feasible is {str(promise.feasible).lower()}, but its thresholds are {found}"
    if cuts is not None and set(cuts) != set(labels.label2id):
        yield f"risk_control.thresholds names {', '.join(cuts)}"
    if cuts is not None and not all(map(math.isfinite, cuts.values())):
        yield "risk_control.thresholds is not finite"
    if None in settings and (promise.feasible or any(setting is not None for setting in settings)):
        yield "risk_control needs loss, alpha, delta and classwise together"
    if cuts is not None and not promise.classwise and len(set(cuts.values())) > 1:
        yield "risk_control.thresholds differ, but classwise is false"
    for name, share in (("alpha", promise.alpha), ("delta", promise.delta)):
        if share is not None and not 0 < share < 1:
            yield f"risk_control.{name} is {share}: it must be between 0 and 1"
    if promise.prior is not None and not (promise.loss == "error" and 0 < promise.prior[0] <= promise.prior[1] < 1):
        yield f"risk_control.prior is {list(promise.prior)}: an error rate has two shares, the lower one first"
    if promise.looks is not None and promise.looks < 1:
        yield f"risk_control.looks is {promise.looks}: it must be at least 1"


def _of_answers(made: MadeFrom) -> Iterator[str]:
    if made.probabilities and not made.said:
        yield "made_from.probabilities is true, but said is false"
    for name, value, holds in (
        ("epsilon", made.epsilon, 0 < made.epsilon < 0.5),
        ("share", made.share, 0 <= made.share <= 1),
        ("seed", made.seed, made.seed >= 0),
        *((half, vars(of), 1 <= of.groups <= of.rows) for half, of in made.halves.items()),
    ):
        if not holds:
            yield f"made_from.{name} is {value}"
