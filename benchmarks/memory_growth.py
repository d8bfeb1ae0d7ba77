"""What lies in memory while a run loads, trains and chooses its threshold: 5,000 and 50,000 pictures of 32 px.

    python benchmarks/memory_growth.py [--small 5000] [--large 50000] [--phases 1,2] [--workers 2]

Each size is `natix-hf run` in a process of its own with empty caches: phase 0 (decode, near-duplicates, splits), phase
1 (a tiny ViT, one epoch, loader workers) and phase 2. The pictures are PNG in one parquet file, in groups of five.
Every 0.2 s the memory of the process and all its children is added up from Linux's smaps_rollup. A page that several
processes share counts once (PSS). What the processes hold themselves counts; pages of mapped files (the decoded
copies) are given apart, because the system takes them back whenever it needs them. Peaks, altogether and by phase.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image
from results import record

SIZE = 32
MIB = 1 << 20
MODEL = {
    "model_type": "vit",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "patch_size": 8,
}


def write_pictures(folder: Path, count: int) -> None:
    """A parquet file of noisy pictures; those with label 1 have a bright square."""
    import datasets

    def rows(count: int) -> object:
        rng = np.random.default_rng(0)
        for number in range(count):
            label = number // 5 % 2
            pixels = rng.integers(0, 160, (SIZE, SIZE, 3), dtype=np.uint8)
            if label:
                top, left = rng.integers(0, SIZE - 12, 2)
                pixels[top : top + 12, left : left + 12, 0] = 250
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
            picture = {"bytes": stream.getvalue(), "path": None}
            yield {"image": picture, "label": label, "group": f"g{number // 5}", "id": f"picture-{number:06d}"}

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Value("int64"),
            "group": datasets.Value("string"),
            "id": datasets.Value("string"),
        }
    )
    folder.mkdir(parents=True)
    made = datasets.Dataset.from_generator(
        rows, features=features, gen_kwargs={"count": count}, cache_dir=str(folder.parent / "made")
    )
    made.to_parquet(folder / "train.parquet")


def in_use(root: psutil.Process) -> tuple[float, float]:
    """MiB of a process and its children: what they hold themselves, and pages of files that are mapped."""
    own = mapped = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
        except (OSError, psutil.Error):  # it has ended
            continue
        size = {name: int(rest.split()[0]) / 1024 for name, rest in (line.split(":") for line in lines)}
        own, mapped = own + size["Pss_Anon"] + size["Pss_Shmem"], mapped + size["Pss_File"]
    return own, mapped


def peaks(count: int, phases: str, workers: int) -> dict[str, tuple[float, float]]:
    """The peaks of a run, altogether and by phase, each as `in_use`."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        write_pictures(place / "pictures", count)
        training = {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 128,
            "dataloader_num_workers": workers,
            "logging_steps": 50,
        }
        recipe = {
            "data": {"source": str(place / "pictures"), "group_by": "group"},
            "model": {"config": MODEL, "image_size": SIZE},
            "phase1": training,
            "phase2": {"n_resamples": 200},
        }
        (place / "memory.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        caches = {"HF_HOME": str(place / "hf"), "NATIX_HF_CACHE": str(place / "natix"), "HF_HUB_OFFLINE": "1"}
        log = place / "log"
        command = [sys.executable, "-m", "natix_hf", "run", "memory.yaml", "--phases", phases]
        found: dict[str, tuple[float, float]] = {"start": (0.0, 0.0)}
        with log.open("wb") as out:
            run = subprocess.Popen(command, cwd=place, env=os.environ | caches, stdout=out, stderr=subprocess.STDOUT)
            root = psutil.Process(run.pid)
            while run.poll() is None:
                try:
                    own, mapped = in_use(root)
                except psutil.Error:
                    break
                begun = [line[:7] for line in log.read_text("utf-8", "replace").split("\n") if line[:6] == "phase "]
                phase = begun[-1] if begun else "start"
                before = found.get(phase, (0.0, 0.0))
                found[phase] = max(before[0], own), max(before[1], mapped)
                time.sleep(0.2)
        if run.wait() != 0:
            raise SystemExit(log.read_text(encoding="utf-8")[-3000:])
    return found | {"all": (max(own for own, _ in found.values()), max(mapped for _, mapped in found.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=5000)
    parser.add_argument("--large", type=int, default=50000)
    parser.add_argument("--phases", default="1,2")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    small, large = (peaks(count, given.phases, given.workers) for count in (given.small, given.large))
    told = ", ".join(
        f"{name} {small[name][0]:.0f} and {large[name][0]:.0f} MiB ({large[name][0] / small[name][0]:.2f})"
        for name in large
        if name in small and name != "all"
    )
    (own, mapped), (more_own, more_mapped) = small["all"], large["all"]
    record(
        f"memory_growth --phases {given.phases} --workers {given.workers}",
        f"{given.small:,} against {given.large:,} pictures of {SIZE} px: peak memory of the run and its workers "
        f"{own:.0f} and {more_own:.0f} MiB (ratio {more_own / own:.2f}), beside it pages of mapped files {mapped:.0f} "
        f"and {more_mapped:.0f} MiB; by phase: {told}",
    )


if __name__ == "__main__":
    main()
