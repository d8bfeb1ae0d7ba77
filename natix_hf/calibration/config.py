"""The recipe's `phase5:` section. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from natix_hf.section import LATER, Section


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
    prior: Annotated[
        list[float] | None,
        "Shares of label 1, [low, high]: an error rate is promised at every share in between. null: only at "
        "data.target_prior. The losses fnr and fpr hold at every share.",
    ] = field(default=None, metadata=LATER)
    looks: Annotated[
        int,
        "Number of certifications of one val_calib that share delta, for trying several settings. Each gets delta / "
        "looks, so that all of them hold together with probability 1 - delta.",
    ] = field(default=1, metadata=LATER)

    def check(self) -> None:
        for name in ("alpha", "delta"):
            self.require(1e-9 <= getattr(self, name) < 1, name, "a share between 0 and 1, and at least 0.000000001")
        least, prior = self.min_coverage, self.prior
        self.require(least is None or 0 < least <= 1, "min_coverage", "a share up to 1, or null")
        between = prior is None or (len(prior) == 2 and 0 < prior[0] <= prior[1] < 1)
        self.require(between, "prior", "two shares between 0 and 1, the lower one first, or null")
        self.require_within("looks", 1, 10**6)

    @property
    def delta_of_a_look(self) -> float:
        return self.delta / self.looks

    def priors(self, target: float | None) -> tuple[float, float] | None:
        """The lowest and highest share of label 1 at which an error rate is promised. None: the share in the data, or
        every share if the loss is a rate of one class."""
        if self.loss != "error":
            return None
        if self.prior is not None:
            return self.prior[0], self.prior[1]
        return None if target is None else (target, target)


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
        self.require_within("n_resamples", 100, 10**6)
