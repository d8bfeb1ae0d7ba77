"""`runs` and `clean`: every run by its `run.json`, and nothing removed but what no run needs."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import Command

from natix_hf.provenance.files import read_json, write_json
from natix_hf.provenance.owner import owning
from natix_hf.runs.folders import RUN_FILE
from natix_hf.runs.verify import run_problems


def age(folder: Path, seconds: float = 3600) -> None:
    """Make everything look as if nobody had written for an hour."""
    then = time.time() - seconds
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then), follow_symlinks=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(path: Path, text: str = "x" * 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def outputs(finished_run: Path, tmp_path: Path) -> Path:
    """Three runs: a finished one under another name, one that was interrupted in phase 1, and one that has redone
    phase 2 but was cut off before it tidied up."""
    outputs = tmp_path / "outputs"
    home = outputs / "brought home" / "renamed"
    shutil.copytree(finished_run, home)
    interrupted = outputs / "tiny" / "interrupted"
    shutil.copytree(finished_run, interrupted)
    for number in ("2_threshold", "6_export"):
        shutil.rmtree(interrupted / f"phase{number}")
    (interrupted / "phase1_baseline" / "manifest.json").unlink()
    write_json(interrupted / "phase1_baseline" / "in_progress.json", {"attempt": "0"})
    write_json(interrupted / "phase1_baseline" / "checkpoints" / "checkpoint-12" / "complete.json", {"files": {}})
    redone = outputs / "tiny" / "redone"
    shutil.copytree(finished_run, redone)
    shutil.copytree(redone / "phase2_threshold", redone / "phase2_threshold.set_aside")
    write(redone / "phase1_baseline" / "checkpoints" / "checkpoint-3" / "optimizer.pt")
    write(redone / "phase6_export" / ".tmp-bundle-0123abcd" / "model.safetensors")
    write(redone / "phase1_baseline" / "model" / ".tmpAb3dEf")
    age(outputs)
    return outputs


def test_runs_finds_each_run_by_its_file(command: Command, outputs: Path) -> None:
    code, out, err = command("runs", outputs, "--json")
    assert (code, err) == (0, "")
    found = {Path(run["folder"]).name: run for run in json.loads(out)}
    assert set(found) == {"renamed", "interrupted", "redone"}
    recorded = read_json(outputs / "brought home" / "renamed" / RUN_FILE)
    assert found["renamed"]["run_id"] == recorded["run_id"] and found["renamed"]["recipe"] == recorded["recipe"]
    assert {phase["state"] for phase in found["renamed"]["phases"].values()} == {"current"}
    assert found["interrupted"]["phases"]["phase1_baseline"] == {"state": "interrupted", "step": 12}
    evaluation = read_json(outputs / "brought home" / "renamed" / "phase6_export" / "evaluation.json")
    assert found["renamed"]["mcc"] == evaluation["as_found"]["metrics"]["mcc"]
    files = [path for path in (outputs / "tiny" / "redone").rglob("*") if path.is_file()]
    assert found["redone"]["size"] == sum(path.stat().st_size for path in files)


def test_the_table_is_narrow_and_tells_where_a_moved_run_lies(command: Command, outputs: Path) -> None:
    code, out, _ = command("runs", outputs)
    assert code == 0 and str(outputs / "brought home" / "renamed") in out and "step 12" in out
    rows = [line for line in out.splitlines() if str(outputs) not in line and "cache" not in line]
    assert rows and max(map(len, rows)) <= 100


def test_states_of_phases(command: Command, outputs: Path) -> None:
    run = outputs / "brought home" / "renamed"
    weights = run / "phase1_baseline" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (outputs / "tiny" / "redone" / "phase1_baseline" / "manifest.json").unlink()
    _, out, _ = command("runs", outputs, "--json")
    found = {Path(r["folder"]).name: {k: v["state"] for k, v in r["phases"].items()} for r in json.loads(out)}
    assert found["renamed"]["phase1_baseline"] == "damaged"
    assert found["redone"]["phase2_threshold"] == "stale"
    with owning(outputs / "tiny" / "interrupted"):
        _, out, _ = command("runs", outputs / "tiny" / "interrupted", "--json")
    assert json.loads(out)[0]["phases"]["phase1_baseline"]["state"] == "in progress"


def test_clean_frees_what_no_run_needs_and_nothing_else(command: Command, outputs: Path) -> None:
    before = contents(outputs)
    code, out, _ = command("clean", outputs, "--dry-run")
    assert code == 0 and contents(outputs) == before
    code, told, _ = command("clean", outputs)
    assert code == 0 and len(told.splitlines()) == len(out.splitlines()) == 5
    after = contents(outputs)
    gone = {name for name in before if name not in after}
    spare = ("set_aside", "phase1_baseline/checkpoints", "/.tmp")
    assert gone == {name for name in before if name.startswith("tiny/redone") and any(part in name for part in spare)}
    assert len(gone) > 5 and all(before[name] == data for name, data in after.items())
    assert run_problems(outputs / "tiny" / "redone") == []
    age(outputs)
    code, told, _ = command("clean", outputs)
    assert code == 0 and len(told.splitlines()) == 1


def test_checkpoints_that_would_be_continued_stay_unless_asked_for(command: Command, outputs: Path) -> None:
    kept = outputs / "tiny" / "interrupted" / "phase1_baseline" / "checkpoints" / "checkpoint-12"
    command("clean", outputs)
    assert kept.is_dir()
    age(outputs)
    command("clean", outputs, "--checkpoints")
    assert not kept.exists() and (kept.parents[1] / "in_progress.json").is_file()


def test_a_result_set_aside_stays_while_its_successor_is_not_whole(command: Command, outputs: Path) -> None:
    redone = outputs / "tiny" / "redone"
    (redone / "phase2_threshold" / "threshold.json").unlink()
    age(outputs)
    command("clean", outputs)
    assert (redone / "phase2_threshold.set_aside" / "threshold.json").is_file()


def test_clean_leaves_a_run_at_work_alone(command: Command, outputs: Path) -> None:
    redone = outputs / "tiny" / "redone"
    with owning(redone):
        before = contents(redone)
        code, out, _ = command("clean", outputs)
        assert code == 0 and str(redone) in out and contents(redone) == before


def test_clean_follows_no_link(command: Command, outputs: Path, tmp_path: Path) -> None:
    """A link to somebody's checkpoints, a link as a temporary folder, a linked phase, and a linked run."""
    mine = tmp_path / "mine"
    kept = [write(mine / name / "weights") for name in ("checkpoints", "temporary", "set_aside")]
    kept.append(write(mine / "run" / "phase1_baseline" / ".tmp-a-12345678" / "weights"))
    shutil.copy(outputs / "tiny" / "redone" / RUN_FILE, mine / "run")
    redone = outputs / "tiny" / "redone"
    shutil.rmtree(redone / "phase1_baseline" / "checkpoints")
    (redone / "phase1_baseline" / "checkpoints").symlink_to(mine / "checkpoints")
    (redone / "phase6_export" / ".tmp-link-12345678").symlink_to(mine / "temporary")
    (redone / "phase6_export.set_aside").symlink_to(mine / "set_aside")
    (outputs / "linked").symlink_to(mine / "run")
    age(outputs)
    age(mine)
    code, out, _ = command("clean", outputs, "--checkpoints")
    assert code == 0 and str(mine) not in out
    assert all(path.read_text() for path in kept)


@pytest.mark.parametrize("name", ["runs", "clean"])
def test_a_folder_without_runs_is_refused(name: str, command: Command, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        code, out, err = command(name, folder)
        assert code == 2 and not out and str(folder) in err
