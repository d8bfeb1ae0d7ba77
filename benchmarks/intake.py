"""What a file costs to take in, at 6,000 and at 60,000 pictures in class folders.

    python benchmarks/intake.py [--small 6000] [--large 60000] [--px 64]

A side does what `natix-hf inspect` does: it lists the folder, decides labels, decodes each picture once, divides the
rows and says what was read, in a process of its own with empty caches. `again` is the same in another process that
finds the first one's caches. The folder holds JPEG pictures and a sidecar for every tenth. Imports and the first start
of workers are paid before, on a few other pictures. Memory is the main process's peak.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import MIB, Side, report
from PIL import Image
from results import record

_A_FOLDER = 1000


def write_folder(root: Path, pictures: int, px: int) -> None:
    """Class folders of date folders of at most 1,000 pictures, no two alike."""
    rng = np.random.default_rng(0)
    for i in range(pictures):
        folder = root / ("no", "yes")[i % 2] / f"2026-{i // _A_FOLDER:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
        coarse.resize((px, px), Image.Resampling.BICUBIC).save(folder / f"clip test {i}.jpg", quality=85)
        if i % 10 == 0:
            (folder / f"clip test {i}.json").write_text('{"camera": 1}')


def take_in(folder: Path) -> dict[str, Any]:
    from natix_hf.data.config import DataConfig
    from natix_hf.data.reading import reading_of
    from natix_hf.data.rows import load_image_data

    begin = time.perf_counter()
    read = reading_of(load_image_data(DataConfig(source=str(folder))))
    seconds = time.perf_counter() - begin
    files = read["files"]
    assert files["found"] == files["used"] + len(files["left_out"]), files
    return {"seconds": seconds, "rows": read["rows"], "found": files["found"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=6000)
    parser.add_argument("--large", type=int, default=60000)
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        warm, folder = map(Path, given.side)
        take_in(warm)
        facts = take_in(folder)
        report(**facts, peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB)
        return
    found: dict[int, dict[str, float]] = {}
    for pictures in (given.small, given.large):
        with tempfile.TemporaryDirectory() as scratch:
            folder, warm = Path(scratch) / "photographs", Path(scratch) / "warm"
            write_folder(folder, pictures, given.px)
            write_folder(warm, 200, given.px)
            caches = {"HF_DATASETS_CACHE": str(Path(scratch) / "cache"), "NATIX_HF_CACHE": str(Path(scratch) / "own")}
            runs = []
            for _ in range(2):
                side = Side(__file__, "--side", str(warm), str(folder), env=os.environ | caches)
                runs.append(side.figures())
                side.finish()
            size = sum(file.stat().st_size for file in (Path(scratch) / "cache").rglob("*") if file.is_file())
        first, again = runs
        each = first["seconds"] / pictures * 1e3
        found[pictures] = {"each": each, "again": again["seconds"], "peak": first["peak"], "cache": size / pictures}
        print(pictures, runs, file=sys.stderr, flush=True)
    small, large = found.values()
    record(
        "intake",
        f"{given.small:,} against {given.large:,} JPEG pictures of {given.px} px in class folders: "
        f"{small['each']:.3f} and {large['each']:.3f} ms a picture (ratio {large['each'] / small['each']:.2f}), "
        f"a second run {small['again']:.1f} and {large['again']:.1f} s, peak of the main process {small['peak']:.0f} "
        f"and {large['peak']:.0f} MiB ({large['peak'] / small['peak']:.2f}), cache {large['cache'] / 1024:.1f} KiB a "
        "picture",
    )


if __name__ == "__main__":
    main()
