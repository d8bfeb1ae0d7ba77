"""What a phase is given: its section, its folder, and the rows that its role allows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natix_hf.errors import LeakageError, RunError, UsageError, VerificationError
from natix_hf.models.config import ModelConfig
from natix_hf.phases.graph import PHASES, Phase, order_phases
from natix_hf.phases.pins import pin, pinned_model
from natix_hf.provenance.files import ids_sha256, json_sha256, read_json, remove_temporaries, write_json
from natix_hf.provenance.manifest import MANIFEST, Draft, manifest_problems, read_manifest, write_manifest
from natix_hf.recipe import Recipe

if TYPE_CHECKING:
    from natix_hf.data.rows import ImageData, Rows

CHECKPOINTS = "checkpoints"
ROWS_READ = "rows_read.json"
IN_PROGRESS = "in_progress.json"
_OF_THE_ATTEMPT = (CHECKPOINTS, IN_PROGRESS)


@dataclass
class PhaseContext:
    """One phase of one run. `is_main`: this process writes; the other ranks only train along."""

    phase: Phase
    recipe: Recipe
    run_dir: Path
    load_data: Callable[[], ImageData]
    is_main: bool = True
    _rows_read: dict[str, list[str]] = field(default_factory=dict)
    _draft: Draft | None = None

    @property
    def folder(self) -> Path:
        return self.run_dir / self.phase.folder

    @property
    def model(self) -> ModelConfig:
        """The recipe's model, a backbone on the Hub at the commit of this run."""
        return pinned_model(self.run_dir, self.recipe.model)

    def upstream(self, number: int) -> Path:
        """The folder of a finished phase that this one needs or uses."""
        if number not in self.phase.needs + self.phase.uses:
            raise RunError(f"{self.phase.folder} asked for phase {number}, which it neither needs nor uses")
        return self.run_dir / PHASES[number].folder

    def rows(self, role: str) -> Rows:
        """The rows of a role, recorded in the manifest.

        Raises:
            LeakageError: this phase must not read that role.
        """
        self._grant(role)
        rows = self.load_data().role(role)
        self._rows_read[role] = rows.ids
        return rows

    def note_rows(self, role: str, ids: Sequence[str]) -> None:
        """Records rows that were read through stored logits."""
        self._grant(role)
        self._rows_read[role] = list(ids)

    def _grant(self, role: str) -> None:
        if role not in self.phase.roles:
            granted = ", ".join(self.phase.roles) or "none"
            raise LeakageError(f"{self.phase.folder} must not read rows of {role}: it may read {granted}")

    def begin(self, keep: Sequence[str] = ()) -> None:
        """Makes room for this attempt: a finished result is set aside until `finish`, an equal, interrupted attempt
        stays, anything else goes but what `keep` names: paths in the folder that are good for this attempt too."""
        self._draft = Draft(
            run_id=self.run_dir.name,
            recipe=self.recipe.name,
            phase=self.phase.folder,
            section={name: self.recipe.section(name) for name in self.phase.sections},
            section_sha256=self.recipe.section_sha256(*self.phase.sections),
            upstream=upstream_digests(self.run_dir, self.phase),
            seed=self.recipe.stage(self.phase.number).seed if self.phase.trains else self.recipe.data.seed,
            hub=pin(self.run_dir, self.recipe, self.phase),
        )
        attempt = {"attempt": json_sha256([self._draft.section_sha256, self._draft.upstream])}
        marker = self.folder / IN_PROGRESS
        try:
            same = marker.is_file() and read_json(marker) == attempt
        except VerificationError:
            same = False
        if (self.folder / MANIFEST).is_file():
            aside = _aside(self.folder)
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.folder, aside)
            _copy(aside, self.folder, keep)  # the finished result stays whole
        elif not same and self.folder.exists():
            _remove_all_but(self.folder, keep)
        remove_temporaries(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(marker, attempt)

    def put_back(self) -> None:
        """Undoes `begin` where the attempt came to nothing: a finished result stands as before."""
        if (_aside(self.folder) / MANIFEST).is_file() and not (self.folder / CHECKPOINTS).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(_aside(self.folder), self.folder)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Writes the rows that were read, then the manifest; only then do the checkpoints go."""
        assert self._draft is not None, "begin() comes before finish()"
        write_json(self.folder / ROWS_READ, self._rows_read)
        self._draft.rows = {
            role: {"count": len(ids), "sha256": ids_sha256(ids)} for role, ids in self._rows_read.items()
        }
        write_manifest(self.folder, self._draft, metrics, exclude=_OF_THE_ATTEMPT)
        tidy(self.run_dir, self.phase)


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    for path in (source / name for name in names):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, place)
        elif path.exists():
            shutil.copy2(path, place)


def _remove_all_but(folder: Path, names: Sequence[str]) -> None:
    kept = [folder / name for name in names]
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds comes before it
        if any(place == path or place in path.parents for place in kept):
            continue
        if not path.is_dir():
            path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


def tidy(run_dir: Path, phase: Phase) -> None:
    """Removes what only an attempt needs from a finished phase; TensorBoard's curves move to the run folder."""
    folder = run_dir / phase.folder
    for curves in (folder / CHECKPOINTS).rglob("runs"):
        shutil.copytree(curves, run_dir / "tensorboard" / phase.folder, dirs_exist_ok=True)
    for leftover in (folder / CHECKPOINTS, _aside(folder)):
        shutil.rmtree(leftover, ignore_errors=True)
    (folder / IN_PROGRESS).unlink(missing_ok=True)


def restore_set_aside(run_dir: Path, phase: Phase, recipe: Recipe) -> None:
    """Brings back a finished result that an attempt with other settings set aside and never replaced."""
    folder = run_dir / phase.folder
    aside = _aside(folder)
    if (folder / MANIFEST).is_file() or not (aside / MANIFEST).is_file():
        return
    if manifest_problems(aside):
        return
    if read_manifest(aside)["section_sha256"] == recipe.section_sha256(*phase.sections):
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.set_aside")


def require_upstream(run_dir: Path, wanted: Sequence[int]) -> None:
    """Raises `UsageError` if a wanted phase needs one that is neither wanted before it nor finished here."""
    for number in wanted:
        for above in PHASES[number].needs:
            if above and above not in wanted and finished_digest(run_dir, PHASES[above]) is None:
                raise _unfinished(PHASES[number], PHASES[above], run_dir)


def _unfinished(phase: Phase, above: Phase, run_dir: Path) -> UsageError:
    state = "damaged" if (run_dir / above.folder / MANIFEST).is_file() else "not finished"
    return UsageError(
        f"phase {phase.number} needs phase {above.number}, which is {state} in {run_dir}: "
        f"natix-hf run RECIPE --phases {above.number} --run-dir {run_dir}"
    )


def finished_digest(run_dir: Path, phase: Phase) -> str | None:
    """The digest of a finished phase's manifest, or None."""
    try:
        return str(read_manifest(run_dir / phase.folder)["digest"])
    except VerificationError:
        return None


def upstream_digests(run_dir: Path, phase: Phase) -> dict[str, str]:
    """Digests of the phases that `phase` needs, and of those it uses that are finished.

    Raises:
        UsageError: a needed phase is not finished, or stale; the line names the command that makes it.
    """
    digests = {}
    for number in phase.needs + phase.uses:
        above = PHASES[number]
        digest = finished_digest(run_dir, above)
        if digest is not None:
            # Nothing is built on a stale phase: after a new division of the rows its model has seen what is test now.
            if is_stale(run_dir, above):
                raise UsageError(
                    f"phase {phase.number} needs phase {number}, but what that was made from changed in {run_dir}: "
                    f"natix-hf run RECIPE --phases {_with_all_needs(above)} --run-dir {run_dir}"
                )
            digests[above.folder] = digest
        elif number in phase.needs:
            raise _unfinished(phase, above, run_dir)
    return digests


def is_stale(run_dir: Path, phase: Phase) -> bool:
    """Whether a finished phase was made from other results than those that lie in the run now."""
    made_from = read_manifest(run_dir / phase.folder)["upstream"]
    above = [PHASES[number] for number in phase.needs + phase.uses]
    now = {p.folder: digest for p in above if (digest := finished_digest(run_dir, p)) is not None}
    return made_from != now or any(is_stale(run_dir, p) for p in above if p.folder in now)


def _with_all_needs(phase: Phase) -> str:
    wanted: set[int] = set()
    waiting = [phase.number]
    while waiting:
        number = waiting.pop()
        wanted.add(number)
        waiting += PHASES[number].needs
    return ",".join(str(number) for number in order_phases(wanted - {0}))


def why_not_current(run_dir: Path, phase: Phase, recipe: Recipe) -> str | None:
    """Why a phase must run (again), or None if what lies there is what it would make."""
    folder = run_dir / phase.folder
    if not (folder / MANIFEST).is_file():
        return "not finished yet"
    problems = manifest_problems(folder)
    if problems:
        return problems[0]
    manifest = read_manifest(folder)
    if manifest["section_sha256"] != recipe.section_sha256(*phase.sections):
        return "its settings changed"
    if manifest["upstream"] != upstream_digests(run_dir, phase):
        return "what it was made from changed"
    return None
