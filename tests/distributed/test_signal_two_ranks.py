"""A signal to one of two ranks ends both at one step, after a checkpoint from which the training continues."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import launch

pytestmark = pytest.mark.xdist_group("ranks")  # which are forked from one process
SCRIPT = Path(__file__).with_name("signal_rank.py")


def result(folder: Path, place: Path, name: str = "none", rank: int = 0, step: int = 0) -> tuple[int, list[str], str]:
    done = launch("cpu_2proc.yaml", SCRIPT, folder, str(place), name, str(rank), str(step))
    lines = sorted(set(done.stdout.splitlines()))
    return done.returncode, [line for line in lines if line.startswith(("loss", "rank"))], done.stderr


def test_both_ranks_stop_at_one_step_whichever_gets_the_signal(tmp_path: Path) -> None:
    code, whole, err = result(tmp_path, tmp_path / "whole")
    assert code == 0 and whole[1:] == ["rank 0 stopped at 15", "rank 1 stopped at 15"], err
    for rank, name, expected in ((1, "SIGTERM", 143), (0, "SIGINT", 130)):
        place = tmp_path / name
        code, lines, err = result(tmp_path, place, name, rank, 6)
        assert code == expected and lines == ["rank 0 stopped at 8", "rank 1 stopped at 8"], err
        assert "Traceback" not in err
        assert (place / "checkpoint-8" / "complete.json").is_file()
        code, lines, err = result(tmp_path, place)
        assert code == 0 and lines == whole, err
