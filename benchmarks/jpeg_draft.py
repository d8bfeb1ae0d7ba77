"""Reading a full-size JPEG that will be shrunk: `open_image(file, at_least=…)` beside the full decoding.

    python benchmarks/jpeg_draft.py [--rounds 30]

A 1920 x 1080 JPEG (quality 90, 4:2:0) with the detail of a photograph, shrunk to a short side of 384 and of 224 px;
medians of alternating rounds, and the mean difference of the pixels.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from PIL import Image
from results import record

from natix_hf.data.images import open_image, shrink


def photograph() -> bytes:
    """Detail at every scale, as photographs have it: noise of 6 to 1080 rows, each enlarged."""
    rng = np.random.default_rng(0)
    total = np.full((1080, 1920, 3), 128.0)
    for divisor in (180, 60, 20, 8, 4, 2, 1):
        noise = rng.normal(0, 6 + divisor / 8, (1080 // divisor, 1920 // divisor, 3)).clip(-127, 127)
        layer = Image.fromarray((noise + 128).astype(np.uint8)).resize((1920, 1080), Image.Resampling.BICUBIC)
        total += np.asarray(layer) - 128.0
    buffer = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def milliseconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    content = photograph()
    outcomes = []
    for side in (384, 224):

        def full(side: int = side) -> Image.Image:
            return shrink(open_image(content), side)

        def draft(side: int = side) -> Image.Image:
            return shrink(open_image(content, at_least=side), side)

        times = [(milliseconds(full), milliseconds(draft)) for _ in range(rounds)]
        whole, small = (median(column) for column in zip(*times, strict=True))
        apart = np.abs(np.asarray(full(), dtype=float) - np.asarray(draft(), dtype=float)).mean()
        outcomes.append(
            f"to {side} px {whole:.1f} ms in full, {small:.1f} ms with at_least={side}: {whole / small:.1f} times "
            f"faster, pixels {apart:.2f} apart on average"
        )
    record(
        "jpeg_draft",
        f"a 1920 x 1080 JPEG of {len(content) / 1000:.0f} kB: {'; '.join(outcomes)}; medians of {rounds}",
        ("pillow", "numpy"),
    )


if __name__ == "__main__":
    main()
