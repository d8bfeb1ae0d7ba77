"""Planted near-duplicates of real photographs: how many are found, at how many false alarms, beside other libraries.

    pip install imagehash imagededup        # the peers; without one its rows are left out
    python benchmarks/near_duplicates.py [--rows 100000]

The rows of each folder of ../shared/data get copies: 400 re-encoded as JPEG (quality 30 to 80), 400 resized (0.9 or
1.1), 400 brightened (1.1 to 1.3), 400 with all three. All rows and copies are joined into groups at once. *Found*: the
copy is in the group of its original. *False alarm*: an original row whose group, after joining transitively, holds a
picture of another track (traffic signs; frames of one track are true near-duplicates) or of another row (clothes). The
limits of ours were chosen on these photographs. A peer's hashes are joined in the same way, with the fewest bits that
find 95% of the copies, and with the most bits below 1% false alarms.

The cost is that of `thumbprint` beside reading, shrinking and digesting a JPEG, and that of joining so many rows, of
which a tenth are noisy copies; memory is the peak that numpy and Python allocate, at half as many rows too.
"""

from __future__ import annotations

import argparse
import io
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measure import MIB
from PIL import Image, ImageEnhance
from results import record
from timing import median_ratio

from natix_hf.data.images import open_image, pixel_sha256, shrink
from natix_hf.data.near_duplicates import near_duplicate_groups, perceptual_hashes, thumbprint

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
EACH, ROUNDS = 400, 15
Copy = Callable[[Image.Image, np.random.Generator], Image.Image]


def encoded(image: Image.Image, quality: int) -> bytes:
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=quality)
    return jpeg.getvalue()


