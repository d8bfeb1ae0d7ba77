"""A phase on given answers: what it asks, and what the champion says, come from tables in memory."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from natix_hf.labels import LabelNames
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.results.figures import GroupCounts
from natix_hf.results.logits import LogitTable
from natix_hf.runs.context import PhaseContext

Answers = dict[str, tuple[LogitTable, np.ndarray]]


def give_answers(patch: pytest.MonkeyPatch, module: ModuleType, answers: Answers) -> list[tuple[Path, str]]:
    """By role: what a candidate answers, stored or computed. Returns a list that fills with who was asked for what."""
    asked: list[tuple[Path, str]] = []

    def ask(self: PhaseContext, role: str) -> Any:
        self.rows(role)
        return answers[role][0].asked

    def compute(candidate: Candidate, wanted: Any) -> tuple[LogitTable, np.ndarray]:
        role = next(role for role, (table, _) in answers.items() if table.asked is wanted)
        asked.append((candidate.folder, role))
        return answers[role]

    def stored(self: Candidate, role: str, exam: Any) -> LogitTable:
        asked.append((self.folder, role))
        return answers[role][0]

    patch.setattr(PhaseContext, "ask", ask)
    patch.setattr(Candidate, "stored_logits", stored)
    patch.setattr(Candidate, "labels", LabelNames())
    patch.setattr(module, "compute_answers", compute)
    return asked


def rows_of(answers: Answers) -> Any:
    """What a context loads: the ids of the tables by role."""
    data = SimpleNamespace(role=lambda role: SimpleNamespace(role=role, ids=answers[role][0].ids))
    return lambda: data


def decision(run: Path, threshold: float, champion: str = "phase1_baseline", sha256: str = "c" * 64) -> Decision:
    """What phase 2 decided, written into a run."""
    found = Decision(champion, sha256, threshold, "mcc", None, None, {"mcc": 0.5}, GroupCounts(2, 1, 1, True), [])
    (run / "phase2_threshold").mkdir(exist_ok=True)
    found.write(run / "phase2_threshold")
    return found
