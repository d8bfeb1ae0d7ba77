"""What a copy costs in the decode cache, by format: bytes, ms to write, ms to read, and what is lost.

    python benchmarks/decode_cache.py [--frames 24] [--repeats 5]

The frames are stand-ins of 1280 x 720 px. Half are real photographs: the two of scikit-learn (640 x 427 px), enlarged
to cover the frame at a random place, mirrored or not. Enlarged twice and then shrunk for the cache they are nearly at
their own scale again, so a copy has the texture of a real photograph. The other half are the built-in scenes, drawn at
1280 px with their sensor noise. The two halves stand in rows of their own, because flat walls compress better.

A copy is made as `decode_once` makes it. *Write* encodes it, *read* turns it back into pixels, *view* is a whole
training view of 224 px (default augmentation) from a copy in memory, its reading included. PSNR is that of the copies,
and of views with the same draws, against raw. What `decode_once` does with a frame anyway stands at the end: decoding
it (a JPEG of quality 90), its digest, its shrinking. The formats take turns; medians over frames and turns.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import sklearn.datasets
from PIL import Image
from results import record

from natix_hf.data.augment import augment
from natix_hf.data.config import AugmentConfig
from natix_hf.data.decode import _JPEG
from natix_hf.data.images import open_image, pixel_sha256, shrink, tame_aspect
from natix_hf.synthetic import SyntheticConfig, render

WIDTH, HEIGHT, VIEW = 1280, 720, 224
FORMATS: dict[str, dict[str, Any] | None] = {
    "raw": None,
    "jpeg q95 4:4:4": {"format": "JPEG", **_JPEG},
    "jpeg q95 4:2:0": {"format": "JPEG", "quality": 95, "subsampling": "4:2:0"},
    "jpeg q90 4:4:4": {"format": "JPEG", "quality": 90, "subsampling": "4:4:4"},
    "webp q95": {"format": "WEBP", "quality": 95, "method": 4},
    "webp lossless": {"format": "WEBP", "lossless": True, "quality": 50, "method": 2},
}


def photograph(rng: np.random.Generator) -> Image.Image:
    folder = Path(sklearn.datasets.__file__).parent / "images"
    image = Image.open(folder / str(rng.choice(["china.jpg", "flower.jpg"]))).convert("RGB")
    scale = max(WIDTH / image.width, HEIGHT / image.height) * float(rng.uniform(1, 1.1))
    large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = int(rng.integers(large.width - WIDTH + 1)), int(rng.integers(large.height - HEIGHT + 1))
    frame = large.crop((left, top, left + WIDTH, top + HEIGHT))
    return frame.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else frame


def scene(number: int) -> Image.Image:
    square = render(SyntheticConfig(image_size=WIDTH), number, 0)
    return square.crop((0, (WIDTH - HEIGHT) // 2, WIDTH, (WIDTH + HEIGHT) // 2))


def encode(image: Image.Image, options: dict[str, Any] | None) -> bytes:
    if options is None:
        return image.tobytes()
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def decode(stored: bytes, size: tuple[int, int], options: dict[str, Any] | None) -> np.ndarray:
    if options is None:
        return np.frombuffer(stored, dtype=np.uint8).reshape(size[1], size[0], 3)
    return np.asarray(Image.open(io.BytesIO(stored)))


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    found = call()
    return found, (time.perf_counter() - begin) * 1e3


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return 10 * float(np.log10(255**2 / error)) if error else float("inf")


def measure(frames: list[Image.Image], cache_px: int, repeats: int) -> dict[str, dict[str, float]]:
    """Figures of every format, medians over frames and repeats; bytes and PSNR are means."""
    copies = [shrink(tame_aspect(frame), cache_px) for frame in frames]
    found: dict[str, dict[str, list[float]]] = {
        name: {key: [] for key in ("bytes", "write", "read", "view", "psnr", "psnr of views")} for name in FORMATS
    }
    config = AugmentConfig()

    def view(stored: bytes, size: tuple[int, int], options: dict[str, Any] | None, number: int) -> np.ndarray:
        picture = decode(stored, size, options)
        return augment(picture, config, VIEW, np.random.default_rng([0, 0, number])).numpy()

    for repeat in range(repeats):
        for number, copy in enumerate(copies):
            exact = np.asarray(copy)
            plain = view(copy.tobytes(), copy.size, None, number)
            for name, options in FORMATS.items():
                stored, write = timed(partial(encode, copy, options))
                back, read = timed(partial(decode, stored, copy.size, options))
                drawn, whole = timed(partial(view, stored, copy.size, options, number))
                figures = found[name]
                for key, value in (("write", write), ("read", read), ("view", whole)):
                    figures[key].append(value)
                if repeat == 0:
                    figures["bytes"].append(len(stored))
                    figures["psnr"].append(psnr(exact, back))
                    figures["psnr of views"].append(psnr(plain, drawn))
    return {
        name: {k: median(v) if k in ("write", "read", "view") else mean(v) for k, v in figures.items()}
        for name, figures in found.items()
    }


def source_cost(frames: list[Image.Image]) -> dict[str, float]:
    """ms of what `decode_once` does with a frame anyway: decode it, compute its digest, shrink it."""
    costs: dict[str, list[float]] = {"decode": [], "digest": [], "shrink to 384": []}
    for frame in frames:
        stored = encode(frame, {"format": "JPEG", "quality": 90})
        image, ms = timed(partial(open_image, stored))
        costs["decode"].append(ms)
        costs["digest"].append(timed(partial(pixel_sha256, image))[1])
        costs["shrink to 384"].append(timed(partial(shrink, image, 384))[1])
    return {name: median(values) for name, values in costs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    kinds = {
        "photographs": [photograph(rng) for _ in range(given.frames // 2)],
        "scenes": [scene(number) for number in range(given.frames // 2)],
    }
    for kind, frames in kinds.items():
        anyway = ", ".join(f"{name} {ms:.1f}" for name, ms in source_cost(frames).items())
        for cache_px in (256, 384):
            found = measure(frames, cache_px, given.repeats)
            told = "; ".join(
                f"{name} {f['bytes'] / 1e3:.0f} kB, write {f['write']:.1f}, read {f['read']:.2f}, "
                f"view {f['view']:.1f} ms, PSNR {f['psnr']:.1f}, of views {f['psnr of views']:.1f} dB"
                for name, f in found.items()
            )
            record(
                f"decode_cache {kind}, cache_px {cache_px}",
                f"{told}; a frame of 1280 x 720 anyway: {anyway} ms ({len(frames)} frames, {given.repeats} repeats)",
                ("pillow", "numpy"),
            )


if __name__ == "__main__":
    main()
