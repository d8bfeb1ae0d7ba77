"""The recipe's `phaseN:` sections. Light on purpose: reading a recipe imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from natix_hf.errors import require


@dataclass(frozen=True)
class Phase2Config:
    """Champion and threshold."""

    objective: Literal["mcc", "balanced_accuracy", "f1"] = "mcc"
    n_resamples: int = 2000  # of the paired group bootstrap that decides between candidates

    def __post_init__(self) -> None:
        require(self.n_resamples >= 100, "phase2.n_resamples", self.n_resamples, "at least 100")


@dataclass(frozen=True)
class Phase6Config:
    """Evaluation on test and the bundle."""

    fold: Literal["decision", "none"] = (
        "decision"  # decision: a stock pipeline's cut at .5 follows the fitted threshold
    )
    n_resamples: int = 1000  # of the group bootstrap behind every interval
    model_name: str | None = None  # on the card; null: the recipe's name
    description: str = "Is there roadwork in this picture?"
    version: str = "0.1.0"  # X.Y.Z
    submitted_by: str | None = None  # the miner's hotkey (ss58); null: the bundle has no model_card.json

    def __post_init__(self) -> None:
        require(self.n_resamples >= 100, "phase6.n_resamples", self.n_resamples, "at least 100")
        require(
            bool(re.fullmatch(r"\d+\.\d+\.\d+", self.version)), "phase6.version", self.version, "X.Y.Z, as in 1.0.2"
        )
