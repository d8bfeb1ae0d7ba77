"""The peers of `loader.py`: albumentations and torchvision v2 with their recommended settings.

    PYTHON loader_peers.py NAME COPIES VIEWS     started by loader.py

It runs in an environment of the peer's own, so it imports nothing of ours. Both work on bytes, rotate the whole
picture and then crop, as their documentation does. torchvision 0.28 looks for operators that its CPU-less build does
not bring beside a CPU-only torch; no transform uses them, so empty ones are declared.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np

Makers = dict[str, Callable[[np.ndarray, int], Any]]
_Make = Callable[[np.ndarray], Any]
_MakeCrop = Callable[[int, tuple[float, float], float, float], _Make]  # side, share of the area, blur, solarisation
MEASURED = "measured: "


def serve(makers: Makers, copies: np.ndarray, views: int, named: str = "") -> None:
    """Report the seconds of a core that a view of each kind takes, once for each line on stdin."""
    for make in makers.values():
        for number in range(3):
            make(copies[number], number)
    print(MEASURED + json.dumps({"version": named}), flush=True)
    begin_at = 0
    while sys.stdin.readline():
        found = {}
        for kind, make in makers.items():
            begin = time.process_time()
            for number in range(begin_at, begin_at + views):
                make(copies[number % len(copies)], number)
            found[kind] = (time.process_time() - begin) / views
        begin_at += views
        print(MEASURED + json.dumps(found), flush=True)


def albumentations() -> Makers:
    A, cv2 = import_module("albumentations"), import_module("cv2")
    cv2.setNumThreads(1)

    def maker(*steps: Any) -> Callable[[np.ndarray], Any]:
        transform = A.Compose(list(steps))
        return lambda copy: np.ascontiguousarray(transform(image=copy)["image"].transpose(2, 0, 1))

    def crop(size: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Any:
        return A.RandomResizedCrop(size=(size, size), scale=scale, ratio=ratio)

    def dino(size: int, scale: tuple[float, float], blur: float, solarise: float) -> Callable[[np.ndarray], Any]:
        return maker(
            crop(size, scale, (0.75, 4 / 3)), A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8), A.ToGray(p=0.2),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=blur), A.Solarize(p=solarise),
        )  # fmt: skip

    view = maker(
        A.Rotate(limit=10, interpolation=cv2.INTER_LINEAR, crop_border=True), crop(224, (0.5, 1.0), (0.8, 1.25)),
        A.HorizontalFlip(p=0.5), A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0, p=1.0),
    )  # fmt: skip
    mae = maker(crop(224, (0.2, 1.0), (0.8, 1.25)), A.HorizontalFlip(p=0.5))
    exam = maker(
        A.Rotate(limit=20, interpolation=cv2.INTER_NEAREST, p=0.75), crop(224, (0.2, 1.0), (1.0, 1.0)),
        A.ColorJitter(brightness=0, contrast=0.3, saturation=0.7, hue=0, p=0.4),
        A.Downscale(scale_range=(0.33, 0.5), p=0.3), A.GaussNoise(std_range=(0.03, 0.045), p=0.17),
        A.GaussianBlur(blur_limit=(7, 9), p=0.17), A.ImageCompression(quality_range=(75, 75), p=1.0),
    )  # fmt: skip
    return _kinds(view, mae, dino, exam)


def _kinds(view: _Make, mae: _Make, dino: _MakeCrop, exam: _Make) -> Makers:
    """Views by kind; `dino` makes one of DINOv2's crops."""
    large = [dino(224, (0.32, 1.0), 1.0, 0.0), dino(224, (0.32, 1.0), 0.1, 0.2)]
    small = dino(98, (0.05, 0.32), 0.5, 0.0)
    return {
        "view": lambda copy, _: view(copy),
        "MAE view": lambda copy, _: mae(copy),
        "multi-crop": lambda copy, _: ([make(copy) for make in large], [small(copy) for _ in range(8)]),
        "exam view": lambda copy, _: exam(copy),
    }


def torchvision() -> Makers:
    torch = import_module("torch")
    torch.set_num_threads(1)
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    v2 = import_module("torchvision.transforms.v2")
    bilinear, nearest = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.NEAREST

    def maker(*steps: Any) -> Callable[[np.ndarray], Any]:
        transform = v2.Compose(list(steps))
        return lambda copy: transform(torch.from_numpy(copy).permute(2, 0, 1)).contiguous()

    def crop(size: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Any:
        return v2.RandomResizedCrop(size, scale=scale, ratio=ratio, interpolation=bilinear, antialias=True)

    def dino(size: int, scale: tuple[float, float], blur: float, solarise: float) -> Callable[[np.ndarray], Any]:
        return maker(
            crop(size, scale, (0.75, 4 / 3)), v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8), v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=blur), v2.RandomSolarize(128, p=solarise),
        )  # fmt: skip

    view = maker(
        v2.RandomRotation(10, bilinear), crop(224, (0.5, 1.0), (0.8, 1.25)), v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.3, 0.3, 0.3),
    )  # fmt: skip
    mae = maker(crop(224, (0.2, 1.0), (0.8, 1.25)), v2.RandomHorizontalFlip())
    exam = maker(
        v2.RandomApply([v2.RandomRotation(20, nearest)], p=0.75), crop(224, (0.2, 1.0), (1.0, 1.0)),
        v2.RandomApply([v2.ColorJitter(0, 0.3, 0.7)], p=0.4),
        v2.RandomApply([v2.Resize(90, antialias=False), v2.Resize(224, antialias=False)], p=0.3),
        v2.RandomApply([v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise(sigma=0.04),
                        v2.ToDtype(torch.uint8, scale=True)], p=0.17),
        v2.RandomApply([v2.GaussianBlur(9, 1.3)], p=0.17),
    )  # fmt: skip
    return _kinds(view, mae, dino, exam)


def main() -> None:
    name, copies, views = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3])
    random.seed(0)
    np.random.seed(0)
    makers = {"albumentations": albumentations, "torchvision": torchvision}[name]()
    serve(makers, copies, views, version(name))


if __name__ == "__main__":
    main()
