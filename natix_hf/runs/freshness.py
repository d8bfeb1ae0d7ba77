"""The state of a run's results: missing, current or stale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from natix_hf.errors import UsageError, VerificationError
from natix_hf.provenance.files import list_files
from natix_hf.provenance.manifest import MANIFEST, manifest_problems, read_manifest
from natix_hf.recipe import Recipe
from natix_hf.results.decision import Decision
from natix_hf.runs.folders import IN_PROGRESS
from natix_hf.runs.graph import PHASES, Phase, order_phases
from natix_hf.runs.inputs import (
    backbone_files,
    changed_input,
    source_listings,
    teacher_files,
    were_other_files,
)
from natix_hf.ssl.objectives import version_of

NOT_FINISHED = "not finished yet"


def require_upstream(run_dir: Path, wanted: Sequence[int]) -> None:
    """Raise a `UsageError` if a wanted phase needs one that is neither wanted nor finished in this run."""
    for number in wanted:
        for above in PHASES[number].needs:
            if above and above not in wanted and finished_digest(run_dir, PHASES[above]) is None:
                raise _unfinished(PHASES[number], PHASES[above], run_dir)


def _unfinished(phase: Phase, above: Phase, run_dir: Path) -> UsageError:
    state = "damaged" if lost_its_manifest(run_dir / above.folder) else "not finished"
    verb, other = "needs", ""
    if above.number not in phase.needs:
        verb, other = "uses", f", or remove {run_dir / above.folder} to go on without it"
    return UsageError(
        f"phase {phase.number} {verb} phase {above.number}, which is {state} in {run_dir}: "
        f"natix-hf run RECIPE --phases {above.number} --run-dir {run_dir}{other}"
    )


def lost_its_manifest(folder: Path) -> bool:
    """True if the folder of a phase without a readable manifest holds files, but no mark of an attempt at work: then
    it had a manifest once."""
    if (folder / MANIFEST).exists():
        return True
    return folder.is_dir() and not (folder / IN_PROGRESS).is_file() and bool(list_files(folder))


def finished_digest(run_dir: Path, phase: Phase) -> str | None:
    """The digest of a phase's manifest, or None if the phase is not finished."""
    try:
        return str(read_manifest(run_dir / phase.folder)["digest"])
    except VerificationError:
        return None


def upstream_digests(run_dir: Path, phase: Phase) -> dict[str, str]:
    """The digests of the phases that `phase` needs, and of the finished ones among those that it uses.

    Raises:
        UsageError: if a needed phase is unfinished, or one of all these is damaged or stale; the line gives the
            command that runs it.
    """
    digests = {}
    for number in phase.needs + phase.uses:
        above = PHASES[number]
        digest = finished_digest(run_dir, above)
        if digest is not None:
            # Never build on a stale phase: after new splits its model may have trained on rows that are test now.
            if is_stale(run_dir, above):
                raise UsageError(
                    f"phase {phase.number} needs phase {number}, but the inputs of that changed in {run_dir}: "
                    f"natix-hf run RECIPE --phases {_with_all_needs(above)} --run-dir {run_dir}"
                )
            digests[above.folder] = digest
        elif number in phase.needs or lost_its_manifest(run_dir / above.folder):
            raise _unfinished(phase, above, run_dir)
    return digests


def is_stale(run_dir: Path, phase: Phase) -> bool:
    """True if a finished phase was made from other results than the run holds now."""
    manifest = read_manifest(run_dir / phase.folder)
    above = [PHASES[number] for number in phase.needs + phase.uses]
    now = {p.folder: digest for p in above if (digest := finished_digest(run_dir, p)) is not None}
    if manifest["upstream"] != now or were_other_files(run_dir, manifest):
        return True
    return any(is_stale(run_dir, p) for p in above if p.folder in now)


def _with_all_needs(phase: Phase) -> str:
    wanted: set[int] = set()
    waiting = [phase.number]
    while waiting:
        number = waiting.pop()
        wanted.add(number)
        waiting += PHASES[number].needs
    return ",".join(str(number) for number in order_phases(wanted - {0}))


def why_not_current(run_dir: Path, phase: Phase, recipe: Recipe) -> str | None:
    """The reason why a phase must run (again), or None if its result is up to date."""
    folder = run_dir / phase.folder
    if not (folder / MANIFEST).is_file():
        return NOT_FINISHED
    problems = manifest_problems(folder)
    if problems:
        return problems[0]
    manifest = read_manifest(folder)
    if manifest["section_sha256"] != recipe.section_sha256(*phase.sections):
        return "its settings changed"
    if manifest["upstream"] != upstream_digests(run_dir, phase) or were_other_files(run_dir, manifest):
        return "its inputs changed"
    changed = changed_input(run_dir, manifest)
    if changed is not None:  # the phase then refuses it, or finds that it was made again
        return f"{changed} is not the file that it has read"
    known = manifest.get("backbone")
    if known and (now := backbone_files(recipe.model.backbone)) and now != known:  # a moved run may lie without it
        return "its backbone changed"
    taught = manifest.get("teacher")
    if taught and (now := teacher_files(recipe, phase)) and now != taught:
        return "its teacher changed"
    written = manifest.get("source_listings", [])
    if written and len(now_there := source_listings(recipe.data)) == len(written) and now_there != written:
        return "a file of its source was written again"
    exam = recipe.data.drawn_exam
    if phase.number == 2 and exam is not None and Decision.read(folder).exam != exam:
        return "the exam is drawn in another way now"
    trained = manifest["metrics"].get("objective")
    if phase.number == 4 and trained and manifest["metrics"].get("objective_version", 1) != version_of(trained):
        return f"the objective {trained} trains in another way now"
    return None
