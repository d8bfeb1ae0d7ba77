"""The result of phase 3: the learned gate compared with the margin, and which of the two is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from natix_hf.provenance.stored import OPTIONAL, Stored


@dataclass(frozen=True)
class GateComparison:
    """One figure of both gates on val_select: the margin's, the cross-fitted learned gate's, and their difference with
    its paired 95% interval, or with the reason why there is none. A difference below zero favours the learned gate."""

    margin: float
    learned: float
    difference: float
    low: float | None
    high: float | None
    no_interval: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class GateReport(Stored):
    """The gate that is kept, and why.

    Args:
        compared (`dict[str, GateComparison]`): The comparison by figure, `aurc` and `augrc`. None if too few answers
            are wrong to learn from.
        folds (`int`): Number of folds of the cross-fit; None likewise.
        gate_sha256 (`str`): The hash of the learned gate's file; None if the margin is kept.
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
