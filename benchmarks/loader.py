"""Views a second that one core makes, of every kind, beside albumentations and torchvision v2.

    python benchmarks/loader.py [--turns 5] [--views 40] [--albumentations PYTHON] [--torchvision PYTHON]

All sides draw from the same copies in memory, as the decode cache holds them: photographs of 683 x 384 px (those of
`decode_cache.py`). All give the same output: uint8 pictures, channels first, in memory of their own, as a loader's
worker hands them over; normalisation is the device's. Beside the views of the workers (ours) stand `data.views_on:
device` on this CPU, one view at a time and normalised (device), and the part of it that its workers do (hand over).
Kinds:

- view: 224 px, the default augmentation (rotation by up to 10 degrees, crop, mirror, jitter);
- MAE view: 224 px, crop and mirror;
- multi-crop: 2 x 224 px and 8 x 98 px with the settings of DINOv2, with our masks on our side only;
- exam view: 224 px, `augment: challenge`.

A side runs in a process of its own with one thread, and what counts is the time of its core, so that a neighbour on
the machine weighs less. The sides take turns, in which each makes some views of every
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
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from decode_cache import HEIGHT, WIDTH, photograph
from loader_peers import serve
from measure import Side
from results import record
from timing import median_ratio
from torch.utils.data import default_collate

from natix_hf.data.config import AugmentConfig
from natix_hf.data.crops import MultiCropViews
from natix_hf.data.crops_config import CropConfig
from natix_hf.data.images import shrink
from natix_hf.data.views import TrainViews, choose_place
from natix_hf.ssl.mae_config import MaeConfig

PICTURES, CACHE_PX = 24, 384
MEAN, STD = [0.5] * 3, [0.2] * 3
KINDS = ("view", "MAE view", "multi-crop", "exam view")


def ours(side: str) -> dict[str, Callable[[np.ndarray, int], Any]]:
    """The workers' views; with `device` all that the device path does; with `hand over` only its workers' part."""
    rows: Any = SimpleNamespace(decoded=_largest(), labels=[])
    mae = AugmentConfig(crop_scale=MaeConfig().crop_scale, rotate=0.0, jitter=0.0)
    makers: dict[str, Any] = {
        "view": TrainViews(rows, AugmentConfig(), 224, MEAN, STD, 0),
        "MAE view": TrainViews(rows, mae, 224, MEAN, STD, 0),
        "multi-crop": MultiCropViews(rows.decoded, CropConfig(), 224, 14, MEAN, STD, 0),
        "exam view": TrainViews(rows, "challenge", 224, MEAN, STD, 0),
    }

    def maker(views: Any) -> Callable[[np.ndarray, int], Any]:
        choose_place(views, "workers" if side == "ours" else "device", torch.device("cpu"))
        if side != "device":
            return lambda copy, number: views.draw([(0, number)], [copy])
        return lambda copy, number: views.finish(default_collate(views.draw([(0, number)], [copy])))

    return {kind: maker(views) for kind, views in makers.items()}


def _largest() -> Dataset:
    return Dataset.from_dict({"height": [CACHE_PX], "width": [WIDTH * CACHE_PX // HEIGHT]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--views", type=int, default=40, help="views of a kind in a turn")
    parser.add_argument("--albumentations", metavar="PYTHON")
    parser.add_argument("--torchvision", metavar="PYTHON")
    parser.add_argument("--side", nargs=2, metavar=("NAME", "COPIES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        torch.set_num_threads(1)
        serve(ours(given.side[0]), np.load(given.side[1]), given.views)
        return
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    peers = Path(__file__).with_name("loader_peers.py")
    with tempfile.TemporaryDirectory() as folder:
        copies = Path(folder) / "copies.npy"
        rng = np.random.default_rng(0)
        np.save(copies, np.stack([np.asarray(shrink(photograph(rng), CACHE_PX)) for _ in range(PICTURES)]))
        settings = (str(copies), "--views", str(given.views))
        sides = {name: Side(__file__, "--side", name, *settings, env=env) for name in ("ours", "device", "hand over")}
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
            if name in ("albumentations", "torchvision")
        )
        told.append(f"{kind}: {each}" + (f" (ours is {ratios})" if ratios else ""))
    load = os.getloadavg()[0]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    record(
        "loader",
        f"views a second and core: {'; '.join(told)}; medians of {given.turns} turns of {given.views} views, "
        f"load {load:.1f}{'; ' + named if named else ''}",
        ("torch", "pillow", "numpy"),
    )


if __name__ == "__main__":
    main()
