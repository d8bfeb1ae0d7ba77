"""What an image costs and what lies in memory, at 5,000 and at 50,000 synthetic images of 64 px.

    python benchmarks/growth.py [--small 5000] [--large 50000] [--repeats 2]

Each size runs in processes of its own with empty caches. `load` is `load_image_data`: drawing the scenes into the
`datasets` cache, decoding each once, dividing the rows. `epoch` is one pass over all train rows as training makes it,
augmented views in the order of the sampler through one loader worker, without a model; the small side makes several,
and their median counts. Imports and the first start of workers are paid before, on a few other images. Memory is the
main process's: the peak of what was resident at any time. The sizes alternate, small first; medians.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from measure import MIB, Side, report
from results import record

FRAMES = 5
VIEWS = 30_000  # both sides draw about as many, in one epoch or in several


def load_and_iterate(images: int, seed: int, views_to_draw: int) -> dict[str, float]:
    from torch.utils.data import DataLoader

    from natix_hf.data.config import DataConfig
    from natix_hf.data.rows import load_image_data
    from natix_hf.data.sampler import EpochSampler
    from natix_hf.data.views import TrainViews
    from natix_hf.synthetic import SyntheticConfig

    scenes = SyntheticConfig(videos=images // FRAMES, frames=FRAMES, image_size=64, seed=seed)
    config = DataConfig(source="synthetic", synthetic=scenes, group_by="video_info.vid_id")
    begin = time.perf_counter()
    train = load_image_data(config).role("train")
    loaded = time.perf_counter()
    views = TrainViews(train, config.augment, 64, [0.5] * 3, [0.5] * 3, seed=0)
    sampler = EpochSampler(train.labels, seed=0)
    loader: Any = DataLoader(views, batch_size=64, sampler=sampler, num_workers=1)
    costs = []
    for _ in range(max(1, views_to_draw // len(train))):
        begin_epoch = time.perf_counter()
        seen = sum(len(batch["labels"]) for batch in loader)
        costs.append((time.perf_counter() - begin_epoch) / seen)
    return {"load": (loaded - begin) / images, "epoch": median(costs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=5000)
    parser.add_argument("--large", type=int, default=50000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        load_and_iterate(2000, seed=1, views_to_draw=0)
        costs = load_and_iterate(given.side, seed=0, views_to_draw=VIEWS)
        report(**costs, peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB)
        return
    found: dict[int, list[dict[str, float]]] = {given.small: [], given.large: []}
    for _ in range(given.repeats):
        for images, runs in found.items():
            with tempfile.TemporaryDirectory() as scratch:
                caches = {"HF_DATASETS_CACHE": str(Path(scratch)), "NATIX_HF_CACHE": str(Path(scratch) / "natix")}
                side = Side(__file__, "--side", str(images), env=os.environ | caches)
                runs.append(side.figures())
                side.finish()
            print(images, runs[-1], file=sys.stderr, flush=True)
    small, large = ({key: median(run[key] for run in runs) for key in runs[0]} for runs in found.values())
    record(
        "growth",
        f"{given.small:,} against {given.large:,} images of 64 px: load {small['load'] * 1e3:.3f} and "
        f"{large['load'] * 1e3:.3f} ms an image (ratio {large['load'] / small['load']:.2f}), epoch "
        f"{small['epoch'] * 1e3:.3f} and {large['epoch'] * 1e3:.3f} ms ({large['epoch'] / small['epoch']:.2f}), peak "
        f"of the main process {small['peak']:.0f} and {large['peak']:.0f} MiB ({large['peak'] / small['peak']:.2f})",
    )


if __name__ == "__main__":
    main()
