"""The recipe's `phase2:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from natix_hf.section import LATER, Section


@dataclass(frozen=True)
class ThresholdConfig(Section):
    """The champion among the candidates, and its decision threshold."""

    place: ClassVar[str] = "phase2"

    objective: Annotated[
        Literal["mcc", "balanced_accuracy", "f1", "reward"],
        "The score that the threshold maximises on val_select; reward is the subnet's expected reward.",
    ] = "mcc"
    from_: Annotated[
        Literal["val_select", "out_of_fold"],
        "The answers that the threshold and the calibration are fitted to. out_of_fold: those of phase1.folds, to all "
        "of train and val_select; for data with few groups.",
    ] = field(default="val_select", metadata=LATER)
    n_resamples: Annotated[int, "Resamples of the paired group bootstrap that decides between candidates."] = 2000

    soup: Annotated[
        Literal["none", "uniform", "greedy", "wise"],
        "A further candidate made of models that share a start (phase1.seeds, phase1.keep_folds, soup_of). uniform: "
        "the mean of their weights; greedy: of those that do not lower the score on val_select; wise: between the "
        "champion and its start, at the best share on val_select; none: no soup (docs/phase2.md).",
    ] = field(default="none", metadata=LATER)
    soup_of: Annotated[list[str], "Folders of further runs whose models may join the soup."] = field(
        default_factory=list, metadata=LATER
    )

    def check(self) -> None:
        self.require_within("n_resamples", 100, 10**6)
        several = self.soup in ("uniform", "greedy")
        self.require(several or not self.soup_of, "soup_of", "left out unless phase2.soup is uniform or greedy")
