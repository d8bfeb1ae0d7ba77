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
from natix_hf.results.out_of_fold import (
    FEATURES,
    OUT_OF_FOLD,
    OutOfFold,
    read_out_of_fold,
    read_out_of_fold_features,
)
from natix_hf.results.soup import SOUP
from natix_hf.runs.graph import CANDIDATE_PHASES, PHASES, Phase, number_of
from natix_hf.runs.inputs import Inputs
from natix_hf.runs.pins import pinned_model
from natix_hf.runs.trained import Trained, require_whole, trained_models
from natix_hf.terminal import LABEL, tell
from natix_hf.trainers.config import CHECKPOINTS as CHECKPOINTS

if TYPE_CHECKING:
    from natix_hf.data.rows import ImageData, Rows

_OF_A_CANDIDATE = ("model", "logits")


@dataclass(frozen=True)
class Outcome:
    """The return value of a phase: figures for its manifest, one line for people, and the files that say when or in
    which run it was made. It is empty on ranks that do not write."""

    metrics: dict[str, Any] = field(default_factory=dict)
    told: str = ""
    of_the_attempt: tuple[str, ...] = ()


@dataclass
class PhaseContext:
    """One phase of one run.

    Args:
        load_data: Loads the source and its splits.
        is_main: True for the process that writes. The other ranks only take part in the training.
        rows_read: The ids of the rows that were read, by role.

    Only the process that writes checks the files of earlier phases and records them in `inputs`.
    """

    phase: Phase
    recipe: Recipe
    run_dir: Path
    load_data: Callable[[], ImageData]
    is_main: bool = True
    rows_read: dict[str, list[str]] = field(default_factory=dict)
    inputs: Inputs = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = Inputs(self.run_dir)

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
        """The folder of a phase that this one needs or uses. Its files are checked; of a candidate's phase, those of
        the candidate.

        Raises:
            RunError: if this phase neither needs nor uses that one.
            UsageError: if a file is not the one that its phase has written.
        """
        self._require_above(number)
        return self._open(number, *(_OF_A_CANDIDATE if number in CANDIDATE_PHASES else ()))

    def finished(self, number: int) -> Path | None:
        """The folder of a phase that this one needs or uses, as `upstream` gives it, or None if that phase has not
        finished."""
        self._require_above(number)
        return self.upstream(number) if (self.run_dir / PHASES[number].folder / MANIFEST).is_file() else None

    def _require_above(self, number: int) -> None:
        if number not in self.phase.needs + self.phase.uses:
            raise RunError(f"{self.phase.folder} asked for phase {number}, which it neither needs nor uses")

    def _open(self, number: int, *names: str) -> Path:
        phase = PHASES[number]
        return self.inputs.take(phase, *names) if self.is_main else self.run_dir / phase.folder

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
        folder = self.upstream(2)
        if decision.champion == SOUP and decision.soup is not None:
            return Candidate(folder / SOUP)
        if decision.champion not in [PHASES[number].folder for number in CANDIDATE_PHASES]:
            raise RunError(f"the champion {cut(decision.champion)} is not a candidate of this run: run phase 2 again")
        return Candidate(self._open(number_of(decision.champion), *_OF_A_CANDIDATE))

    def training_of(self, decision: Decision) -> Path:
        """The folder of the phase whose manifest says how the champion was trained; of a soup, how the candidate was
        that started where its members did."""
        soup = decision.soup if decision.champion == SOUP else None
        name = soup.like if soup is not None else decision.champion
        return self._open(number_of(name), *_OF_A_CANDIDATE)

    def trained(self) -> list[Trained]:
        """Every trained model of this run that this phase may read, the candidates first. `take` checks one."""
        return [one for one in trained_models(self.run_dir) if one.phase.number in self.phase.needs + self.phase.uses]

    def take(self, model: Trained) -> Candidate:
        """Check the files of a model, of this or of another run, and record that they are read.

        Raises:
            UsageError: if a file is not the one that its run has written.
        """
        if model.run is None:
            self.inputs.take(model.phase, *model.files)
        else:
            self.inputs.outside |= require_whole(model)
        return model.candidate

    def rows(self, role: str) -> Rows:
        """The rows of a role. The manifest records that they were read.

        Raises:
            LeakageError: if this phase must not read that role.
        """
        self._grant(role)
        self._open(0)
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

    def tell(self, line: str) -> None:
        """Tell a person one line about this phase. Only the process that writes does."""
        if self.is_main:
            tell(f"{' ' * LABEL}{line}", hang=LABEL)

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
        answers = read_out_of_fold(self._open(1, OUT_OF_FOLD))
        for role in np.unique(answers.roles):
            self._grant(str(role), self.phase.answers_of)
            self.rows_read[str(role)] = [answers.asked.row_ids[i] for i in np.flatnonzero(answers.roles == role)]
        return answers

    def out_of_fold_features(self, answers: OutOfFold) -> np.ndarray:
        """The features that belong to phase 1's out-of-fold answers, float32 [answers, d].

        Raises:
            VerificationError: if the file cannot be read or belongs to other answers.
        """
        return read_out_of_fold_features(self._open(1, FEATURES), answers)

    def _grant(self, role: str, further: Sequence[str] = ()) -> None:
        if role not in (*self.phase.roles, *further):
            granted = ", ".join(self.phase.roles) or "none"
            raise LeakageError(f"{self.phase.folder} must not read rows of {role}: it may read {granted}")
