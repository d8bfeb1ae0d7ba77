"""What runs there are, how far each came, how much disk it takes, and what of that is not needed any more."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natix_hf.disk import cache_folders
from natix_hf.errors import UsageError, VerificationError
from natix_hf.provenance.durable import remove_folder
from natix_hf.provenance.files import list_temporaries, read_json
from natix_hf.provenance.manifest import MANIFEST, read_manifest
from natix_hf.provenance.owner import OWNER, at_work
from natix_hf.runs.attempt import set_aside
from natix_hf.runs.context import CHECKPOINTS
from natix_hf.runs.folders import IN_PROGRESS, RUN_FILE
from natix_hf.runs.freshness import is_stale
from natix_hf.runs.graph import ORDER, PHASES, Phase

CURRENT, STALE, DAMAGED, AT_WORK, INTERRUPTED = "current", "stale", "damaged", "in progress", "interrupted"
_QUIET_S = 600
_CACHES = {"datasets": "natix_hf", "features": "features"}


@dataclass(frozen=True)
class PhaseState:
    """How far a phase came. `step` is the newest checkpoint's, where a training was interrupted."""

    state: str
    step: int | None = None


@dataclass(frozen=True)
class RunState:
    """A run on the disk.

    Args:
        folder: Where it lies now, whatever its name.
        recipe, run_id: As `run.json` records them; None if that is damaged.
        phases: The state of each phase that has begun, by folder.
        size: Bytes on disk.
        written: When a file of it was last written, in seconds since 1970.
        mcc: On test, of a finished phase 6.
    """

    folder: Path
    recipe: str | None
    run_id: str | None
    phases: dict[str, PhaseState]
    size: int
    written: float
    mcc: float | None


@dataclass(frozen=True)
class Spare:
    """Something that is not needed any more: its path, why, and its size in bytes."""

    path: Path
    why: str
    size: int


def find_runs(folder: Path) -> list[Path]:
    """Find every run folder at or below a folder by its `run.json`, sorted by path. Links are not followed.

    Raises:
        UsageError: if there is none.
    """
    found = []
    for place, folders, names in os.walk(folder):
        if RUN_FILE in names:
            found.append(Path(place))
            folders.clear()  # a run holds no other run
    if not found:
        what = "holds no run" if folder.is_dir() else "is no folder"
        raise UsageError(f"{folder} {what}: name a folder that natix-hf run has written to, such as outputs")
    return sorted(found)


def is_at_work(run_dir: Path) -> bool:
    """True if a process may be working on a run. Then nothing of it may be removed."""
    if (run_dir / OWNER).is_dir():
        return at_work(run_dir) is not None
    return time.time() - _written(run_dir) < _QUIET_S  # older versions leave no mark of the process at work


def state_of_run(run_dir: Path) -> RunState:
    """Read how far a run came. Sizes of files are compared with the manifests, their bytes are not."""
    recorded = _run_file(run_dir)
    at_work = is_at_work(run_dir)
    phases = {PHASES[n].folder: state for n in ORDER if (state := _state_of(run_dir, PHASES[n], at_work)) is not None}
    return RunState(
        run_dir,
        recorded.get("recipe"),
        recorded.get("run_id"),
        phases,
        size_of(run_dir),
        _written(run_dir),
        _mcc(run_dir),
    )


def _run_file(run_dir: Path) -> dict[str, Any]:
    try:
        recorded = read_json(run_dir / RUN_FILE)
    except VerificationError:
        return {}
    given = recorded if isinstance(recorded, dict) else {}
    return {key: value for key, value in given.items() if isinstance(value, str)}


def _state_of(run_dir: Path, phase: Phase, at_work: bool) -> PhaseState | None:
    folder = run_dir / phase.folder
    if (folder / MANIFEST).is_file():
        if not _whole(folder):
            return PhaseState(DAMAGED)
        try:
            return PhaseState(STALE if is_stale(run_dir, phase) else CURRENT)
        except VerificationError:  # a phase above is damaged
            return PhaseState(STALE)
    if (folder / IN_PROGRESS).is_file():
        return PhaseState(AT_WORK if at_work else INTERRUPTED, _newest_step(folder / CHECKPOINTS))
    if folder.is_dir() and any(folder.iterdir()):
        return PhaseState(DAMAGED)
    return PhaseState(INTERRUPTED) if (set_aside(folder) / MANIFEST).is_file() else None


def _whole(folder: Path) -> bool:
    """True if a finished phase has its manifest as written, and every file in its full size."""
    try:
        files = read_manifest(folder)["files"]
        return all((folder / name).stat().st_size == facts["size"] for name, facts in files.items())
    except (VerificationError, OSError, KeyError, TypeError):
        return False


def _newest_step(checkpoints: Path) -> int | None:
    """The number of the newest checkpoint that was marked complete, of whichever training below the folder."""
    steps = [path.parent.name.rpartition("-")[2] for path in checkpoints.rglob("checkpoint-*/complete.json")]
    return max((int(step) for step in steps if step.isdigit()), default=None)


def _mcc(run_dir: Path) -> float | None:
    try:
        found = read_manifest(run_dir / PHASES[6].folder)["metrics"]["test_mcc"]
    except (VerificationError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, int | float) else None


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files below a folder. Links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(entry.lstat().st_size for entry in _below(path))


def _below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def _written(run_dir: Path) -> float:
    times = [run_dir.stat().st_mtime]
    for path in _below(run_dir):
        try:
            times.append(path.lstat().st_mtime)
        except FileNotFoundError:  # it was renamed just now
            times.append(time.time())
    return max(times)


def spare(run_dir: Path, checkpoints: bool = False) -> list[Spare]:
    """List what a run does not need: never a result, a bundle, or what an interrupted phase continues from.

    Args:
        checkpoints: List the checkpoints of interrupted phases too. Those phases then begin anew.
    """
    found = [(run_dir / name, "left by an interrupted write") for name in list_temporaries(run_dir)]
    for phase in PHASES.values():
        folder = run_dir / phase.folder
        finished = (folder / MANIFEST).is_file() and _whole(folder)
        if finished:
            found.append((set_aside(folder), "a result that a later one has replaced"))
            found.append((folder / CHECKPOINTS, "checkpoints of a finished phase"))
        elif checkpoints and not (folder / MANIFEST).is_file():
            found.append((folder / CHECKPOINTS, "checkpoints of an interrupted phase"))
    inside = [(path, why) for path, why in found if path.is_symlink() or path.exists()]
    tops = [(path, why) for path, why in inside if not any(other in path.parents for other, _ in inside)]
    return [Spare(path, why, size_of(path)) for path, why in tops if not _leads_out(path, run_dir)]


def _leads_out(path: Path, run_dir: Path) -> bool:
    """True for a link, and for what lies behind one: it is not the run's to remove."""
    return any(place.is_symlink() for place in (path, *path.parents) if run_dir in place.parents)


def free(found: Spare) -> None:
    """Remove what `spare` has listed."""
    if found.path.is_dir():
        remove_folder(found.path)
    else:
        found.path.unlink(missing_ok=True)


def shared_caches() -> dict[Path, int]:
    """The folders of copies and features that runs share outside their folders, with their sizes in bytes."""
    folders = cache_folders()
    caches = {folders[use][1] / below for use, below in _CACHES.items()}
    return {cache: size_of(cache) for cache in sorted(caches) if cache.is_dir()}
