"""Views a second that one core makes, of every kind, beside albumentations and torchvision v2.

    python benchmarks/loader.py [--turns 5] [--views 40] [--albumentations PYTHON] [--torchvision PYTHON]

All sides draw from the same copies in memory, as the decode cache holds them: photographs of 683 x 384 px (those of
`decode_cache.py`). All give the same output: uint8 pictures, channels first, in memory of their own, as a loader's
worker hands them over; normalisation is the device's. Kinds:

- view: 224 px, the default augmentation (rotation by up to 10 degrees, crop, mirror, jitter);
- MAE view: 224 px, crop and mirror;
- multi-crop: 2 x 224 px and 8 x 98 px with the settings of DINOv2, with our masks on our side only;
- exam view: 224 px, `augment: challenge`.

A side runs in a process of its own with one thread. The sides take turns, in which each makes some views of every
kind; medians over the turns. PYTHON is the interpreter of an environment with the peer, whose transforms are in
`loader_peers.py`. Without it that peer is left out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from decode_cache import photograph
from loader_peers import serve
from measure import Side
from results import record
from timing import median_ratio

from natix_hf.data.augment import augment
from natix_hf.data.config import AugmentConfig
from natix_hf.data.crops import MultiCropViews
from natix_hf.data.crops_config import CropConfig
from natix_hf.data.images import shrink
from natix_hf.ssl.mae_config import MaeConfig

PICTURES, CACHE_PX = 24, 384
KINDS = ("view", "MAE view", "multi-crop", "exam view")


def ours() -> dict[str, Callable[[np.ndarray, int], Any]]:
    mae = AugmentConfig(crop_scale=MaeConfig().crop_scale, rotate=0.0, jitter=0.0)
    crops = MultiCropViews(_NoRows(), CropConfig(), 224, 14, [0.5] * 3, [0.2] * 3, 0)  # type: ignore[arg-type]

    def drawn(config: Any) -> Callable[[np.ndarray, int], Any]:
        return lambda copy, number: augment(copy, config, 224, np.random.default_rng([0, 0, number]))

    return {
        "view": drawn(AugmentConfig()),
        "MAE view": drawn(mae),
        "multi-crop": lambda copy, number: crops.draw([(0, number)], [copy]),
        "exam view": drawn("challenge"),
    }


class _NoRows:
    """Stands for the rows of views that are drawn from given copies only."""

    def with_format(self, kind: str) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--views", type=int, default=40, help="views of a kind in a turn")
    parser.add_argument("--albumentations", metavar="PYTHON")
    parser.add_argument("--torchvision", metavar="PYTHON")
    parser.add_argument("--side", metavar="COPIES", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        torch.set_num_threads(1)
        serve(ours(), np.load(given.side), given.views)
        return
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    peers = Path(__file__).with_name("loader_peers.py")
    with tempfile.TemporaryDirectory() as folder:
        copies = Path(folder) / "copies.npy"
        rng = np.random.default_rng(0)
        np.save(copies, np.stack([np.asarray(shrink(photograph(rng), CACHE_PX)) for _ in range(PICTURES)]))
        sides = {"ours": Side(__file__, "--side", str(copies), "--views", str(given.views), env=env)}
        for name in ("albumentations", "torchvision"):
            python = getattr(given, name)
            if python:
                sides[name] = Side(str(peers), name, str(copies), str(given.views), env=env, python=python)
        versions = {name: str(side.figures()["version"]) for name, side in sides.items()}
        seconds: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in sides} for kind in KINDS}
        for _ in range(given.turns):
            for name, side in sides.items():
                for kind, took in side.figures_of_turn().items():
                    seconds[kind][name].append(took)
        for side in sides.values():
            side.finish()
    told = []
    for kind, of_sides in seconds.items():
        each = ", ".join(f"{name} {1 / median(took):.0f}" for name, took in of_sides.items())
        ratios = ", ".join(
            f"{median_ratio(took, of_sides['ours']):.2f} times {name}"
            for name, took in of_sides.items()
            if name != "ours"
        )
        told.append(f"{kind}: {each}" + (f" (ours is {ratios})" if ratios else ""))
    load = os.getloadavg()[0]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "ours")
    record(
        "loader",
        f"views a second and core: {'; '.join(told)}; medians of {given.turns} turns of {given.views} views, "
        f"load {load:.1f}{'; ' + named if named else ''}",
        ("torch", "pillow", "numpy"),
    )


if __name__ == "__main__":
    main()
