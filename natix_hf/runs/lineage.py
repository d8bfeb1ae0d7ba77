"""The lineage of a bundle, without any path, host or user name."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Any

from natix_hf.data.own_keys import own_keys
from natix_hf.models.config import PACKAGED_PREFIX
from natix_hf.provenance.hub import is_repo_id
from natix_hf.provenance.manifest import git_state, package_versions, read_manifest
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.folders import run_id_of


def bundle_lineage(context: PhaseContext, champion: Candidate, decision: Decision) -> dict[str, Any]:
    """The lineage of a bundle: run, recipe, champion, digests of the phases that it was made from, how the labels of
    its data are written, repositories on the Hub, code and package versions.

    Args:
        context: The context of the exporting phase.
    """
    recipe = context.recipe
    optional = [folder for number in (3, 5) if (folder := context.finished(number)) is not None]
    trained = context.training_of(decision)
    made = (context.upstream(0), trained, context.upstream(2), *optional)
    phases = {folder.name: read_manifest(folder) for folder in made}
    of_data, of_champion = phases[context.upstream(0).name].get("hub", {}), phases[trained.name].get("hub", {})
    return {
        "run_id": run_id_of(context.run_dir),
        "recipe": recipe.name,
        "champion": champion.name,
        "candidate_sha256": decision.candidate_sha256,
        "phases": {name: manifest["digest"] for name, manifest in phases.items()},
        "settings_sha256": {name: manifest["section_sha256"] for name, manifest in phases.items()}
        | {context.phase.folder: recipe.section_sha256(*context.phase.sections)},
        "data": own_keys(recipe.data),
        "hub": {
            "dataset": of_data.get("data"),
            "sources": list(of_data.get("sources", {}).values()),
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


def public_sources(source: Any, origin: dict[str, Any] | None) -> str:
    """The public name of `data.source`, as a manifest or a recipe holds it: one source, or a list of several."""
    if not isinstance(source, list):
        return public_name(str(source), origin)
    names = [entry if isinstance(entry, str) else entry.get("name") or entry["source"] for entry in source]
    return " + ".join(name if is_repo_id(name) else public_name(name, None) for name in names)


# An absolute path, or one from the home folder. In quotes it may hold blanks.
_START = r"(?:~?[/\\]|[A-Za-z]:[/\\])"
_QUOTED = rf"(?P<quote>['\"])(?P<cut>{_START}[^'\"]*)(?P=quote)"
_BARE = rf"(?<![\w.:/\\~<])(?P<bare>{_START}[^\s,;:]+)"
_PATHS = re.compile(f"{_QUOTED}|{_BARE}")


def public_text(text: str, source: Any) -> str:
    """A text about the data that may be published: of every path on this machine only the last part remains.

    Args:
        source: `data.source`, as a manifest or a recipe holds it.
    """
    several = source if isinstance(source, list) else [source] if source is not None else []
    given = [entry if isinstance(entry, str) else entry["source"] for entry in several]
    for path in sorted({spelling for name in given for spelling in _spellings(name)}, key=len, reverse=True):
        if re.search(r"[/\\]\w", path) and not is_repo_id(path):
            named = public_name(path, None).replace("\\", r"\\")
            text = re.sub(rf"(?<![\w./\\~-]){re.escape(path)}(?![\w-])", named, text)
    return _PATHS.sub(_last_part, text)


def _spellings(path: str) -> set[str]:
    known = Path(path).expanduser()
    return {path, str(Path(path)), str(known), str(known.resolve())}


def _last_part(match: re.Match[str]) -> str:
    path, quote = match["cut"] or match["bare"], match["quote"] or ""
    return f"{quote}{PureWindowsPath(path).name or path}{quote}"
