"""One process at a time is at work in a run folder, whoever dies, sleeps, or begins in the same moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import refused

from natix_hf.errors import RunError, UsageError
from natix_hf.provenance import owner
from natix_hf.provenance.files import write_json
from natix_hf.provenance.owner import TOKEN, at_work, owning, token_of

# Holds a run folder until it is told to leave it; writes what happened.
HOLD = """
import sys, time
from pathlib import Path
from natix_hf.errors import NatixError
from natix_hf.provenance.files import write_text
from natix_hf.provenance.owner import owning
run = Path(sys.argv[1])
try:
    with owning(run):
        print("mine", flush=True)
        sys.stdin.readline()
        write_text(run / "phase1_baseline" / "written", "late")
        print("wrote", flush=True)
except NatixError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""


@pytest.fixture
def hold(tmp_path: Path) -> Any:
    """Starts processes that hold `tmp_path`, and kills them afterwards."""
    started: list[subprocess.Popen[str]] = []

    def start(**environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path), "--token=hf_abcdefghijklmnop"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, env=os.environ | environment, encoding="utf-8", text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return said(process)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(run: Path, change: Callable[[owner.Mark], owner.Mark], silent_s: float = 0.0) -> None:
    """Change the newest mark, as another machine would have written it, and let it have been silent for a while."""
    number, mark = owner._newest(run.resolve())
    assert mark is not None
    path = owner._path(run.resolve(), number)
    write_json(path, asdict(change(mark)))
    os.utime(path, (time.time() - silent_s,) * 2)


