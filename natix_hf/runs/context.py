"""What a phase is given: its section, its folder, and the rows and results that its role allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natix_hf.data.asked import Asked, ask
from natix_hf.errors import LeakageError, RunError, UsageError
from natix_hf.models.config import ModelConfig
from natix_hf.provenance.manifest import MANIFEST
from natix_hf.recipe import Recipe
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.runs.graph import CANDIDATE_PHASES, PHASES, Phase
from natix_hf.runs.pins import pinned_model

if TYPE_CHECKING:
    from natix_hf.data.rows import ImageData, Rows

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Outcome:
    """What a phase gives back: figures for its manifest, and one line for a person. Ranks that do not write leave both
    empty."""

    metrics: dict[str, Any] = field(default_factory=dict)
    told: str = ""


@dataclass
class PhaseContext:
    """One phase of one run. `is_main`: this process writes; the other ranks only train along.

    `rows_read` records the ids of the rows that were read, by role.
    """

    phase: Phase
    recipe: Recipe
    run_dir: Path
    load_data: Callable[[], ImageData]
    is_main: bool = True
    rows_read: dict[str, list[str]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.run_dir / self.phase.folder

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    @property
    def model(self) -> ModelConfig:
        """The recipe's model, a backbone on the Hub at the commit of this run."""
        return pinned_model(self.run_dir, self.recipe.model)

    def upstream(self, number: int) -> Path:
        """The folder of a phase that this one needs or uses.

        Raises:
            RunError: it neither needs nor uses that phase.
        """
        if number not in self.phase.needs + self.phase.uses:
            raise RunError(f"{self.phase.folder} asked for phase {number}, which it neither needs nor uses")
        return self.run_dir / PHASES[number].folder

    def finished(self, number: int) -> Path | None:
        """`upstream`, or None where that phase has not finished."""
        folder = self.upstream(number)
        return folder if (folder / MANIFEST).is_file() else None

    def candidates(self) -> list[Candidate]:
        """The candidates of this run, the control first."""
        folders = [folder for number in CANDIDATE_PHASES if (folder := self.finished(number)) is not None]
        return [candidate for candidate in map(Candidate, folders) if candidate.model.is_dir()]

    def decision(self) -> Decision:
        """What phase 2 decided.

        Raises:
            UsageError: it asked other views of the pictures than this phase is to ask.
        """
        decision = Decision.read(self.upstream(2))
        if decision.exam != self.recipe.data.drawn_exam:
            asked = decision.exam
            fitted = "whole pictures" if asked is None else f"{asked.views} views of each picture"
            raise UsageError(
                f"phase 2 fitted the threshold to {fitted}, data.exam and data.exam_views say otherwise: "
                f"run phase 2 again, natix-hf run RECIPE --phases 2 --run-dir {self.run_dir}"
            )
        return decision

    def champion(self, decision: Decision) -> Candidate:
        """The candidate that phase 2 chose; phase 2 vouches for it.

        Raises:
            RunError: this phase does not need phase 2, or no phase leaves a candidate of that name.
        """
        self.upstream(2)
        if decision.champion not in [PHASES[number].folder for number in CANDIDATE_PHASES]:
            raise RunError(f"the champion {decision.champion!r} is none of this run's candidates: run phase 2 again")
        return Candidate(self.run_dir / decision.champion)

    def rows(self, role: str) -> Rows:
        """The rows of a role, recorded in the manifest.

        Raises:
            LeakageError: this phase must not read that role.
        """
        self._grant(role)
        rows = self.load_data().role(role)
        self.rows_read[role] = rows.ids
        return rows

    def ask(self, role: str) -> Asked:
        """`rows` as the recipe asks about them: the pictures themselves, or their views of the exam."""
        return ask(self.rows(role), self.recipe.data.drawn_exam)

    def note_rows(self, role: str, ids: Sequence[str]) -> None:
        """Records rows that were read through stored logits.

        Raises:
            LeakageError: this phase must not read that role.
        """
        self._grant(role)
        self.rows_read[role] = list(ids)

    def _grant(self, role: str) -> None:
        if role not in self.phase.roles:
            granted = ", ".join(self.phase.roles) or "none"
            raise LeakageError(f"{self.phase.folder} must not read rows of {role}: it may read {granted}")
