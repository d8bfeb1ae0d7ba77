"""The short form of disks.py: a full run folder, a full and a closed cache, and damage between phases."""

from __future__ import annotations

from pathlib import Path

import pytest
from disks import Trial, can_mount, make_reference, report, try_disks

pytestmark = pytest.mark.xdist_group("ranks")  # which are forked from the same process

TRIALS = [
    Trial("run folder full", 2, 0.3),
    Trial("run folder full", 6, 0.1),
    Trial("run folder read-only", 2),
    Trial("cold cache full", 0, 0.2),
    Trial("HF_HOME read-only", 0),
    Trial("damage", 6),
]


def test_disks(tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("no file system can be mounted here")
    reference = make_reference(tmp_path / "reference", (1, 2, 6))
    counts = try_disks(reference, TRIALS)
    assert report(counts) == 0
    assert all(counts[trial.kind, "noticed"] for trial in TRIALS), "a fault that is never met shows nothing"
