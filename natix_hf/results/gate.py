"""What phase 3 leaves: the learned gate against the margin, and which of them is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from natix_hf.provenance.stored import OPTIONAL, Stored


@dataclass(frozen=True)
class GateComparison:
    """One figure of both gates on val_select: its value for the margin and for the learned gate, cross-fitted, and the
    difference with its paired 95% interval. Below zero the learned gate is the better one."""

    margin: float
    learned: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class GateReport(Stored):
    """Which gate is kept, and why.

    `compared` maps `aurc` and `augrc` to their comparison; it and `folds` are absent where too few answers were wrong
    to learn from. `gate_sha256` is that of the learned gate's file, where that one is kept.
    """

    FILE: ClassVar[str] = "gate.json"

    kind: Literal["margin", "learned"]
    method: str
    candidate_sha256: str
    wrong_rows: int
    compared: dict[str, GateComparison] | None = field(metadata=OPTIONAL)
    folds: int | None = field(metadata=OPTIONAL)
    reason: str
    gate_sha256: str | None = field(default=None, metadata=OPTIONAL)