def reencoded(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    return open_image(encoded(image, int(dice.integers(30, 81))))


def resized(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    scale = dice.choice([0.9, 1.1])
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def brightened(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(dice.uniform(1.1, 1.3))


def all_three(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    return reencoded(resized(brightened(image, dice), dice), dice)


COPIES: dict[str, Copy] = {
    "re-encoded": reencoded,
    "resized": resized,
    "brightened": brightened,
    "all three": all_three,
}


def photographs(name: str) -> tuple[list[Image.Image], np.ndarray]:
    """All pictures of a shared folder, and the number of the track or row of each."""
    import pyarrow.parquet as pq

    pictures: list[Image.Image] = []
    tracks: list[str] = []
    for file in sorted((SHARED / name / "data").glob("*.parquet")):
        table = pq.read_table(file)
        column = "video_info.vid_id" if "video_info.vid_id" in table.column_names else "id"
        pictures += [open_image(cell) for cell in table["image"].to_pylist()]
        tracks += [f"{file.name} {track}" for track in table[column].to_pylist()]
    return pictures, np.unique(tracks, return_inverse=True)[1]


def outcome(groups: np.ndarray, tracks: np.ndarray, of: np.ndarray) -> tuple[dict[str, float], float]:
    """Share of each kind of copies that is found, and of originals that are joined with another track."""
    originals = len(tracks)
    found = (groups[originals:] == groups[of]).reshape(len(COPIES), EACH).mean(axis=1)
    held = np.unique(np.stack([groups, np.r_[tracks, tracks[of]]], axis=1), axis=0)[:, 0]
    mixed = np.bincount(held, minlength=groups.max() + 1) > 1
    return dict(zip(COPIES, found.tolist(), strict=True)), float(mixed[groups[:originals]].mean())


def told(found: dict[str, float], alarms: float) -> str:
    kinds = ", ".join(f"{kind} {share:.3f}" for kind, share in found.items())
    return f"{np.mean(list(found.values())):.3f} of the copies found ({kinds}) at {alarms:.2%} false alarms"


def peers() -> dict[str, Callable[[Image.Image], int]]:
    hashers: dict[str, Callable[[Image.Image], int]] = {}
    if find_spec("imagehash"):
        import imagehash  # type: ignore[import-not-found]

        hashers["imagehash"] = lambda picture: int(str(imagehash.phash(picture)), 16)
    if find_spec("imagededup"):
        from imagededup.methods import PHash  # type: ignore[import-not-found]

        theirs: Any = PHash(verbose=False)
        hashers["imagededup"] = lambda picture: int(theirs.encode_image(image_array=np.asarray(picture)), 16)
    for missing in {"imagehash", "imagededup"} - hashers.keys():
        print(f"{missing} is not installed: no comparison with it (pip install {missing})")
    return hashers


def quality(name: str) -> None:
    pictures, tracks = photographs(name)
    dice = np.random.default_rng(0)
    of = np.concatenate([dice.choice(len(pictures), EACH, replace=False) for _ in COPIES])
    made = [copy for copy in COPIES.values() for _ in range(EACH)]
    pictures += [copy(pictures[row], dice) for row, copy in zip(of, made, strict=True)]
    thumbs = np.frombuffer(b"".join(map(thumbprint, pictures)), dtype=np.uint8).reshape(-1, 256)
    ours = outcome(near_duplicate_groups(perceptual_hashes(thumbs), thumbs), tracks, of)
    record(f"near_duplicates {name}", told(*ours), packages=("numpy", "pillow"))
    for peer, hasher in peers().items():
        begin = time.perf_counter()
        hashes = np.array([hasher(picture) for picture in pictures], dtype=np.uint64).view(np.int64)
        cost = (time.perf_counter() - begin) / len(pictures)
        by_bits = [outcome(near_duplicate_groups(hashes, bits=bits), tracks, of) for bits in range(0, 13, 2)]
        enough = next((seen for seen in by_bits if np.mean(list(seen[0].values())) >= 0.95), by_bits[-1])
        few = [seen for seen in by_bits if seen[1] < 0.01] or by_bits[:1]
        record(
            f"near_duplicates {name}, {peer} {version(peer)} phash",
            f"{told(*enough)}, {enough[1] / max(ours[1], 1 / len(tracks)):.0f} times ours; or {told(*few[-1])}; "
            f"{cost * 1000:.2f} ms a picture",
            packages=("numpy", "pillow"),
        )


def cost_of_prints() -> None:
    scene = photographs("gtsrb_roadwork")[0][-1]
    for width, height in ((640, 480), (1920, 1080)):
        picture = scene.resize((width, height), Image.Resampling.BICUBIC)
        noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
        data = encoded(Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)), 85)
        decode, prints = [], []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            image = open_image(data)
            pixel_sha256(image)
            copy = shrink(image, 256)
            middle = time.perf_counter()
            thumbprint(copy)
            decode.append(middle - begin)
            prints.append(time.perf_counter() - middle)
        record(
            f"near_duplicates cost of a print, {width} x {height} JPEG",
            f"decode {median(decode) * 1000:.2f} ms, thumbprint {median(prints) * 1000:.3f} ms: "
            f"{median_ratio(prints, decode):.4f} of it",
            packages=("numpy", "pillow"),
        )


def cost_of_joining(rows: int) -> tuple[float, float, float]:
    """Seconds, peak MiB, and the share of planted copies that are found."""
    dice = np.random.default_rng(0)
    coarse = dice.normal(0, 40, (rows * 9 // 10, 8, 8)).astype(np.float32)
    levels = np.clip(np.kron(coarse, np.ones((1, 2, 2), np.float32)) + 128, 0, 255).reshape(len(coarse), 256)
    of = dice.integers(0, len(levels), rows - len(levels))
    copies = np.clip(levels[of] * 1.15 + dice.normal(0, 3, (len(of), 256)), 0, 255)
    thumbs = np.concatenate([levels, copies]).astype(np.uint8)
    del coarse, levels, copies
    tracemalloc.start()
    begin = time.perf_counter()
    groups = near_duplicate_groups(perceptual_hashes(thumbs), thumbs)
    seconds = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1] / MIB
    tracemalloc.stop()
    return seconds, peak, float((groups[rows * 9 // 10 :] == groups[of]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows that are joined for the cost")
    rows = parser.parse_args().rows
    quality("gtsrb_roadwork")
    quality("fashion_shirt")
    cost_of_prints()
    half, whole = cost_of_joining(rows // 2), cost_of_joining(rows)
    record(
        f"near_duplicates cost of joining {rows:,} rows",
        f"{whole[0]:.1f} s, {whole[0] / rows * 1000:.3f} ms a row, peak {whole[1]:.0f} MiB ({half[0]:.1f} s and "
        f"{half[1]:.0f} MiB for half as many); {whole[2]:.3f} of the copies found",
        packages=("numpy", "scipy"),
    )


if __name__ == "__main__":
    main()
