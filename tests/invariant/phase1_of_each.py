"""Launched by test_trajectories.py: phase 1 once for every line of a file (its arguments, as JSON), on these ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from natix_hf.pipeline import phase_script

if __name__ == "__main__":
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        phase_script(1, json.loads(line))
