"""The table of phases: numbers, folders, rights and dependencies. This module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from natix_hf.errors import UsageError, cut
from natix_hf.results.soup import SOUP


@dataclass(frozen=True)
class Phase:
    """One row of the table of phases.

    Args:
        needs: Phases that must finish first.
        uses: Phases whose results are used if they exist.
        roles: Roles whose rows the phase may read.
        sections: Sections of the recipe that decide the result.
        trains: True if the phase runs on every rank.
        title: What the phase does, for people.
        answers_of: Further roles whose rows the phase may read, but only through out-of-fold answers.
    """

    number: int
    folder: str
    needs: tuple[int, ...]
    uses: tuple[int, ...]
    roles: tuple[str, ...]
    sections: tuple[str, ...]
    trains: bool
    title: str
    answers_of: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return f"natix_hf.phases.{self.folder}"


# The keys that decide which views of a picture the phases after training ask about.
_ASKED = ("data.exam", "data.exam_views")
# The views that candidates are chosen by, where these are views of the exam.
CHOICE = ("choice_exam",)

# Phase 0 splits the rows. It runs automatically before any other phase.
PHASES: dict[int, Phase] = {
    phase.number: phase
    for phase in (
        Phase(0, "phase0_data", (), (), (), ("data",), False, "load, decode and split the images"),
        Phase(
            1,
            "phase1_baseline",
            (0,),
            (),
            ("train", "val_select"),
            ("model", "phase1", "data.labels", *CHOICE),
            True,
            "train the baseline",
        ),
        Phase(
            4,
            "phase4_explora",
            (0,),
            (1,),
            ("train", "val_select"),
            ("model", "phase1", "phase4", "data.labels", *CHOICE),
            True,
            "adapt the backbone without labels (ExPLoRA), then train on it",
        ),
        Phase(
            2,
            "phase2_threshold",
            (0, 1),
            (4,),
            ("val_select",),
            ("phase2", *_ASKED),
            False,
            "choose the champion and its threshold",
            ("train",),
        ),
        Phase(
            3,
            "phase3_gate",
            (0, 2),
            (),
            ("val_select",),
            ("phase3", *_ASKED),
            True,
            "train a gate and compare it with the margin",
            ("train",),
        ),
        Phase(
            5,
            "phase5_scrc",
            (0, 2),
            (3,),
            ("val_select", "val_calib"),
            ("phase5", *_ASKED),
            False,
            "calibrate, then certify the risk of the accepted answers",
            ("train",),
        ),
        Phase(
            6,
            "phase6_export",
            (0, 2),
            (3, 5),
            ("test",),
            ("phase6", "data.slices", "data.question", "data.synthetic_half", *_ASKED),
            False,
            "evaluate on test, then build the bundle",
        ),
    )
}
ORDER = (0, 1, 4, 2, 3, 5, 6)
# The phases that leave a candidate, in the order in which they are compared. The first is the control.
CANDIDATE_PHASES = (1, 4)


def candidate_folder(name: str) -> str:
    """The folder of a candidate in the run folder."""
    return f"{PHASES[2].folder}/{SOUP}" if name == SOUP else name


def number_of(folder: str) -> int:
    """The number of the phase that writes the folder of this name."""
    return next(phase.number for phase in PHASES.values() if phase.folder == folder)


def parse_phases(text: str) -> list[int]:
    """Parse `1,2,6` or `all` into phase numbers in the order in which they run.

    Raises:
        UsageError: if the text is not a list of numbers, or if a phase does not exist.
    """
    if text.strip() == "all":
        return order_phases(number for number in PHASES if number)
    try:
        return order_phases(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--phases is {cut(text)}: use numbers such as 1,2,6, or all") from None


def order_phases(numbers: Iterable[int]) -> list[int]:
    """Sort phase numbers into the order in which they run, without repetitions.

    Raises:
        UsageError: if a phase does not exist.
    """
    wanted = set(numbers)
    unknown = sorted(wanted - (set(PHASES) - {0}))
    if unknown:
        raise UsageError(f"there is no phase {unknown[0]}: choose from {', '.join(str(n) for n in PHASES if n)}")
    return [number for number in ORDER if number in wanted]
