"""The inputs of a phase: files of earlier phases, each checked against its manifest when it is read, and recorded."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from natix_hf.bundle.names import CONFIG, POLICY, PROCESSOR, WEIGHTS
from natix_hf.data.config import DataConfig
from natix_hf.errors import RunError, UsageError, VerificationError
from natix_hf.provenance.files import check_files, file_sha256, list_files, listing_sha256
from natix_hf.provenance.manifest import read_manifest
from natix_hf.recipe import Recipe
from natix_hf.results.teachers import teacher_folder
from natix_hf.runs.graph import PHASES, Phase


@dataclass
class Inputs:
    """What one phase has read of a run.

    Args:
        read: The sha256 of each file, by its path in the run folder.
        outside: The sha256 of each file of another run, by its path.
    """

    run_dir: Path
    read: dict[str, str] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)

    def take(self, phase: Phase, *names: str) -> Path:
        """Check files of a finished phase, record them, and return the phase's folder.

        Args:
            names: Files and folders in the phase's folder; none means all of them.

        Raises:
            UsageError: if a file is not the one that the phase has written; the line gives the command that remakes
                it.
        """
        folder = self.run_dir / phase.folder
        try:
            files = read_manifest(folder)["files"]
        except VerificationError as error:
            raise _damaged(phase, self.run_dir, str(error)) from None
        wanted = {
            name: facts
            for name, facts in files.items()
            if (not names or any(name == one or name.startswith(f"{one}/") for one in names))
            and self.read.get(f"{phase.folder}/{name}") != facts["sha256"]
        }
        problems = check_files(folder, wanted)
        if problems:
            raise _damaged(phase, self.run_dir, problems[0])
        self.read |= {f"{phase.folder}/{name}": str(facts["sha256"]) for name, facts in wanted.items()}
        return folder

    def require_unchanged(self) -> None:
        """Raise a `RunError` if a file is no longer what it was when it was first read."""
        for name, sha256 in (self.read | self.outside).items():
            path = Path(name) if name in self.outside else self.run_dir / name
            if not path.is_file() or file_sha256(path) != sha256:
                raise RunError(f"{path} was changed while the phase read it: run the phase again")


def _damaged(phase: Phase, run_dir: Path, problem: str) -> UsageError:
    return UsageError(
        f"{problem}; phase {phase.number} has to make it again: "
        f"natix-hf run RECIPE --phases {phase.number} --run-dir {run_dir}"
    )


def backbone_files(backbone: str | None) -> dict[str, str]:
    """The sha256 of every file of a local backbone; empty for one from the Hub, whose commit is pinned, and for none.

    The settings' hash looks at the beginning of each file only.
    """
    folder = Path(backbone).expanduser() if backbone is not None else None
    if folder is None or not folder.is_dir():
        return {}
    return {name: file_sha256(folder / name) for name in list_files(folder)}


def teacher_files(recipe: Recipe, phase: Phase) -> dict[str, str]:
    """The sha256 of the files that decide the answers of local teachers; empty for those from the Hub, for none, and
    for a phase that trains no classifier of theirs."""
    stages = {1: recipe.phase1, 4: recipe.phase4.supervised or recipe.phase1}
    stage = stages.get(phase.number)
    if stage is None or (phase.number == 4 and not recipe.phase4.use_labeled_data):
        return {}
    found: dict[str, str] = {}
    for number, reference in enumerate(stage.teachers):
        folder = teacher_folder(reference)
        for path in [folder / name for name in (CONFIG, WEIGHTS, PROCESSOR, POLICY)] if folder is not None else []:
            found |= {f"{number}/{path.name}": file_sha256(path)} if path.is_file() else {}
    return found


def source_listings(data: DataConfig) -> list[str]:
    """What `stat` says of the files of each local source that is there, as one sha256 a source.

    The settings' hash looks at the beginning of each file only. If a file was written again, phase 0 reads the source
    again, and its result says whether a label or a picture is another one.
    """
    paths = [Path(source.source).expanduser() for source in data.sources]
    return [listing_sha256(path) for path in paths if path.exists()]


def changed_input(run_dir: Path, manifest: dict[str, Any]) -> Path | None:
    """A file that a finished phase has read and that is gone or another one now, or None. Of other runs, which a moved
    run may lie without, only a file that is another one counts."""
    read: dict[str, str] = manifest.get("inputs", {})
    for name, sha256 in read.items():
        path = run_dir / name
        if not path.is_file() or _sha256_now(path, path.stat().st_size, path.stat().st_mtime_ns) != sha256:
            return path
    for name, sha256 in manifest.get("outside", {}).items():
        path = Path(name)
        if path.is_file() and _sha256_now(path, path.stat().st_size, path.stat().st_mtime_ns) != sha256:
            return path
    return None


@functools.lru_cache(maxsize=1024)
def _sha256_now(path: Path, size: int, mtime_ns: int) -> str:
    """The sha256 of a file. Several phases read the same weights, and each asks."""
    return file_sha256(path)


def were_other_files(run_dir: Path, manifest: dict[str, Any]) -> bool:
    """True if a phase has read a file that is not the one which the manifests of the run name now."""
    named: dict[str, dict[str, Any]] = {}
    folders = {phase.folder for phase in PHASES.values()}
    for name, sha256 in manifest.get("inputs", {}).items():
        folder, _, file = name.partition("/")
        if folder not in folders:
            return True
        if folder not in named:
            try:
                named[folder] = read_manifest(run_dir / folder)["files"]
            except VerificationError:
                return True
        if named[folder].get(file, {}).get("sha256") != sha256:
            return True
    return False
