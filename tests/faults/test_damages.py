"""The short form of `damages.py`."""

from __future__ import annotations

from pathlib import Path

from damages import try_damages


def test_no_damaged_file_is_ever_used(tmp_path: Path) -> None:
    counts = try_damages(8, 2, tmp_path)
    assert not [what for what in counts if what.startswith("missed")]
    assert counts["refused by the phase alone"] >= 3
