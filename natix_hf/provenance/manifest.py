"""The manifest of a phase. It is written last and records what the phase read and wrote, and where it ran."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from natix_hf.errors import VerificationError
from natix_hf.provenance.durable import settle
from natix_hf.provenance.files import check_files, describe_files, json_sha256, list_files, read_json, write_json

MANIFEST = "manifest.json"
SCHEMA = 1
# Raise it when the same answers give another threshold, calibration, certificate or figure than before. `verify`
# recomputes only what was made by the present methods.
METHODS = 1
# Keys that identify a result. Times, host and package versions are recorded but do not identify it.
_IDENTITY = ("phase", "section_sha256", "upstream", "rows", "files")
_PACKAGES = ("natix_hf", "torch", "transformers", "accelerate", "peft", "datasets", "numpy", "scikit-learn", "pillow")


@dataclass
class Draft:
    """The part of a manifest that is known when a phase begins. `write_manifest` adds the files and the host."""

    run_id: str
    recipe: str
    phase: str
    section: dict[str, Any]
    section_sha256: str
    upstream: dict[str, str]
    seed: int
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    hub: dict[str, Any] = field(default_factory=dict)  # repositories read from the Hub, with their commits
    inputs: dict[str, str] = field(default_factory=dict)  # sha256 of the files of earlier phases that were read
    backbone: dict[str, str] = field(default_factory=dict)  # sha256 of the files of a local backbone
    teacher: dict[str, str] = field(default_factory=dict)  # sha256 of the files of local teachers
    outside: dict[str, str] = field(default_factory=dict)  # sha256 of the files of other runs that were read
    source_listings: list[str] = field(default_factory=list)  # what `stat` says of the files of each local source
    started: float = field(default_factory=time.time)


def write_manifest(
    folder: Path,
    draft: Draft,
    metrics: dict[str, Any],
    exclude: tuple[str, ...] = (),
    of_the_attempt: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Describe every file of `folder` and write `manifest.json` last.

    Args:
        folder: The folder of the phase.
        draft: The facts known before.
        metrics: Figures of the phase, as JSON values.
        exclude: Files and folders directly under `folder` that are not part of the result.
        of_the_attempt: Files that say when or in which run the result was made. The digest does not cover them, so
            that equal results have equal digests; their checksums are recorded all the same.

    Returns:
        The manifest.
    """
    settle(folder)  # a manifest must not outlive what it names
    outside = (MANIFEST, *exclude)
    files = describe_files(folder, (name for name in list_files(folder) if name.split("/")[0] not in outside))
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": draft.run_id,
        "recipe": draft.recipe,
        "phase": draft.phase,
        "section": draft.section,
        "section_sha256": draft.section_sha256,
        "upstream": draft.upstream,
        "rows": draft.rows,
        "hub": draft.hub,
        "inputs": draft.inputs,
        "backbone": draft.backbone,
        "outside": draft.outside,
        **({"teacher": draft.teacher} if draft.teacher else {}),
        "source_listings": draft.source_listings,
        "methods": METHODS,
        "files": files,
        "of_the_attempt": sorted(set(of_the_attempt) & set(files)),
        "metrics": metrics,
        "seed": draft.seed,
        "git": git_state(),
        "packages": package_versions(),
        "host": host_facts(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(draft.started)),
        "duration_s": round(time.time() - draft.started, 2),
    }
    manifest["digest"] = manifest_digest(manifest)
    manifest["seal"] = manifest_seal(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Compute the sha256 over settings, upstream, rows and files. Equal results have equal digests."""
    identity = {key: manifest.get(key) for key in _IDENTITY}
    apart = manifest.get("of_the_attempt")
    if apart:  # a result of an older version counts with all its files
        identity["files"] = {name: facts for name, facts in manifest["files"].items() if name not in apart}
    return json_sha256(identity)


def manifest_seal(manifest: dict[str, Any]) -> str:
    """Compute the sha256 over the whole manifest, so that an edit of any figure or fact is noticed."""
    return json_sha256({key: value for key, value in manifest.items() if key != "seal"})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest and check its keys, digest and seal.

    Raises:
        VerificationError: If it is missing, unreadable, of another schema, or was edited.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise VerificationError(f"{path} is not a manifest of schema {SCHEMA}")
    wrong = [key for key, fits in _SHAPES.items() if not fits(manifest.get(key, _LATER.get(key)))]
    if wrong:
        raise VerificationError(f"{path} has no right {', '.join(wrong)}: it was damaged after it was written")
    try:
        fits = manifest.get("digest") == manifest_digest(manifest) and manifest.get("seal") == manifest_seal(manifest)
    except ValueError:  # a number or a text that JSON cannot hold
        fits = False
    if not fits:
        raise VerificationError(f"{path} was changed: its digest does not fit its content")
    return manifest


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _maps_to_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def is_list_of_texts(value: Any) -> bool:
    """True for a list whose items are all text."""
    return isinstance(value, list) and all(map(_is_text, value))


def _describes(key: str) -> Callable[[Any], bool]:
    """A mapping to facts: a sha256 and a whole number."""
    return lambda value: (
        isinstance(value, dict)
        and all(
            isinstance(facts, dict) and _is_text(facts.get("sha256")) and type(facts.get(key)) is int
            for facts in value.values()
        )
    )


# What others read of a manifest, and what its values must be. Keys that came later have a default.
_SHAPES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("run_id", "recipe", "phase", "section_sha256"), _is_text),
    **dict.fromkeys(("section", "hub", "metrics"), _is_mapping),
    **dict.fromkeys(("upstream", "inputs", "backbone", "teacher", "outside", "packages"), _maps_to_texts),
    **dict.fromkeys(("source_listings", "of_the_attempt"), is_list_of_texts),
    "rows": _describes("count"),
    "files": _describes("size"),
}
_LATER: dict[str, Any] = {
    **{key: {} for key in ("hub", "inputs", "backbone", "teacher", "outside")},
    **{key: [] for key in ("source_listings", "of_the_attempt")},
}


def manifest_problems(folder: Path) -> list[str]:
    """List the problems of a finished phase folder, one line each. The list is empty if there are none."""
    try:
        manifest = read_manifest(folder)
    except VerificationError as error:
        return [str(error)]
    return check_files(folder, manifest["files"])


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def git_state() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that this package runs from. None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True, timeout=20)
    return done.stdout.decode("utf-8", "replace").strip()


def host_facts() -> dict[str, Any]:
    """System, machine and number of cores. They explain a figure without naming a person or a host."""
    return {"system": platform.system(), "machine": platform.machine(), "cpu_count": os.cpu_count()}
