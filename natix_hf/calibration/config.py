"""The recipe's `phase5:` section. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from natix_hf.section import Section


@dataclass(frozen=True)
class RiskConfig(Section):
    """Settings of the guarantee: at most a share alpha of the accepted answers is wrong."""

    place: ClassVar[str] = "phase5.risk"

    loss: Annotated[
        Literal["error", "fnr", "fpr"],
        "The risk to bound among the accepted answers. error: share of wrong answers; fnr: share of the pictures with "
        "label 1 that are answered 0; fpr: share of the pictures with label 0 that are answered 1.",
    ] = "error"
    alpha: Annotated[float, "Largest risk allowed among the accepted answers."] = 0.05
    delta: Annotated[
        float, "Largest probability that the guarantee is false, over the draw of the calibration groups."
    ] = 0.1
    min_coverage: Annotated[
        float | None, "Smallest share of accepted answers at which a guarantee is given; null: any share."
    ] = None
    classwise: Annotated[bool, "Fit one threshold per answer; each answer gets its own guarantee."] = False

    def check(self) -> None:
        for name in ("alpha", "delta"):
            self.require(0 < getattr(self, name) < 1, name, "a share between 0 and 1")
        least = self.min_coverage
        self.require(least is None or 0 < least <= 1, "min_coverage", "a share up to 1, or null")


@dataclass(frozen=True)
class ScrcConfig(Section):
    """Settings of the probability calibration and of selective conformal risk control (SCRC)."""

    place: ClassVar[str] = "phase5"

    method: Annotated[Literal["temperature", "platt", "none"], "How the logits become calibrated probabilities."] = (
        "temperature"
    )
    n_resamples: Annotated[int, "Number of group bootstrap resamples behind each interval."] = 500
    risk: RiskConfig = field(default_factory=RiskConfig)

    def check(self) -> None:
        self.require(self.n_resamples >= 100, "n_resamples", "at least 100")
