"""The recipe's `phase2:` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from natix_hf.metrics.threshold import Objective
from natix_hf.section import Section


@dataclass(frozen=True)
class ThresholdConfig(Section):
    """The champion among the candidates, and its decision threshold."""

    place: ClassVar[str] = "phase2"

    objective: Annotated[Objective, "The score that the threshold maximises on val_select."] = "mcc"
    n_resamples: Annotated[int, "Resamples of the paired group bootstrap that decides between candidates."] = 2000

    def check(self) -> None:
        self.require(self.n_resamples >= 100, "n_resamples", "at least 100")
