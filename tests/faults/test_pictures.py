"""A short form of `pictures.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("pictures.py")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes and forked processes")
def test_hostile_pictures_are_bad_ones_or_right_ones() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--count", "130"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ghostscript started: False" in done.stdout
