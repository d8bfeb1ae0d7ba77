"""The certifications of one val_calib. Each is a look, and each spends its own delta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from natix_hf.calibration.risk_rows import Loss
from natix_hf.errors import VerificationError
from natix_hf.provenance.files import json_sha256
from natix_hf.provenance.stored import Stored, to_json

_TOLD = 6  # looks that a sentence lists


@dataclass(frozen=True)
class Look:
    """One certification.

    Args:
        rows_sha256 (`str`): Hash of the ids of val_calib.
        sha256 (`str`): Hash of everything that the certification read: rows, confidences, answers and settings.
        delta (`float`): What it spent: the probability that this one is false is at most this.
    """

    rows_sha256: str
    sha256: str
    candidate_sha256: str
    gate: str
    loss: Loss
    classwise: bool
    alpha: float
    delta: float
    prior: tuple[float, float] | None
    feasible: bool


@dataclass(frozen=True)
class Looks(Stored):
    """Every look of a run. The file lies in the run folder, so that no repeated, interrupted or restored phase takes a
    look back.

    Args:
        sha256 (`str`): Hash of the list, so that a damaged file is not counted on from.
    """

    FILE: ClassVar[str] = "looks.json"

    looks: list[Look]
    sha256: str


def add_look(run_dir: Path, before: Sequence[Look], look: Look) -> list[Look]:
    """Record a look. The result is every different look at the same rows, in their order, this one included.

    Args:
        before: The looks that the last result of phase 5 lists. They count even if the run's list is gone.

    Raises:
        VerificationError: if the list is damaged.
    """
    kept = list({(each.rows_sha256, each.sha256): each for each in (*read_looks(run_dir), *before, look)}.values())
    Looks(kept, json_sha256(to_json(kept))).write(run_dir)
    return [each for each in kept if each.rows_sha256 == look.rows_sha256]


def read_looks(run_dir: Path) -> list[Look]:
    """Read the looks of a run; none if it has no list.

    Raises:
        VerificationError: if the list is damaged.
    """
    path = run_dir / Looks.FILE
    if not path.is_file():
        return []
    try:
        found = Looks.read(run_dir)
        if found.sha256 == json_sha256(to_json(found.looks)):
            return found.looks
        problem = "its hash is another"
    except VerificationError as error:
        problem = str(error)
    raise VerificationError(
        f"{path} counts the certifications of val_calib and is damaged ({problem}): bring it back from a copy of the "
        "run, or begin a new run with other splits (data.seed)"
    )


def words_about(looks: Sequence[Look], unit: str) -> str:
    """One sentence that lists several looks; "" if there is only one. `unit` is what a calibration row stands for."""
    if len(looks) < 2:
        return ""
    together = max(1 - sum(look.delta for look in looks), 0.0)
    told = [_told(look) for look in looks[:_TOLD]]
    more = [f"{len(looks) - _TOLD} more"] if len(looks) > _TOLD else []
    return (
        f"These calibration {unit} were certified {len(looks)} times with different settings or models "
        f"({'; '.join([*told, *more])}): all that was promised holds together with probability at least {together:.3g}"
    )


def _told(look: Look) -> str:
    of_each = " for each answer" if look.classwise else ""
    low, high = look.prior or (0.0, 0.0)
    shares = f" at shares from {low:g} to {high:g}" if low < high else ""
    found = "" if look.feasible else ", not certified"
    return f"{look.loss} at most {look.alpha:g}{of_each}{shares}{found}"
