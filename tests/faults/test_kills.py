"""The short form of `kills.py`: a few moments over the phases."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import kills
import pytest


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="nothing is forked here")
def test_a_run_survives_kills_and_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATIX_HF_CACHE", "HF_DATASETS_CACHE"):  # which `kills` sets for its runs
        monkeypatch.setenv(name, str(tmp_path))
    assert kills.main(count=3, signals=2, ranks=0, seed=0, folder=tmp_path / "kills") == 0
