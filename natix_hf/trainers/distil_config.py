"""The recipe's `phase1.distil:` section. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from natix_hf.section import Section

_VIEWS = 4


@dataclass(frozen=True, kw_only=True)
class DistilConfig(Section):
    """How a student learns from the answers of its teacher."""

    place: ClassVar[str] = "phase1.distil"

    temperature: Annotated[
        float, "Both models' logits are divided by it before they are compared; above 1 softens the answers."
    ] = 2.0
    mix: Annotated[float, "Share of the teacher's answers in the loss; the labels have the rest. 1: no labels."] = 0.5
    views: Annotated[
        int | None,
        "Views per row that the teacher answers, once; epoch e reads view e modulo this. null: 4, or as many as "
        "there are epochs; with adapter: none those of feature_views.",
    ] = None
    unlabelled: Annotated[
        list[str],
        "Additional sources of images without labels, as folders or Hub dataset ids: every epoch also reads each of "
        "them, with the teacher's answer alone.",
    ] = field(default_factory=list)

    def check(self) -> None:
        self.require_within("temperature", 0.1, 100)
        self.require(0 < self.mix <= 1, "mix", "above 0, up to 1")
        self.require_within("views", 1, 10**4)
        self.require(all(map(str.strip, self.unlabelled)), "unlabelled", "a list of folders or Hub dataset ids")

    def drawn_views(self, epochs: float) -> int:
        """Number of views of a row in a training of so many epochs: no more than are read."""
        return min(self.views or _VIEWS, max(1, -int(-epochs // 1)))
