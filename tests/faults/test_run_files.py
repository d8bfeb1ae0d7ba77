"""The short form of `run_files.py`: some mutations of a finished run's files."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from run_files import attack


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer ends what hangs")
def test_a_mutation_is_seen_or_harmless(finished_run: Path, tmp_path: Path) -> None:
    tally, _ = attack(60, 3, tmp_path / "scratch", finished_run)
    assert tally.misses == []
    assert tally.counts["a result, as it is"]["refused"] > 20 and tally.counts["a manifest, as it is"]["refused"]
