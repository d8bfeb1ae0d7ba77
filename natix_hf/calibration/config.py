"""The recipe's `phase5:` section. Light: imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from natix_hf.section import Section


@dataclass(frozen=True)
class RiskConfig(Section):
    """The guarantee: at most a share alpha of the accepted answers is wrong, or there is no guarantee."""

    place: ClassVar[str] = "phase5.risk"

    loss: Annotated[
        Literal["error", "fnr", "fpr"],
        "What is bounded. error: wrong answers among the accepted ones; fnr: pictures of label 1 answered as 0, among "
        "those of label 1; fpr: pictures of label 0 answered as 1, among those of label 0.",
    ] = "error"
    alpha: Annotated[float, "The largest risk allowed among the accepted answers."] = 0.05
    delta: Annotated[float, "Probability, over the draw of the calibration groups, that the guarantee is false."] = 0.1
    min_coverage: Annotated[
        float | None, "The smallest share of accepted answers at which a guarantee is given; null: any share."
    ] = None
    classwise: Annotated[bool, "Fit a threshold for each of the two answers: each has its own guarantee."] = False

    def check(self) -> None:
        for name in ("alpha", "delta"):
            self.require(0 < getattr(self, name) < 1, name, "a share between 0 and 1")
        least = self.min_coverage
        self.require(least is None or 0 < least <= 1, "min_coverage", "a share up to 1, or null")


@dataclass(frozen=True)
class ScrcConfig(Section):
    """Calibration of the probabilities, and selective conformal risk control (SCRC)."""

    place: ClassVar[str] = "phase5"

    method: Annotated[Literal["temperature", "platt", "none"], "How logits become calibrated probabilities."] = (
        "temperature"
    )
    n_resamples: Annotated[int, "Resamples of the group bootstrap behind every interval."] = 500
    risk: RiskConfig = field(default_factory=RiskConfig)

    def check(self) -> None:
        self.require(self.n_resamples >= 100, "n_resamples", "at least 100")
