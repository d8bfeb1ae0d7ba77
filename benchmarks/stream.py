"""Memory, disk and speed of phase 4 on streamed images, at 5,000 and at 50,000 frames.

    python benchmarks/stream.py [--small 5000] [--large 50000]

The source is one folder: half of the frames are JPEG files of 96 px, half lie in tar shards of 1,000. A run of phase 4
alone (`phase4.stream: true`, a shuffle buffer of 1,000, one loader worker, a tiny encoder, masked autoencoding at 28
px) makes one pass over it, with all that a run does: probes, checkpoints, merge, manifest. Each size runs in a process
of its own with empty caches.

Memory is that of the process and its worker, what they share counted once (proportional set size), the largest of
samples every quarter of a second. Disk is the source, the run's folder and all caches together, over the source alone;
again the largest of all samples.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from measure import MIB, Side, report
from results import record

from natix_hf.synthetic import SyntheticConfig, render

PX, BATCH, A_TAR = 96, 64, 1000


def make_source(folder: Path, frames: int) -> None:
    """Shifted cut-outs of some scenes: no two frames are equal, and drawing them costs little."""
    scenes = [render(SyntheticConfig(image_size=2 * PX), number, 0) for number in range(20)]
    rng = np.random.default_rng(0)

    def jpeg(number: int) -> bytes:
        left, top = (int(value) for value in rng.integers(0, PX, 2))
        buffer = io.BytesIO()
        scenes[number % len(scenes)].crop((left, top, left + PX, top + PX)).save(buffer, "JPEG", quality=90)
        return buffer.getvalue() + number.to_bytes(4, "big")

    for number in range(frames // 2):
        path = folder / f"drive{number // 1000:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    (folder / "shards").mkdir()
    for first in range(frames // 2, frames, A_TAR):
        with tarfile.open(folder / "shards" / f"{first:06}.tar", "w") as tar:
            for number in range(first, min(first + A_TAR, frames)):
                content = jpeg(number)
                info = tarfile.TarInfo(f"{number:06}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def run_side(source: str, frames: int, folder: str) -> None:
    from natix_hf.pipeline import run_recipe
    from natix_hf.provenance.files import read_json

    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    recipe: dict[str, Any] = {
        "data": {"source": None},
        "model": {"config": {"model_type": "vit", "patch_size": 7, **tiny}, "image_size": 28},
        "phase4": {
            **{"trainable": "all", "objective": "mae", "use_labeled_data": False},
            **{"unlabelled": [source], "stream": True, "max_steps": frames // BATCH, "probe_steps": 500},
            **{"per_device_train_batch_size": BATCH, "dataloader_num_workers": 1},
            "mae": {"decoder_width": 16, "decoder_heads": 2, "decoder_layers": 1},
        },
    }
    begin = time.perf_counter()
    file = Path(folder).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run = run_recipe(str(file), [4], Path(folder))
    figures = read_json(run / "phase4_explora" / "manifest.json")["metrics"]
    report(seconds=time.perf_counter() - begin, train_s=figures["train_s"], images=figures["images"])


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def measure(frames: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        source, work = Path(scratch) / "source", Path(scratch) / "work"
        source.mkdir()
        make_source(source, frames)
        names = {"HF_DATASETS_CACHE": "hf", "HF_HOME": "hf", "NATIX_HF_CACHE": "natix", "TMPDIR": "tmp"}
        for name in names.values():
            (work / name).mkdir(parents=True, exist_ok=True)
        env = os.environ | {name: str(work / folder) for name, folder in names.items()}
        side = Side(__file__, "--side", str(source), str(frames), str(work / "run"), env=env)
        samples: list[float] = []
        written: list[int] = []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.25):
                try:
                    samples.append(side.memory())
                    written.append(size_of(work))
                except (psutil.Error, OSError):  # the worker ended meanwhile, or a file was renamed
                    continue

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            figures = side.figures()
        finally:
            done.set()
            watcher.join()
        side.finish()
        found = {"source": size_of(source), "disk": max(*written, size_of(work)), "peak": max(samples), **figures}
    print(frames, found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=5000)
    parser.add_argument("--large", type=int, default=50000)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        run_side(given.side[0], int(given.side[1]), given.side[2])
        return
    small, large = measure(given.small), measure(given.large)
    record(
        "stream",
        "phase 4 on streamed frames of 96 px, one pass: "
        + "; ".join(
            f"{each['images']:,.0f} frames, {each['source'] / MIB:.0f} MiB: peak {each['peak']:.0f} MiB, disk at most "
            f"{1 + each['disk'] / each['source']:.3f} times that, {each['images'] / each['train_s']:.0f} frames/s"
            for each in (small, large)
        )
        + f"; peak {large['peak'] / small['peak']:.2f} times",
        ("torch", "datasets"),
    )


if __name__ == "__main__":
    main()
