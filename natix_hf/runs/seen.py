"""What the models of another run have seen of the rows that this run measures on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from natix_hf.data.config import NEAR_DUPLICATES
from natix_hf.data.splits import SPLITS, Splits, read_splits
from natix_hf.provenance.manifest import MANIFEST, read_manifest
from natix_hf.runs.folders import RUN_FILE, run_id_of
from natix_hf.runs.graph import CANDIDATE_PHASES, PHASES

# What a model has learned from, and the rows that it must not have learned from. Its val_select has chosen its epoch,
# as the run's own val_select does.
_MUST_NOT_MEET = {"train": ("val_select", "val_calib", "test"), "val_select": ("val_calib", "test")}
# What phase 4 leaves of the backbone before any label.
ADAPTED = f"{PHASES[4].folder}/backbone"


def run_around(reference: str | Path) -> Path | None:
    """The run folder that a folder is or lies in; None if it is in none on this disk."""
    folder = Path(reference).expanduser().resolve()
    runs = (path for path in (folder, *folder.parents) if (path / RUN_FILE).is_file())
    return next((path for path in runs if (path / PHASES[0].folder).is_dir()), None)


def run_of_start(backbone: str | None) -> Path | None:
    """The run whose labels a backbone has learned. One that phase 4 has adapted has those of its own start alone."""
    run = run_around(backbone) if backbone is not None else None
    if run is None or not Path(str(backbone)).expanduser().resolve().is_relative_to(run / ADAPTED):
        return run
    return run_of_start(read_manifest(run / PHASES[4].folder)["section"]["model"]["backbone"])


def answers_of(run: Path) -> Any:
    """The names of the answers of a run's models, as its manifests hold them; None: those of the subnet."""
    return next((section.get("data.labels") for section in _trainings(run)), None)


def origins(run: Path) -> tuple[list[Path], list[str]]:
    """The runs whose labels the models of a run have learned.

    Returns:
        The run itself, then those of its teachers and of its start, and theirs, if they answer the same question; and
        the teachers, and the classifiers that PROFIT has continued, of which nothing is known.

    Raises:
        VerificationError: If a manifest is damaged.
    """
    walked: list[Path] = []
    unknown: dict[str, None] = {}
    waiting = [run.resolve()]
    while waiting:
        each = waiting.pop(0)
        if each in walked:
            continue
        walked.append(each)
        for section in _trainings(each):
            backbone, stage = section["model"]["backbone"], section["phase1"]
            start = run_of_start(backbone)
            teachers = stage.get("teacher") or []
            of_teachers = {name: run_around(name) for name in ([teachers] if isinstance(teachers, str) else teachers)}
            waiting += [found for found in (*of_teachers.values(), start) if found is not None]
            unknown |= {name: None for name, found in of_teachers.items() if found is None}
            unknown |= {str(backbone): None} if start is None and stage.get("profit") is not None else {}
    return [each for each in walked if answers_of(each) == answers_of(run)], list(unknown)


def _trainings(run: Path) -> list[dict[str, Any]]:
    """The settings of the finished phases that train a classifier."""
    folders = (run / PHASES[number].folder for number in CANDIDATE_PHASES)
    return [read_manifest(folder)["section"] for folder in folders if (folder / MANIFEST).is_file()]


def rows_seen(run: Path, ours: Splits, data: Mapping[str, Any]) -> list[str]:
    """The rows that this run measures on and of whose picture or group another run has learned, one line each.

    What the teachers and the start of that run have learned counts as well (`origins`). Equal pictures are the same
    row. Groups are names of the source, so they are compared only where both runs group by the same key and read the
    same source or have a picture in common.

    Args:
        run: The folder of the other run.
        ours: The division of this run's rows.
        data: This run's `data` section, as manifests store it.

    Raises:
        VerificationError: If the other run, or one that it comes from, does not say how its rows were divided.
    """
    found: dict[str, str] = {}
    for number, origin in enumerate(origins(run)[0]):
        folder = origin / PHASES[0].folder
        given, theirs = read_manifest(folder)["section"]["data"], read_splits(folder / SPLITS)
        related = bool(set(theirs.sha256) & set(ours.sha256)) and data["group_by"] != NEAR_DUPLICATES
        by_group = given.get("group_by") == data["group_by"] and (related or given.get("source") == data["source"])
        of_whom = f" in run {run_id_of(origin)}, which it comes from" if number else ""
        found = {row: f"{line}{of_whom}" for row, line in _seen(theirs, ours, by_group).items()} | found
    return list(found.values())


def seen_of(theirs: Splits, ours: Splits, by_group: bool) -> list[str]:
    """`rows_seen` of two divisions. With `by_group` a name of a group means the same in both."""
    return list(_seen(theirs, ours, by_group).values())


def _seen(theirs: Splits, ours: Splits, by_group: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for role, protected in _MUST_NOT_MEET.items():
        pictures = {theirs.sha256[i]: int(i) for i in theirs.positions(role)}
        groups = {theirs.groups[i]: int(i) for i in theirs.positions(role) if by_group}
        for i in [i for name in protected for i in ours.positions(name)]:
            other = pictures.get(ours.sha256[i], groups.get(ours.groups[i]))
            if other is not None:
                told = f"row {ours.ids[i]} of {ours.roles[i]} is of a picture or group of its row {theirs.ids[other]}"
                found.setdefault(ours.ids[i], f"{told} of {role}")
    return found
