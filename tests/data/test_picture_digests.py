"""A picture that is not the one that was divided is never asked about."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from natix_hf.data.asked import ask
from natix_hf.data.config import DataConfig, Exam
from natix_hf.data.rows import load_image_data
from natix_hf.errors import DataError


@pytest.mark.parametrize("exam", [None, Exam(4, 0)], ids=["whole", "exam"])
def test_an_edit_that_no_fingerprint_sees(exam: Exam | None, tmp_path: Path) -> None:
    """In the middle of a large file, which keeps its size and its time."""
    rng = np.random.default_rng(0)
    for name in ("cones", "road"):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (240, 240, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.bmp")
    rows = load_image_data(DataConfig(source=str(tmp_path), positive_class="cones", cache_px=32)).role("train")
    asked = ask(rows, exam)
    assert len({asked.picture(i).tobytes() for i in range(len(asked))}) == len(asked)
    victim = rows.ids[3]
    path = next(path for path in tmp_path.rglob("*.bmp") if victim.endswith(path.relative_to(tmp_path).as_posix()))
    content, times = bytearray(path.read_bytes()), path.stat()
    content[100_000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    refused(DataError, lambda: ask(rows, exam).picture(3 * asked.views), victim)
    refused(DataError, lambda: ask(rows, exam).select(np.array([2, 3])).picture(asked.views), victim)
    assert ask(rows, exam).picture(2 * asked.views).size == asked.picture(2 * asked.views).size
