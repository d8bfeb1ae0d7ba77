"""Where a bundle comes from, in words that hold no path, host or user name."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Any

from natix_hf.models.config import PACKAGED_PREFIX
from natix_hf.provenance.manifest import git_state, package_versions, read_manifest
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.runs.context import PhaseContext


def bundle_lineage(context: PhaseContext, champion: Candidate, decision: Decision) -> dict[str, Any]:
    """Run, recipe, champion, the digests of the phases that a bundle was made from, what came from the Hub, code and
    packages. `context` is that of the exporting phase."""
    recipe = context.recipe
    optional = [folder for number in (3, 5) if (folder := context.finished(number)) is not None]
    made = (context.upstream(0), champion.folder, context.upstream(2), *optional)
    phases = {folder.name: read_manifest(folder) for folder in made}
    of_champion = phases[champion.name].get("hub", {})
    return {
        "run_id": context.run_dir.name,
        "recipe": recipe.name,
        "champion": champion.name,
        "candidate_sha256": decision.candidate_sha256,
        "phases": {name: manifest["digest"] for name, manifest in phases.items()},
        "settings_sha256": {name: manifest["section_sha256"] for name, manifest in phases.items()}
        | {context.phase.folder: recipe.section_sha256(*context.phase.sections)},
        "hub": {
            "dataset": phases[context.upstream(0).name].get("hub", {}).get("data"),
            "backbone": of_champion.get("model"),
            "unlabelled": list(of_champion.get("unlabelled", {}).values()),
        },
        "git": git_state(),
        "packages": package_versions(),
    }


def public_name(reference: str, origin: dict[str, Any] | None) -> str:
    """A Hub id as it is; of a folder the last part alone, wherever it lies and even if it is gone by now.

    Args:
        origin: what the manifest tells of a repository on the Hub; None: the reference is not from there.
    """
    if origin is not None:
        return str(origin["repo"])
    reference = reference.removeprefix(PACKAGED_PREFIX)
    return PureWindowsPath(reference).name or Path(reference).resolve().name or reference
