"""One folder for each run, whoever starts how many at once; and no other folder is taken for one."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from natix_hf.errors import UsageError, VerificationError
from natix_hf.provenance.files import read_json
from natix_hf.runs import folders as runs
from natix_hf.runs.folders import RUN_FILE, new_run, newest_run, open_run


def _make(root: str) -> str:
    return str(new_run(Path(root), "recipe"))


def test_a_run_folder_has_its_name_and_stamp(tmp_path: Path) -> None:
    run = new_run(tmp_path / "outputs", "recipe")
    assert run.parent == (tmp_path / "outputs" / "recipe").resolve()
    assert runs._RUN_NAME.fullmatch(run.name)
    assert read_json(run / RUN_FILE) == {"schema": 1, "run_id": run.name, "recipe": "recipe"}


def test_runs_started_at_once_by_threads_and_processes_never_meet(tmp_path: Path) -> None:
    root = str(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(_make, [root] * 64))
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as processes:
        made += processes.map(_make, [root] * 16)
    assert len(set(made)) == 80
    assert all(read_json(Path(run) / RUN_FILE)["run_id"] == Path(run).name for run in made)


def test_equal_digits_in_one_second_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter(["aaaaaa", "aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr(runs.secrets, "token_hex", lambda _: next(draws))
    monkeypatch.setattr(runs.time, "strftime", lambda *_: "20260101T000000Z")
    names = [new_run(tmp_path, "recipe").name for _ in range(2)]
    assert names == ["20260101T000000Z-aaaaaa", "20260101T000000Z-bbbbbb"]


def test_the_newest_run_by_its_name(tmp_path: Path) -> None:
    assert newest_run(tmp_path, "recipe") is None
    (tmp_path / "recipe").mkdir()
    assert newest_run(tmp_path, "recipe") is None
    names = ["20261231T235959Z-000000", "20270101T000000Z-000000", "20260102T000000Z-ffffff"]
    for name in names:
        open_run(tmp_path / "recipe" / name, "recipe")
    (tmp_path / "recipe" / "20280101T000000Z-000000").mkdir()  # killed before it was stamped
    open_run(tmp_path / "recipe" / "zzz", "recipe")  # named with --run-dir
    (tmp_path / "recipe" / "20290101T000000Z-000000").write_text("a file")
    open_run(tmp_path / "other" / "20300101T000000Z-000000", "other")
    assert newest_run(tmp_path, "recipe") == (tmp_path / "recipe" / names[1]).resolve()


@pytest.mark.parametrize("exists", [False, True])
def test_a_run_begins_in_an_absent_or_empty_folder_and_goes_on_there(exists: bool, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    if exists:
        path.mkdir(parents=True)
    run = open_run(path, "recipe")
    (run / "phase0_data").mkdir()
    assert open_run(path, "recipe") == run == path.resolve()
    assert (run / "phase0_data").is_dir()


OTHERS: dict[str, tuple[Callable[[Path], object], type[Exception], list[object]]] = {
    "foreign": (lambda path: (path.mkdir(), (path / "holiday.jpg").touch()), UsageError, ["--run-dir"]),
    "a file": (lambda path: path.touch(), UsageError, ["--run-dir"]),
    "another recipe's": (lambda path: open_run(path, "another"), UsageError, ["--run-dir", "'another'", "'recipe'"]),
    "damaged": (lambda path: (path.mkdir(), (path / RUN_FILE).write_text("{")), VerificationError, [RUN_FILE]),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_folders_are_refused_and_left_alone(case: str, tmp_path: Path) -> None:
    make, error, facts = OTHERS[case]
    make(tmp_path / "x")
    before = sorted(tmp_path.rglob("*"))
    refused(error, lambda: open_run(tmp_path / "x", "recipe"), tmp_path / "x", *facts)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fails", ["mkdir", "stamp", "file", "dangling link"])
@pytest.mark.parametrize("begin", [lambda root: new_run(root, "r"), lambda root: open_run(root / "run", "r")])
def test_a_place_that_cannot_be_written_is_one_line(
    begin: Any, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`outputs` as a link to a disk that is not mounted made new_run search for a free name for ever."""
    root = tmp_path / "outputs"

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    if fails == "dangling link" and os.name == "posix":  # elsewhere it takes a right: a file again
        os.symlink(tmp_path / "unmounted", root)
    elif fails in ("file", "dangling link"):
        root.touch()
    else:
        monkeypatch.setattr(*((Path, "mkdir") if fails == "mkdir" else (runs, "write_json")), refuse)
    facts = ["Permission denied"] if fails in ("mkdir", "stamp") else []
    refused(UsageError, lambda: begin(root), root, "--run-dir", *facts)
