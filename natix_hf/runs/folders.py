"""Run folders: `outputs/<recipe name>/<UTC time>-<6 hex digits>`, one per run, so that parallel runs never collide."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

from natix_hf.disk import FULL, disk_line
from natix_hf.errors import UsageError, VerificationError, cut
from natix_hf.provenance.durable import make_folder, sync_folder
from natix_hf.provenance.files import read_json, write_json

RUN_FILE = "run.json"
IN_PROGRESS = "in_progress.json"  # in the folder of a phase that an attempt has begun
REPORT = "report.html"  # the one page about the run
LOG = "run.log"
_RUN_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")


def new_run(root: Path, recipe_name: str) -> Path:
    """Make a new run folder under `root/recipe_name`.

    Raises:
        UsageError: if it cannot be made or written to.
    """
    folder = root / recipe_name
    try:
        make_folder(folder)
        while True:
            path = folder / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
            try:
                path.mkdir()
            except FileExistsError:  # another run drew the same digits in the same second
                continue
            sync_folder(folder)
            return _stamp(path, recipe_name)
    except OSError as error:
        way_out = "run in a folder you may write to, or set --run-dir"
        advice = disk_line(error, folder) if error.errno in FULL else way_out
        raise UsageError(f"cannot make a run folder in {folder} ({error.strerror}): {advice}") from None


def open_run(path: Path, recipe_name: str) -> Path:
    """Open the run in `path`, or start one there if the folder is missing or empty.

    Raises:
        UsageError: if `path` is a file, another recipe's run, or a folder with something else in it.
    """
    if (path / RUN_FILE).is_file():
        content = read_json(path / RUN_FILE)
        recorded = content.get("recipe") if isinstance(content, dict) else None
        if recorded != recipe_name:
            raise UsageError(
                f"--run-dir {path} holds a run of recipe {cut(recorded)}, not {cut(recipe_name)}: name another folder"
            )
        return path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"--run-dir {path} exists but is not a run folder: name a run folder or an empty one")
    try:
        make_folder(path)
        return _stamp(path, recipe_name)
    except OSError as error:
        advice = disk_line(error, path) if error.errno in FULL else "name a folder that you may write to"
        raise UsageError(f"cannot write to --run-dir {path} ({error.strerror}): {advice}") from None


def run_id_of(run_dir: Path) -> str:
    """The id of a run, whatever its folder is called now.

    Raises:
        VerificationError: if `run.json` is missing or damaged.
    """
    content = read_json(run_dir / RUN_FILE)
    run_id = content.get("run_id") if isinstance(content, dict) else None
    if not isinstance(run_id, str) or not run_id:
        raise VerificationError(f"{run_dir / RUN_FILE} names no run: it was damaged after it was written")
    return run_id


def newest_run(root: Path, recipe_name: str) -> Path | None:
    """The newest run of a recipe by the time in its name, or None if there is no run."""
    return next(iter(runs_of(root, recipe_name)), None)


def runs_of(root: Path, recipe_name: str) -> list[Path]:
    """The runs of a recipe under `root`, newest first by the time in their names."""
    folder = root / recipe_name
    if not folder.is_dir():
        return []
    names = sorted(p.name for p in folder.iterdir() if _RUN_NAME.fullmatch(p.name) and (p / RUN_FILE).is_file())
    return [(folder / name).resolve() for name in reversed(names)]


def _stamp(path: Path, recipe_name: str) -> Path:
    path = path.resolve()
    write_json(path / RUN_FILE, {"schema": 1, "run_id": path.name, "recipe": recipe_name})
    return path
