"""Where the teacher of a recipe lies, and how it compares with what it taught. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from natix_hf.bundle.names import WEIGHTS
from natix_hf.errors import VerificationError
from natix_hf.provenance.files import file_fingerprint
from natix_hf.results.soup import SOUP

if TYPE_CHECKING:
    from natix_hf.results.logits import LogitTable
    from natix_hf.trainers.distil import Distillation

_RUN, _DECISION, _MODEL = "run.json", "phase2_threshold", "model"


def is_run(path: Path) -> bool:
    """True for a run folder."""
    return (path / _RUN).is_file()


def champion_folder(run: Path) -> Path | None:
    """The model of a run's champion; None if its phase 2 has left no decision that can be read."""
    from natix_hf.results.decision import Decision

    try:
        champion = Decision.read(run / _DECISION).champion
    except VerificationError:
        return None
    return run / (f"{_DECISION}/{SOUP}" if champion == SOUP else champion) / _MODEL


def teacher_folder(reference: str) -> Path | None:
    """The folder with the weights of a teacher on this disk: of a run its champion's, else the folder itself."""
    path = Path(reference).expanduser()
    folder = champion_folder(path) if is_run(path) else path
    return folder if folder is not None and (folder / WEIGHTS).is_file() else None


def teacher_content(reference: str) -> Any:
    """What identifies a teacher in the hash of settings: the beginning and end of its weights, not its path."""
    folder = teacher_folder(reference)
    return reference if folder is None else {"weights": file_fingerprint(folder / WEIGHTS)}


def compare_with_teachers(
    taught: dict[str, Any], distillation: Distillation, model: Path, table: LogitTable, target_prior: float | None
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Compare a student with its teachers: the MCC on val_select, and the speed here.

    Args:
        taught: The facts of `natix_hf.trainers.distil.taught`.
        model: The folder of the student.
        table: Its answers to val_select.

    Returns:
        The facts with those of the student, the speeds in pictures a second, and lines for people.
    """
    from natix_hf.bundle.inference import Inference
    from natix_hf.metrics import select_threshold
    from natix_hf.trainers.teacher import Teacher, pictures_a_second

    best = select_threshold(table.logits, table.labels, target_prior=target_prior)
    own = {"parameters": Teacher("student", model).parameters, "val_select_mcc_optimistic": float(best.value)}
    rates = [pictures_a_second(teacher.inference()) for teacher in distillation.teachers]
    rates.append(pictures_a_second(Inference(model)))
    compared = [*taught["teachers"], {"name": "the student"} | own]
    lines = [
        f"{fact['name']}: MCC {fact['val_select_mcc_optimistic']:.3f} on val_select (optimistic), "
        f"{fact['parameters'] / 1e6:,.2f} M parameters, {rate:,.0f} pictures a second here"
        for fact, rate in zip(compared, rates, strict=True)
    ]
    if len(taught["teachers"]) > 1:
        lines.insert(-1, f"the mean of these: MCC {taught['val_select_mcc_optimistic']:.3f}")
    return taught | {"student": own}, {"teachers": rates[:-1], "student": rates[-1]}, lines
