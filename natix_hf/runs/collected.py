"""The typed results of a run's finished phases, in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from natix_hf.bundle.names import POLICY, bundle_of_run
from natix_hf.bundle.policy import Policy, read_policy
from natix_hf.errors import VerificationError
from natix_hf.provenance.manifest import MANIFEST
from natix_hf.provenance.stored import Stored
from natix_hf.results.calibration import CalibrationReport
from natix_hf.results.decision import Decision
from natix_hf.results.evaluation import Evaluation
from natix_hf.results.examples import EXAMPLES, Examples
from natix_hf.results.gate import GateReport
from natix_hf.results.promise import PromiseReport
from natix_hf.runs.graph import PHASES

_Read = TypeVar("_Read")
_Result = TypeVar("_Result", bound=Stored)


@dataclass(frozen=True)
class RunResults:
    """The results of a run. The result of a phase that has not finished is None.

    Args:
        decision ([`Decision`]): Champion and threshold, from phase 2.
        gate ([`GateReport`]): The learned gate compared with the margin, from phase 3.
        calibration ([`CalibrationReport`]): The fitted calibration and its errors, from phase 5.
        promise ([`PromiseReport`]): The certified promise, from phase 5.
        evaluation ([`Evaluation`]): The figures on test, from phase 6.
        examples ([`Examples`]): The hard test rows, from phase 6.
        policy ([`Policy`]): How the bundle decides, from phase 6.
    """

    decision: Decision | None = None
    gate: GateReport | None = None
    calibration: CalibrationReport | None = None
    promise: PromiseReport | None = None
    evaluation: Evaluation | None = None
    examples: Examples | None = None
    policy: Policy | None = None


def phase_finished(run_dir: Path, number: int) -> bool:
    """True if a phase of a run has written its manifest."""
    return (run_dir / PHASES[number].folder / MANIFEST).is_file()


def read_results(
    run_dir: Path,
    counts: Callable[[int], bool] | None = None,
    on_damage: Callable[[str], None] | None = None,
) -> RunResults:
    """Read the results of a run folder.

    Args:
        counts: Takes the number of a phase and returns True if its files should be read; None reads finished phases.
        on_damage: Called with the name of a damaged file, such as `phase2_threshold/threshold.json`, whose result is
            then None. If it is None itself, a damaged file is an error.

    Raises:
        VerificationError: if a result is damaged and `on_damage` is None.
    """

    def read(number: int, cls: type[_Result], inside: str = "") -> _Result | None:
        folder = run_dir / PHASES[number].folder / inside
        return guarded(number, folder / cls.FILE, lambda: cls.read(folder))

    def guarded(number: int, path: Path, reader: Callable[[], _Read]) -> _Read | None:
        wanted = counts(number) if counts is not None else phase_finished(run_dir, number)
        if not wanted or not path.is_file():
            return None
        try:
            return reader()
        except VerificationError:
            if on_damage is None:
                raise
            on_damage(path.relative_to(run_dir).as_posix())
            return None

    policy = bundle_of_run(run_dir) / POLICY
    return RunResults(
        decision=read(2, Decision),
        gate=read(3, GateReport),
        calibration=read(5, CalibrationReport),
        promise=read(5, PromiseReport),
        evaluation=read(6, Evaluation),
        examples=read(6, Examples, EXAMPLES),
        policy=guarded(6, policy, lambda: read_policy(policy)),
    )
