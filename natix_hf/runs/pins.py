"""The commits of a run's Hub repositories: looked up once, then used by every phase, continuation and rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from natix_hf.data.config import DataConfig, SourceConfig
from natix_hf.models.config import ModelConfig
from natix_hf.provenance.files import read_json, write_json
from natix_hf.provenance.hub import Kind, hub_origin, is_repo_id
from natix_hf.recipe import Recipe
from natix_hf.runs.graph import Phase

PINS = "hub_commits.json"
SOURCES, UNLABELLED, SYNTHETIC_HALF, TEACHERS = "sources", "unlabelled", "synthetic_half", "teachers"


def pin(run_dir: Path, recipe: Recipe, phase: Phase) -> dict[str, Any]:
    """Pin the datasets and the models that a phase takes from the Hub. Only rank 0 calls it.

    Returns:
        The repositories that the phase reads, as `hub_origin` describes them, under "data" and "model", and by their
        name under "sources" (several sources of labelled images), "unlabelled", "teachers" and "synthetic_half".

    Raises:
        UsageError: if a repository or revision does not exist, or if the token may not read it.
    """
    source = recipe.data.source
    wanted: dict[str, tuple[Kind, str | None, str | None]] = {
        "data": ("dataset", source if isinstance(source, str) else None, recipe.data.revision),
        "model": ("model", recipe.model.backbone, recipe.model.revision),
    }
    found: dict[str, Any] = {
        section: _origin(run_dir, section, str(repo_id), kind, revision)
        for section, (kind, repo_id, revision) in wanted.items()
        if section in phase.sections and _on_hub(repo_id)
    }
    several = recipe.data.sources if "data" in phase.sections and isinstance(source, list) else []
    if several:
        found[SOURCES] = {
            one.source: _origin(run_dir, SOURCES, one.source, "dataset", one.revision)
            for one in several
            if _on_hub(one.source)
        }
    named = {"phase1": recipe.phase1.distil.unlabelled, "phase4": recipe.phase4.unlabelled}
    further = [source for name in named if name in phase.sections for source in named[name] if _on_hub(source)]
    if further:
        found[UNLABELLED] = {source: _origin(run_dir, UNLABELLED, source, "dataset", None) for source in further}
    teachers = [name for name in recipe.phase1.teachers if "phase1" in phase.sections and _on_hub(name)]
    if teachers:
        found[TEACHERS] = {name: _origin(run_dir, TEACHERS, name, "model", None) for name in teachers}
    half = recipe.data.synthetic_half if f"data.{SYNTHETIC_HALF}" in phase.sections else None
    if half is not None and _on_hub(half):
        found[SYNTHETIC_HALF] = {half: _origin(run_dir, SYNTHETIC_HALF, half, "dataset", None)}
    return found


def _origin(run_dir: Path, section: str, repo_id: str, kind: Kind, revision: str | None) -> dict[str, Any]:
    """The pinned origin of a repository. If none is pinned yet, look it up and pin it."""
    pins, key = _read(run_dir), _key(section, repo_id, revision)
    if key in pins:
        return dict(pins[key])
    origin = hub_origin(repo_id, kind, revision)
    if origin["commit"] is not None:  # if it is unknown, a later attempt may reach the Hub
        write_json(run_dir / PINS, pins | {key: origin})
    return origin


def pinned_data(run_dir: Path, config: DataConfig) -> DataConfig:
    """The same sources, pinned to the commits of this run."""
    if isinstance(config.source, list):
        return replace(config, source=[_pinned_source(run_dir, source) for source in config.sources])
    origin = _read(run_dir).get(_key("data", str(config.source), config.revision))
    return replace(config, revision=origin["commit"]) if origin and origin["commit"] else config


def _pinned_source(run_dir: Path, source: SourceConfig) -> SourceConfig:
    origin = _read(run_dir).get(_key(SOURCES, source.source, source.revision))
    return replace(source, revision=origin["commit"]) if origin and origin["commit"] else source


def pinned_model(run_dir: Path, config: ModelConfig) -> ModelConfig:
    """The same backbone, pinned to the commit of this run."""
    origin = _read(run_dir).get(_key("model", str(config.backbone), config.revision))
    return replace(config, revision=origin["commit"]) if origin and origin["commit"] else config


def pinned_unlabelled(run_dir: Path, source: str) -> str | None:
    """The commit of this run for another source of images; None if it is not on the Hub."""
    return _pinned(run_dir, UNLABELLED, source)


def pinned_teacher(run_dir: Path, teacher: str) -> str | None:
    """The commit of this run for a teacher; None if it is not on the Hub."""
    return _pinned(run_dir, TEACHERS, teacher)


def pinned_synthetic_half(run_dir: Path, source: str) -> str | None:
    """The commit of this run for the generated pictures; None if they are not on the Hub."""
    return _pinned(run_dir, SYNTHETIC_HALF, source)


def _pinned(run_dir: Path, section: str, source: str) -> str | None:
    origin = _read(run_dir).get(_key(section, source, None))
    return origin["commit"] if origin else None


def _on_hub(reference: str | None) -> bool:
    return reference is not None and is_repo_id(reference) and not Path(reference).is_dir()


def _key(section: str, repo_id: str, revision: str | None) -> str:
    return f"{section} {repo_id} {revision or 'main'}"


def _read(run_dir: Path) -> dict[str, Any]:
    path = run_dir / PINS
    return dict(read_json(path)) if path.is_file() else {}
