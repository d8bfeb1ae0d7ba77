"""The recipe's `phaseN:` sections. Light on purpose: reading a recipe imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from natix_hf.errors import require
from natix_hf.provenance.hub import is_repo_id, is_tag
from natix_hf.subnet.hotkey import is_hotkey


@dataclass(frozen=True)
class Phase2Config:
    """Champion and threshold."""

    objective: Literal["mcc", "balanced_accuracy", "f1"] = "mcc"
    n_resamples: int = 2000  # of the paired group bootstrap that decides between candidates

    def __post_init__(self) -> None:
        require(self.n_resamples >= 100, "phase2.n_resamples", self.n_resamples, "at least 100")


@dataclass(frozen=True)
class RiskConfig:
    """What is promised of the accepted answers: at most `alpha` of them are wrong, or there is no promise."""

    # error: any wrong answer; fnr: roadwork answered None, of the roadwork; fpr: None answered Roadwork, of the others
    loss: Literal["error", "fnr", "fpr"] = "error"
    alpha: float = 0.05  # most risk among the accepted
    delta: float = 0.1  # probability, over the draw of the calibration groups, that the promise is false
    min_coverage: float | None = None  # no promise at a smaller share of accepted answers than this; null: any
    classwise: bool = False  # a threshold for each answer, so that abstaining from one hides nothing of the other

    def __post_init__(self) -> None:
        for name in ("alpha", "delta"):
            value = getattr(self, name)
            require(0 < value < 1, f"phase5.risk.{name}", value, "a share between 0 and 1")
        least = self.min_coverage
        require(least is None or 0 < least <= 1, "phase5.risk.min_coverage", least, "a share up to 1, or null")


@dataclass(frozen=True)
class Phase5Config:
    """Calibration and selective risk control."""

    method: Literal["temperature", "platt", "none"] = "temperature"  # of calibration
    n_resamples: int = 500  # of the group bootstrap behind every interval
    risk: RiskConfig = field(default_factory=RiskConfig)

    def __post_init__(self) -> None:
        require(self.n_resamples >= 100, "phase5.n_resamples", self.n_resamples, "at least 100")


@dataclass(frozen=True)
class Phase6Config:
    """Evaluation on test and the bundle."""

    # What a stock pipeline's cut at .5 follows: the fitted threshold, the calibrated probability, or the model's own
    fold: Literal["decision", "calibration", "none"] = "decision"
    n_resamples: int = 1000  # of the group bootstrap behind every interval
    onnx: bool = False  # write model.onnx too, for onnxruntime on a CPU; needs natix_hf[onnx]
    model_name: str | None = None  # on the card; null: the recipe's name
    description: str = "Is there roadwork in this picture?"
    version: str = "0.1.0"  # X.Y.Z
    submitted_by: str | None = None  # the miner's hotkey (ss58); null: the bundle has no model_card.json
    push: bool = False  # publish the bundle on the Hub, in one commit, and read it back
    repo_id: str | None = None  # where, as org/name
    private: bool = False  # only for a repository that does not exist yet
    tag: str | None = None  # of the commit, as in v1.0.0

    def __post_init__(self) -> None:
        require(self.n_resamples >= 100, "phase6.n_resamples", self.n_resamples, "at least 100")
        require(
            bool(re.fullmatch(r"\d+\.\d+\.\d+", self.version, re.ASCII)),
            "phase6.version",
            self.version,
            "X.Y.Z, as in 1.0.2",
        )
        hotkey, repo_id, tag = self.submitted_by, self.repo_id, self.tag
        known = hotkey is None or is_hotkey(hotkey)
        require(known, "phase6.submitted_by", hotkey, "an SS58 address with its checksum, or null")
        require(repo_id is None or is_repo_id(repo_id), "phase6.repo_id", repo_id, "org/name, or null")
        require(repo_id is not None or not self.push, "phase6.repo_id", repo_id, "org/name where phase6.push is true")
        for name, given in {"repo_id": repo_id, "private": self.private, "tag": tag}.items():
            require(self.push or not given, f"phase6.{name}", given, "nothing unless phase6.push is true")
        require(tag is None or is_tag(tag), "phase6.tag", tag, "a name of letters, digits, dots and dashes, or null")
