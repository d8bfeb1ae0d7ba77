"""`natix-hf verify`: is a run or a bundle what its manifests say, and has a row leaked?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from natix_hf.data.splits import Splits, leaks_between_roles, read_splits
from natix_hf.errors import UsageError, VerificationError
from natix_hf.phases.context import ROWS_READ
from natix_hf.phases.graph import ORDER, PHASES, Phase
from natix_hf.provenance.files import ids_sha256, read_json
from natix_hf.provenance.manifest import MANIFEST, manifest_problems, read_manifest
from natix_hf.provenance.runs import RUN_FILE


def find_problems(reference: str) -> list[str]:
    """One line for everything that is off in a run folder, a bundle folder or a Hub repository.

    Raises:
        UsageError: there is nothing of that name.
    """
    path = Path(reference)
    if (path / RUN_FILE).is_file():
        return run_problems(path)
    from natix_hf.bundle.load import find_bundle
    from natix_hf.bundle.verify import bundle_problems

    return bundle_problems(find_bundle(reference))


def run_problems(run_dir: Path) -> list[str]:
    """Checksums, lineage between phases, rights to rows, and leaks between splits."""
    finished = [PHASES[n] for n in ORDER if n in PHASES and (run_dir / PHASES[n].folder / MANIFEST).is_file()]
    if not finished:
        raise UsageError(f"{run_dir} has no finished phase: nothing to verify yet")
    problems: list[str] = []
    manifests: dict[str, dict[str, Any]] = {}
    for phase in finished:
        problems += manifest_problems(run_dir / phase.folder)
        try:
            manifests[phase.folder] = read_manifest(run_dir / phase.folder)
        except VerificationError:
            continue  # already among the problems
    problems += _lineage_problems(manifests)
    try:
        splits = read_splits(run_dir / PHASES[0].folder / "splits.json")
    except VerificationError as error:
        return [*problems, *([] if str(error) in problems else [str(error)])]
    problems += leaks_between_roles(splits)
    for phase in finished:
        problems += _row_problems(run_dir, phase, manifests.get(phase.folder, {}), splits)
    return problems + _bundle_problems(run_dir)


def _lineage_problems(manifests: dict[str, dict[str, Any]]) -> list[str]:
    problems = []
    for folder, manifest in manifests.items():
        for above, digest in manifest["upstream"].items():
            if above not in manifests:
                problems.append(f"{folder} was made from {above}, which is missing or damaged")
            elif manifests[above]["digest"] != digest:
                problems.append(
                    f"{folder} was made from another {above} than the one here: run phase {folder[5]} again"
                )
    return problems


def _row_problems(run_dir: Path, phase: Phase, manifest: dict[str, Any], splits: Splits) -> list[str]:
    """Rows that a phase read against its rights, or that stand in another role now."""
    try:
        read: dict[str, list[str]] = read_json(run_dir / phase.folder / ROWS_READ)
    except VerificationError as error:
        return [str(error)]
    role_of = dict(zip(splits.ids, splits.roles, strict=True))
    problems = []
    for role, ids in read.items():
        if role not in phase.roles:
            problems.append(f"{phase.folder} read rows of {role}, which it must not")
        moved = [row_id for row_id in ids if role_of.get(row_id) != role]
        for row_id in moved:
            now = f"is in {role_of[row_id]}" if row_id in role_of else "is in no split"
            problems.append(f"row {row_id} was read as {role} by {phase.folder} but {now} in splits.json")
        recorded = manifest.get("rows", {}).get(role, {}).get("sha256")
        if not moved and ids_sha256(ids) != recorded:
            problems.append(f"{phase.folder}: the rows listed for {role} are not those of its manifest")
    return problems


def _bundle_problems(run_dir: Path) -> list[str]:
    """The bundle of a run: its own checksums, and that its weights are the folded champion's."""
    bundle = run_dir / PHASES[6].folder / "bundle"
    if not bundle.is_dir():
        return []
    from natix_hf.bundle.verify import bundle_problems, folding_problems

    problems = bundle_problems(bundle)
    if problems:
        return problems
    champion = read_json(bundle / "bundle_manifest.json")["lineage"]["champion"]
    return folding_problems(bundle, run_dir / champion / "model")
