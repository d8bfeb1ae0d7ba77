"""One attempt at a phase: it clears the folder, keeps what is still valid, and writes the manifest last."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from natix_hf.errors import VerificationError
from natix_hf.provenance.durable import make_folder, remove_folder, replace, sync_folder
from natix_hf.provenance.files import atomic_folder, ids_sha256, json_sha256, read_json, remove_temporaries, write_json
from natix_hf.provenance.manifest import MANIFEST, Draft, manifest_problems, read_manifest, write_manifest
from natix_hf.recipe import Recipe
from natix_hf.runs.context import CHECKPOINTS, Outcome, PhaseContext
from natix_hf.runs.folders import IN_PROGRESS, run_id_of
from natix_hf.runs.freshness import upstream_digests
from natix_hf.runs.graph import Phase
from natix_hf.runs.inputs import backbone_files, source_listings, teacher_files
from natix_hf.runs.pins import pin

ROWS_READ = "rows_read.json"
_OF_THE_ATTEMPT = (CHECKPOINTS, IN_PROGRESS)


class Attempt:
    """An attempt at a phase, made by the process that writes.

    A finished result is set aside until `finish`. An interrupted attempt with the same settings and inputs is
    continued. Anything else is removed.

    Args:
        keep: Paths in the phase's folder that are valid for this attempt too.
    """

    def __init__(self, context: PhaseContext, keep: Sequence[str] = ()) -> None:
        phase, recipe, run_dir = context.phase, context.recipe, context.run_dir
        self.context = context
        self.folder = context.folder
        self._draft = Draft(
            run_id=run_id_of(run_dir),
            recipe=recipe.name,
            phase=phase.folder,
            section=recipe.sections(*phase.sections),
            section_sha256=recipe.section_sha256(*phase.sections),
            upstream=upstream_digests(run_dir, phase),
            seed=recipe.stage(phase.number).seed if phase.trains else recipe.data.seed,
            hub=pin(run_dir, recipe, phase),
            backbone=backbone_files(recipe.model.backbone) if "model" in phase.sections else {},
            teacher=teacher_files(recipe, phase),
            source_listings=source_listings(recipe.data) if phase.number == 0 else [],
        )
        made_from = [
            self._draft.section_sha256,
            self._draft.upstream,
            *filter(None, [self._draft.backbone, self._draft.teacher]),
        ]
        attempt = {"attempt": json_sha256(made_from)}
        marker = self.folder / IN_PROGRESS
        try:
            same = marker.is_file() and read_json(marker) == attempt
        except VerificationError:
            same = False
        if (self.folder / MANIFEST).is_file():
            aside = set_aside(self.folder)
            remove_folder(aside)
            replace(self.folder, aside)
            with atomic_folder(self.folder) as fresh:
                _copy(aside, fresh, keep)  # the finished result stays whole
        elif not same and self.folder.exists():
            _remove_all_but(self.folder, keep)
        remove_temporaries(self.folder)
        make_folder(self.folder)
        write_json(marker, attempt)

    def put_back(self) -> None:
        """Undo an attempt that stopped before any work, and restore the finished result."""
        if (set_aside(self.folder) / MANIFEST).is_file() and not (self.folder / CHECKPOINTS).exists():
            remove_folder(self.folder)
            replace(set_aside(self.folder), self.folder)

    def finish(self, outcome: Outcome) -> None:
        """Write the list of rows that were read, then the manifest, and only then remove the checkpoints.

        Raises:
            RunError: if a file of an earlier phase is not what it was when it was read.
        """
        self.context.inputs.require_unchanged()
        self._draft.inputs = dict(sorted(self.context.inputs.read.items()))
        self._draft.outside = dict(sorted(self.context.inputs.outside.items()))
        read = self.context.rows_read
        write_json(self.folder / ROWS_READ, read)
        self._draft.rows = {role: {"count": len(ids), "sha256": ids_sha256(ids)} for role, ids in read.items()}
        write_manifest(self.folder, self._draft, outcome.metrics, _OF_THE_ATTEMPT, outcome.of_the_attempt)
        tidy(self.context.run_dir, self.context.phase)


def tidy(run_dir: Path, phase: Phase) -> None:
    """Remove an attempt's temporary files from a finished phase, and copy TensorBoard's curves to the run folder."""
    folder = run_dir / phase.folder
    for events in (folder / CHECKPOINTS).rglob("runs/*/events.out.*"):
        # Each attempt has a folder of its own there. In one folder TensorBoard draws one curve of them.
        training = events.parents[2].relative_to(folder / CHECKPOINTS)
        curves = run_dir / "tensorboard" / phase.folder / training
        curves.mkdir(parents=True, exist_ok=True)
        shutil.copy2(events, curves)
    for leftover in (folder / CHECKPOINTS, set_aside(folder)):
        remove_folder(leftover)
    if (folder / IN_PROGRESS).exists():  # a run that is only looked at may lie on a read-only disk
        (folder / IN_PROGRESS).unlink()


def restore_set_aside(run_dir: Path, phase: Phase, recipe: Recipe) -> None:
    """Restore a finished result with these settings that an unfinished attempt with other settings had set aside."""
    folder = run_dir / phase.folder
    aside = set_aside(folder)
    if (folder / MANIFEST).is_file() or not (aside / MANIFEST).is_file():
        return
    if manifest_problems(aside):
        return
    if read_manifest(aside)["section_sha256"] == recipe.section_sha256(*phase.sections):
        remove_folder(folder)
        replace(aside, folder)


def set_aside(folder: Path) -> Path:
    """Where the finished result of a phase lies while another attempt at it runs."""
    return folder.with_name(f"{folder.name}.set_aside")


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    for path in (source / name for name in names):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, place)
        elif path.exists():
            shutil.copy2(path, place)


def _remove_all_but(folder: Path, names: Sequence[str]) -> None:
    kept = [place for name in names if (place := folder / name).exists()]
    for path in sorted(folder.iterdir()):
        if path in kept:
            continue
        inside = [place.relative_to(path).as_posix() for place in kept if path in place.parents]
        if inside:
            _remove_all_but(path, inside)
        elif path.is_dir():
            remove_folder(path)
        else:
            path.unlink()
    sync_folder(folder)  # the mark of the next attempt must not meet the checkpoints of the last one
