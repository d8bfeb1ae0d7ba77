"""Speed and memory of a bundle's answers, by PyTorch and by ONNX: against the bare forward pass, and the pipeline.

    python benchmarks/inference.py [--turns 15] [--bf16]

A DINOv2-S at 224 px with random weights becomes a bundle with a `model.onnx`. Each side is asked the same JPEG files
of 224 px, one a call and in batches of 8 and 32, by turns; medians, and medians of the ratios of neighbours in time.
`bare` is the stock model's `model(pixel_values)` in inference mode with the pixels ready: no file to read, no answer.
`products` are the matrix products of that pass and nothing else, by PyTorch: to be exact and faster than they are
takes faster products. Everything else, transformers' pipeline too, begins with the file's name. Peak memory is that of
a process of its own which has loaded one side and answered in batches of 32. It fails where PyTorch takes more than
5 % over the bare pass, or ONNX is not 1.7 times faster than the pipeline though the products leave room for it.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from results import record
from timing import median_ratio

MOST_OVER_BARE, LEAST_FASTER = 1.05, 1.7
SIZES = {1: 4, 8: 1, 32: 0.5}  # images a call, and how many calls a turn
SIDES = ("products", "bare", "torch", "onnx", "pipeline")
# As Meta's: 37 x 37 positions.
SMALL: dict[str, Any] = {
    "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14,
    "image_size": 518,
}  # fmt: skip
Ask = Callable[[list[str]], Any]


def make(folder: Path) -> tuple[Path, list[str]]:
    """A bundle, and 32 files to ask it."""
    from natix_hf.bundle.build import build_bundle
    from natix_hf.bundle.inference import ImageList, Inference
    from natix_hf.bundle.policy import Policy
    from natix_hf.models.classifier import build_classifier
    from natix_hf.models.config import ModelConfig
    from natix_hf.models.preprocess import make_processor
    from natix_hf.results.answers import save_candidate

    config = ModelConfig(config=SMALL, image_size=224)
    candidate = save_candidate(folder / "candidate", build_classifier(config, seed=0), make_processor(config))
    rng = np.random.default_rng(0)
    files = [folder / f"{n:02}.jpg" for n in range(max(SIZES))]
    for path in files:
        coarse = Image.fromarray(rng.integers(0, 255, (14, 14, 3), dtype=np.uint8))
        coarse.resize((224, 224), Image.Resampling.BICUBIC).save(path, quality=75)
    plain = Inference(candidate.model, "cpu")
    z = plain.logits(ImageList(files, plain.preprocess))
    build_bundle(
        folder / "bundle",
        candidate.model,
        Policy(threshold_logit=float(z.max()) + 0.1, candidate_sha256=candidate.sha256, model_sha256=""),
        evaluation={"rows": 0},
        card="# card\n",
        model_card=None,
        plots=[],
        lineage={},
        images=files,
        expected_logits=z,
        onnx=True,
    )
    return folder / "bundle", [str(path) for path in files]


def side(name: str, bundle: Path, files: list[str]) -> Ask:
    """What answers a list of files; `bare` has their pixels already."""
    if name == "pipeline":
        from transformers import pipeline

        classify = pipeline("image-classification", model=str(bundle), device="cpu")
        return lambda paths: classify(paths, batch_size=len(paths))
    if name == "products":
        asks = {size: products(size) for size in SIZES}
        return lambda paths: asks[len(paths)]()
    from transformers import AutoModelForImageClassification

    from natix_hf.bundle.load import load_bundle

    if name == "bf16":
        loaded = load_bundle(bundle, device="cpu", precision="bfloat16")
    else:
        loaded = load_bundle(bundle, device="cpu", backend="onnx" if name == "onnx" else "torch")
    if name != "bare":
        return lambda paths: loaded.predict(paths, batch_size=len(paths))
    model = AutoModelForImageClassification.from_pretrained(bundle)
    ready = torch.stack([loaded.preprocess(Image.open(path)) for path in files])
    pixels = {size: ready[:size].clone() for size in SIZES}

    def ask(paths: list[str]) -> Any:
        with torch.inference_mode():
            return model(pixel_values=pixels[len(paths)]).logits

    return ask


def products(size: int) -> Callable[[], None]:
    """The matrix products of one pass: of each block query, key, value and output, attention's two, the MLP's two."""
    width, heads, tokens = SMALL["hidden_size"], SMALL["num_attention_heads"], (224 // SMALL["patch_size"]) ** 2 + 1
    x, hidden = torch.rand(size * tokens, width), torch.rand(size * tokens, 4 * width)
    square, up, down = torch.rand(width, width), torch.rand(width, 4 * width), torch.rand(4 * width, width)
    one = torch.rand(size * heads, tokens, width // heads)

    def ask() -> None:
        with torch.inference_mode():
            for _ in range(SMALL["num_hidden_layers"]):
                for _ in range(4):
                    torch.mm(x, square)
                torch.bmm(torch.bmm(one, one.transpose(1, 2)), one)
                torch.mm(x, up)
                torch.mm(hidden, down)

    return ask


def peak(name: str, bundle: Path) -> float:
    """MiB of a process that has loaded one side and answered."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak-of", name, "--bundle", str(bundle)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def peak_of_this_process() -> float:
    """MiB, of Linux alone. `getrusage` would tell the parent's, whose peak a child inherits."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) / 1024


def compare(sides: dict[str, Ask], files: list[str], size: int, turns: int) -> dict[str, list[float]]:
    """Seconds an image."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    asked = files[:size]
    for ask in sides.values():
        ask(asked)
    for turn in range(math.ceil(turns * SIZES[size])):
        for name in [*sides] if turn % 2 else reversed([*sides]):
            begin = time.perf_counter()
            sides[name](asked)
            times[name].append((time.perf_counter() - begin) / size)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 too, which is not exact")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak_of:
        files = [str(path) for path in sorted(given.bundle.parent.glob("*.jpg"))]
        ask = side(given.peak_of, given.bundle, files)
        for _ in range(3):
            ask(files)
        print(peak_of_this_process())
        return
    names = [*SIDES, *(["bf16"] if given.bf16 else [])]
    with tempfile.TemporaryDirectory() as scratch:
        bundle, files = make(Path(scratch))
        sides = {name: side(name, bundle, files) for name in names}
        times = {size: compare(sides, files, size, given.turns) for size in SIZES}
        memory = {name: peak(name, bundle) for name in names if name != "products"}
        from natix_hf.bundle.policy import read_policy

        onnx = read_policy(bundle / "policy.json").onnx
        assert onnx is not None, "the bundle was made with one"
        difference = onnx.max_difference
    told, failed = [], []
    for size, found in times.items():
        over = median_ratio(found["torch"], found["bare"])
        faster = median_ratio(found["pipeline"], found["onnx"])
        peer = median_ratio(found["pipeline"], found["bare"])
        room = median_ratio(found["pipeline"], found["products"])
        each = ", ".join(f"{name} {1000 * median(found[name]):.1f}" for name in names)
        told.append(
            f"batch {size}: ms an image {each}; torch {over:.3f} of bare (pipeline {peer:.3f}), "
            f"onnx {faster:.2f} times the pipeline's speed, of which the products alone leave {room:.2f}"
        )
        if over > MOST_OVER_BARE:
            failed.append(f"batch {size}: torch takes {over:.3f} of the bare pass")
        if faster < LEAST_FASTER <= room:
            failed.append(f"batch {size}: onnx is {faster:.2f} times faster than the pipeline")
    mib = ", ".join(f"{name} {value:.0f}" for name, value in memory.items())
    outcome = "; ".join([*told, f"peak MiB {mib}; logits of onnx and torch differ by {difference:.0e} at most"])
    record("inference", outcome, ("torch", "transformers", "onnxruntime"))
    if failed:
        raise SystemExit("; ".join(failed))


if __name__ == "__main__":
    main()
