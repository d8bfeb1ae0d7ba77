"""The input of a phase: its settings, its folder, and the rows and results that it may read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from natix_hf.data.asked import Asked, ask
from natix_hf.data.config import EXAM_VERSION
from natix_hf.data.exam_cache import drawn_once
from natix_hf.errors import LeakageError, RunError, UsageError, cut
from natix_hf.models.config import ModelConfig
from natix_hf.provenance.manifest import MANIFEST
from natix_hf.recipe import Recipe
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.results.out_of_fold import OutOfFold, read_out_of_fold
from natix_hf.runs.graph import CANDIDATE_PHASES, PHASES, Phase
from natix_hf.runs.pins import pinned_model

if TYPE_CHECKING:
    from natix_hf.data.rows import ImageData, Rows

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Outcome:
    """The return value of a phase: figures for its manifest and one line for people. It is empty on ranks that do not
    write."""

    metrics: dict[str, Any] = field(default_factory=dict)
    told: str = ""


@dataclass
class PhaseContext:
    """One phase of one run.

    Args:
        load_data: Loads the source and its splits.
        is_main: True for the process that writes. The other ranks only take part in the training.
        rows_read: The ids of the rows that were read, by role.
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
        """The recipe's model. A backbone from the Hub is pinned to the commit of this run."""
        return pinned_model(self.run_dir, self.recipe.model)

    def upstream(self, number: int) -> Path:
        """The folder of a phase that this one needs or uses.

        Raises:
            RunError: if this phase neither needs nor uses that one.
        """
        if number not in self.phase.needs + self.phase.uses:
            raise RunError(f"{self.phase.folder} asked for phase {number}, which it neither needs nor uses")
        return self.run_dir / PHASES[number].folder

    def finished(self, number: int) -> Path | None:
        """The folder of a phase that this one needs or uses, or None if that phase has not finished."""
        folder = self.upstream(number)
        return folder if (folder / MANIFEST).is_file() else None

    def candidates(self) -> list[Candidate]:
        """The candidates of this run, the control first."""
        folders = [folder for number in CANDIDATE_PHASES if (folder := self.finished(number)) is not None]
        return [candidate for candidate in map(Candidate, folders) if candidate.model.is_dir()]

    def decision(self) -> Decision:
        """The decision of phase 2.

        Raises:
            UsageError: if phase 2 asked about other views of the pictures than this phase will.
        """
        decision = Decision.read(self.upstream(2))
        if decision.exam != self.recipe.data.drawn_exam:
            asked = decision.exam
            fitted = "whole pictures" if asked is None else f"{asked.views} views of each picture"
            why = "data.exam and data.exam_views have changed"
            if asked is not None and not asked.is_current:
                fitted += f" as version {asked.version} of the exam drew them"
                why = f"this version of natix_hf draws version {EXAM_VERSION}"
            raise UsageError(
                f"phase 2 fitted the threshold to {fitted}, but {why}: "
                f"run phase 2 again: natix-hf run RECIPE --phases 2 --run-dir {self.run_dir}"
            )
        return decision

    def champion(self, decision: Decision) -> Candidate:
        """The candidate that phase 2 chose. This phase may read it because it needs phase 2.

        Raises:
            RunError: if this phase does not need phase 2, or if no phase leaves a candidate of that name.
        """
        self.upstream(2)
        if decision.champion not in [PHASES[number].folder for number in CANDIDATE_PHASES]:
            raise RunError(f"the champion {cut(decision.champion)} is not a candidate of this run: run phase 2 again")
        return Candidate(self.run_dir / decision.champion)

    def rows(self, role: str) -> Rows:
        """The rows of a role. The manifest records that they were read.

        Raises:
            LeakageError: if this phase must not read that role.
        """
        self._grant(role)
        rows = self.load_data().role(role)
        self.rows_read[role] = rows.ids
        return rows

    def ask(self, role: str) -> Asked:
        """The rows of a role as the recipe asks about them: whole pictures, or their views in the exam."""
        return ask(self.rows(role), self.recipe.data.drawn_exam)

    def ask_to_choose(self, role: str) -> Asked:
        """The rows of a role as candidates are chosen by them: whole pictures, or one view at each level of the exam,
        drawn once. Every rank may call it."""
        return drawn_once(self.rows(role), self.recipe.data.choice_exam)

    def note_rows(self, role: str, ids: Sequence[str]) -> None:
        """Record rows that were read through stored logits.

        Raises:
            LeakageError: if this phase must not read that role.
        """
        self._grant(role)
        self.rows_read[role] = list(ids)

    def out_of_fold(self) -> OutOfFold:
        """Phase 1's out-of-fold answers. The manifest records that their rows were read.

        Raises:
            LeakageError: if this phase must not read rows of train and val_select in this way.
            VerificationError: if there are none, or if they cannot be read.
        """
        answers = read_out_of_fold(self.run_dir / PHASES[1].folder)
        for role in np.unique(answers.roles):
            self._grant(str(role), self.phase.answers_of)
            self.rows_read[str(role)] = [answers.asked.row_ids[i] for i in np.flatnonzero(answers.roles == role)]
        return answers

    def _grant(self, role: str, further: Sequence[str] = ()) -> None:
        if role not in (*self.phase.roles, *further):
            granted = ", ".join(self.phase.roles) or "none"
            raise LeakageError(f"{self.phase.folder} must not read rows of {role}: it may read {granted}")