def test_the_second_is_told_who_is_at_work_and_changes_nothing(hold: Any, tmp_path: Path) -> None:
    first = hold()
    assert said(first) == "mine"
    before, mtimes = everything(tmp_path), {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with refused(UsageError, str(first.pid), tmp_path, "since", "--run-dir"), owning(tmp_path):
        pass
    assert everything(tmp_path) == before and {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == mtimes
    assert "hf_" not in str(before) and str(first.pid) in str(at_work(tmp_path))
    assert go_on(first) == "wrote"
    first.wait(10)
    assert at_work(tmp_path) is None
    with owning(tmp_path):
        assert str(os.getpid()) in str(at_work(tmp_path))
    assert len(list((tmp_path / "owner").iterdir())) == 1


def test_a_dead_owner_is_followed_at_once(hold: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = hold()
    assert said(first) == "mine"
    first.kill()  # it stays a zombie until somebody waits for it
    while psutil.Process(first.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert at_work(tmp_path) is None
    with owning(tmp_path):
        assert str(first.pid) in capsys.readouterr().out


def test_the_number_of_a_process_that_was_given_anew_is_no_owner(tmp_path: Path) -> None:
    with owning(tmp_path):
        pass
    edit(tmp_path, lambda mark: replace(mark, started=mark.started - 100, ended=False))
    assert at_work(tmp_path) is None
    edit(tmp_path, lambda mark: replace(mark, started=mark.started + 100))
    with refused(UsageError, str(os.getpid())), owning(tmp_path):
        pass


def test_an_owner_elsewhere_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On another machine, or in a container with its own numbers: only its heartbeat tells."""
    monkeypatch.setattr(owner, "_WATCH_S", 1.0)
    with owning(tmp_path):
        pass
    edit(tmp_path, lambda mark: replace(mark, host="elsewhere", pid=1, ended=False), silent_s=30)
    with refused(UsageError, "process 1 on elsewhere"), owning(tmp_path):
        pass
    edit(tmp_path, lambda mark: mark, silent_s=300)  # or its clock is five minutes behind
    path = owner._path(tmp_path.resolve(), 1)
    watch = owner.time.sleep
    monkeypatch.setattr(owner.time, "sleep", lambda s: (watch(s), os.utime(path, (path.stat().st_mtime + 1,) * 2)))
    with refused(UsageError, "process 1 on elsewhere", "silent"), owning(tmp_path):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(owner, "_WATCH_S", 0.3)
    capsys.readouterr()
    for silence in (300, -300):  # a clock may be ahead
        edit(tmp_path, lambda mark: replace(mark, host="elsewhere", boot=1.0, ended=False), silent_s=silence)
        assert at_work(tmp_path) is None
        with owning(tmp_path):
            assert "elsewhere" in capsys.readouterr().out


def test_a_copy_of_a_run_in_work_is_no_run_in_work(
    hold: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "_WATCH_S", 0.3)
    monkeypatch.setattr(owner, "_SILENT_S", -1.0)
    first = hold()
    assert said(first) == "mine"
    copy = Path(shutil.copytree(tmp_path, tmp_path / "a copy"))
    with owning(copy):
        pass
    with refused(UsageError, str(first.pid)), owning(tmp_path):
        pass


def test_of_those_that_begin_together_one_begins(tmp_path: Path) -> None:
    """When nobody was there before, and when all find the same dead process."""
    for _ in range(5):
        together, all_tried = threading.Barrier(8), threading.Barrier(8)

        def try_to_own(_: int, together: threading.Barrier = together, tried: threading.Barrier = all_tried) -> bool:
            together.wait()
            try:
                with owning(tmp_path):
                    tried.wait()
                    return True
            except UsageError:
                tried.wait()
                return False

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(try_to_own, range(8))) == 1
        edit(tmp_path, lambda mark: replace(mark, started=mark.started - 100, ended=False))


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="nothing is suspended here")
def test_one_that_slept_while_it_was_followed_writes_nothing(hold: Any, tmp_path: Path) -> None:
    first = hold()
    assert said(first) == "mine"
    first.send_signal(signal.SIGSTOP)
    with refused(UsageError, str(first.pid)), owning(tmp_path):  # it lives on this machine
        pass
    edit(tmp_path, lambda mark: replace(mark, host="elsewhere", boot=1.0), silent_s=300)
    owner_watch, owner._WATCH_S = owner._WATCH_S, 0.2
    try:
        with owning(tmp_path):
            first.send_signal(signal.SIGCONT)
            answer = go_on(first)
            assert answer.startswith(RunError.__name__) and str(os.getpid()) in answer
            assert not (tmp_path / "phase1_baseline" / "written").exists()
            assert str(os.getpid()) in str(at_work(tmp_path))
    finally:
        owner._WATCH_S = owner_watch


def test_a_moved_folder_is_not_written_again_at_its_old_place(hold: Any, tmp_path: Path) -> None:
    first = hold()
    assert said(first) == "mine"
    (tmp_path / "owner").rename(tmp_path / "moved")
    assert go_on(first).startswith(RunError.__name__)
    assert not (tmp_path / "phase1_baseline").exists() or not list((tmp_path / "phase1_baseline").iterdir())


def test_what_the_owner_launches_works_under_its_mark(hold: Any, tmp_path: Path) -> None:
    with owning(tmp_path):
        child = hold(**{TOKEN: token_of(tmp_path)})
        assert said(child) == "mine" and go_on(child) == "wrote"
        child.wait(10)
        assert str(os.getpid()) in str(at_work(tmp_path)), "the child leaves the mark alone"
        stranger = hold(**{TOKEN: "another"})
        assert said(stranger).startswith(UsageError.__name__)


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"pid": "x"}), '{"token": 1'])
def test_a_mark_that_cannot_be_read_counts_while_it_is_new(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "_WATCH_S", 0.2)
    path = owner._path(tmp_path.resolve(), 7)
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    with refused(UsageError, tmp_path), owning(tmp_path):
        pass
    os.utime(path, (1, 1))
    with owning(tmp_path):
        assert owner._numbers(tmp_path.resolve()) == [8]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with owning(tmp_path), refused(UsageError, str(os.getpid())), owning(tmp_path):
        pass
    assert at_work(tmp_path) is None
