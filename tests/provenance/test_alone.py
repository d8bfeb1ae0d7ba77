"""Of several processes that need the same cold cache one makes it, and the others wait for it with a line."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from natix_hf.provenance import alone as module
from natix_hf.provenance.alone import alone

# Makes the file, slowly, if it is not there, and says what it did.
MAKE = """
import sys, time
from pathlib import Path
from natix_hf.provenance.alone import alone
path = Path(sys.argv[1])
with alone(path, "making it"):
    if path.is_file():
        print("found", flush=True)
    else:
        print("making", flush=True)
        time.sleep(float(sys.argv[2]))
        path.write_text("made")
"""


def start(path: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKE, str(path), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_works_the_others_wait_and_follow_one_that_dies(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache.arrow"
    first = start(path, 600)
    assert line(first) == "making"
    others = [start(path, 0), start(path, 0)]
    for other in others:
        told = line(other)
        assert "waiting" in told and str(first.pid) in told and "making it" in told
    first.kill()
    first.communicate()
    assert sorted(line(other) for other in others) == ["found", "making"]
    assert [other.wait(30) for other in others] == [0, 0]
    for other in others:
        other.communicate()


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(38, "no locks here"), PermissionError(13, "no")])
def test_without_locks_nobody_waits(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with alone(tmp_path / "x", "making it"):
        pass


def test_an_error_of_the_work_is_the_errors_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.1)
    for _ in range(2):
        begin = time.monotonic()
        with pytest.raises(OSError, match="disk"), alone(tmp_path / "x", "making it"):
            raise OSError("the disk is full")
        assert time.monotonic() - begin < 60, "the lock is free again"
