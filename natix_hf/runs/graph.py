"""The table of phases: numbers, folders, rights and dependencies. Light: imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from natix_hf.errors import UsageError


@dataclass(frozen=True)
class Phase:
    """One row of the table.

    `needs` must be finished before; `uses` are taken into account where they are; `roles` are the rows it may read;
    `sections` of the recipe decide its result; `trains` says whether it runs on every rank.
    """

    number: int
    folder: str
    needs: tuple[int, ...]
    uses: tuple[int, ...]
    roles: tuple[str, ...]
    sections: tuple[str, ...]
    trains: bool
    title: str

    @property
    def module(self) -> str:
        return f"natix_hf.phases.{self.folder}"


# What decides which views of a picture the phases after the training ask about.
_ASKED = ("data.exam", "data.exam_views")

# Phase 0 divides the rows; it runs by itself before any other.
PHASES: dict[int, Phase] = {
    phase.number: phase
    for phase in (
        Phase(0, "phase0_data", (), (), (), ("data",), False, "load, decode and divide the images"),
        Phase(
            1, "phase1_baseline", (0,), (), ("train", "val_select"), ("model", "phase1"), True, "train the baseline"
        ),
        Phase(
            4,
            "phase4_explora",
            (0,),
            (1,),
            ("train", "val_select"),
            ("model", "phase1", "phase4"),
            True,
            "ExPLoRA: adapt the backbone without labels, then train on it and on the stock one",
        ),
        Phase(
            2, "phase2_threshold", (0, 1), (4,), ("val_select",), ("phase2", *_ASKED), False, "champion and threshold"
        ),
        Phase(
            3,
            "phase3_gate",
            (0, 2),
            (),
            ("val_select",),
            ("phase3", *_ASKED),
            True,
            "a learned gate against the margin",
        ),
        Phase(
            5,
            "phase5_scrc",
            (0, 2),
            (3,),
            ("val_select", "val_calib"),
            ("phase5", *_ASKED),
            False,
            "calibrate, then control the risk of the accepted answers",
        ),
        Phase(
            6,
            "phase6_export",
            (0, 2),
            (3, 5),
            ("test",),
            ("phase6", "data.slices", *_ASKED),
            False,
            "test, build bundle",
        ),
    )
}
ORDER = (0, 1, 4, 2, 3, 5, 6)
# The phases that leave a candidate, in the order in which they are compared; the first is the control.
CANDIDATE_PHASES = (1, 4)


def number_of(folder: str) -> int:
    """The number of the phase that leaves a folder of this name."""
    return next(phase.number for phase in PHASES.values() if phase.folder == folder)


def parse_phases(text: str) -> list[int]:
    """`1,2,6` or `all` as phase numbers in dependency order.

    Raises:
        UsageError: not a list of numbers, or a phase that does not exist.
    """
    if text.strip() == "all":
        return order_phases(number for number in PHASES if number)
    try:
        return order_phases(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--phases {text!r}: give numbers as in 1,2,6, or all") from None


def order_phases(numbers: Iterable[int]) -> list[int]:
    wanted = set(numbers)
    unknown = sorted(wanted - (set(PHASES) - {0}))
    if unknown:
        raise UsageError(
            f"there is no phase {unknown[0]} in this version: there are {', '.join(str(n) for n in PHASES if n)}"
        )
    return [number for number in ORDER if number in wanted]
