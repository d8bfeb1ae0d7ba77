"""The recipe's `phase2:` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from natix_hf.section import Section


@dataclass(frozen=True)
class ThresholdConfig(Section):
    """The champion among the candidates, and its decision threshold."""

    place: ClassVar[str] = "phase2"

    objective: Annotated[
        Literal["mcc", "balanced_accuracy", "f1", "reward"],
        "The score that the threshold maximises on val_select; reward is the subnet's expected reward.",
    ] = "mcc"
    n_resamples: Annotated[int, "Resamples of the paired group bootstrap that decides between candidates."] = 2000

    def check(self) -> None:
        self.require(self.n_resamples >= 100, "n_resamples", "at least 100")
