"""The lineage of a bundle, without any path, host or user name."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Any

from natix_hf.models.config import PACKAGED_PREFIX
from natix_hf.provenance.manifest import git_state, package_versions, read_manifest
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.runs.context import PhaseContext


def bundle_lineage(context: PhaseContext, champion: Candidate, decision: Decision) -> dict[str, Any]:
    """The lineage of a bundle: run, recipe, champion, digests of the phases that it was made from, repositories on the
    Hub, code and package versions.

    Args:
        context: The context of the exporting phase.
    """
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
    """A name that may be published: a Hub id as it is, or the last part of a folder's path.

    Args:
        origin: What the manifest records about a repository on the Hub; None if the reference is no repository. The
            folder need not exist any more.
    """
    if origin is not None:
        return str(origin["repo"])
    reference = reference.removeprefix(PACKAGED_PREFIX)
    return PureWindowsPath(reference).name or Path(reference).resolve().name or reference
