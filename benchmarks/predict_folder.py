"""A table of answers to many small files: killed three times and continued, its memory, its speed.

    python benchmarks/predict_folder.py [--files 100000] [--turns 10] [--seed 0]

The files are JPEG pictures of 32 px in folders of 1,000; a ViT of 32 px from a config answers them. Three things:

- `natix-hf predict FOLDER --out t.csv` is killed three times by SIGKILL at random moments and continued. Each file
  must stand in the table once, and the table must be that of a call that nobody disturbed, byte for byte.
- The resident memory of the undisturbed call when a quarter is answered, and the most after that.
- The time of `answer_all` beside that of the bare loop, `for answer in bundle.stream(paths)` with nothing written,
  over the same folders, by turns; medians of the ratios of neighbours in time. Finding and sorting the files
  counts for the table and not for the loop.

It fails if a file is missing or twice, if the tables differ, if the memory grows by more than 10% and 64 MiB, or if
the table has less than 0.95 of the speed of the loop.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from results import record

from natix_hf.bulk.answer_all import answer_all
from natix_hf.bundle.build import build_bundle
from natix_hf.bundle.inference import ImageList, Inference
from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.policy import Policy
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.results.answers import save_candidate

A_FOLDER, PX, KILLS, MIB = 1000, 32, 3, 2**20
LEAST_SPEED, MOST_GROWTH = 0.95, 0.10
TINY: dict[str, Any] = {
    "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "patch_size": 8, "image_size": PX,
}  # fmt: skip


def make_files(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(200):
        buffer = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        coarse.resize((PX, PX), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        contents.append(buffer.getvalue())
    places = []
    for number in range(count):
        place = folder / f"{number // A_FOLDER:04}"
        if number % A_FOLDER == 0:
            place.mkdir(parents=True)
            places.append(place)
        (place / f"{number:07}.jpg").write_bytes(contents[number % 200] + number.to_bytes(4, "big"))
    return places


def make_bundle(folder: Path, files: list[Path]) -> Path:
    config = ModelConfig(config=TINY, image_size=PX)
    candidate = save_candidate(folder / "candidate", build_classifier(config, seed=0), make_processor(config))
    plain = Inference(candidate.model, "cpu")
    z = plain.logits(ImageList(files, plain.preprocess))
    policy = Policy(threshold_logit=float(np.median(z)), candidate_sha256=candidate.sha256, model_sha256="")
    build_bundle(
        folder / "bundle", candidate.model, policy, evaluation={"rows": 0}, card="# card\n", model_card=None, plots=[],
        lineage={}, images=files, expected_logits=z, onnx=False,
    )  # fmt: skip
    return folder / "bundle"


def answered(parts: Path) -> int:
    """The pictures whose answers are kept, by the names of the parts."""
    found = [path.name.split("-") for path in parts.glob("part-*")] if parts.is_dir() else []
    return sum(int(stop) - int(start) for _, _, start, stop in found)


def start(bundle: Path, files: Path, table: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "natix_hf", "--quiet", "predict", str(bundle), str(files), "--out", str(table)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL)


def undisturbed(bundle: Path, files: Path, table: Path, count: int) -> tuple[float, float, float]:
    """MiB when a quarter was answered, the most after that, and the seconds from the first part to the end."""
    process, quarter, most, first = start(bundle, files, table), 0.0, 0.0, 0.0
    parts = table.with_name(f"{table.name}.parts")
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        done, rss = answered(parts), watched.memory_info().rss / MIB
        first = first or (time.perf_counter() if done else 0.0)
        if done >= count / 4:
            quarter, most = quarter or rss, max(most, rss)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"the undisturbed call ended with {process.returncode}")
    return quarter, most, time.perf_counter() - first


def at_work(parts: Path, pid: int) -> bool:
    try:
        return any(f'"pid": {pid},' in mark.read_text(encoding="utf-8") for mark in parts.glob("owner/*.json"))
    except OSError:  # a mark that was just removed
        return False


def killed(bundle: Path, files: Path, table: Path, draw: random.Random, seconds: float) -> list[int]:
    """Kill and continue. Returns how many answers were kept at each kill."""
    parts, kept = table.with_name(f"{table.name}.parts"), []
    for _ in range(KILLS):
        process = start(bundle, files, table)
        while process.poll() is None and not at_work(parts, process.pid):
            time.sleep(0.05)  # it is still starting
        time.sleep(draw.uniform(0.2, 1.0) * seconds / (KILLS + 1))
        if process.poll() is not None:
            raise SystemExit("the call ended before it could be killed: take more --files")
        process.kill()
        process.wait()
        kept.append(answered(parts))
    if start(bundle, files, table).wait():
        raise SystemExit("the continued call failed")
    return kept


def ratios(bundle: Path, places: list[Path], scratch: Path, turns: int) -> list[float]:
    """The time of the bare loop over that of the table, turn by turn, each over other folders."""
    loaded = load_bundle(bundle, device="cpu", backend="torch")
    a_turn, found = max(1, len(places) // turns), []
    for turn in range(turns):
        folders = places[turn * a_turn : (turn + 1) * a_turn]
        paths = sorted(path for place in folders for path in place.iterdir())
        times = {}
        for side in ("bare", "table") if turn % 2 else ("table", "bare"):
            begin = time.perf_counter()
            if side == "bare":
                for _ in loaded.stream(paths):
                    pass
            else:
                answer_all(loaded, folders, scratch / f"turn{turn}.csv", tell=lambda line: None)
            times[side] = time.perf_counter() - begin
        found.append(times["bare"] / times["table"])
        print(f"turn {turn}: {len(paths)} files, bare {times['bare']:.2f} s, table {times['table']:.2f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        files = scratch / "files"
        places = make_files(files, given.files)
        bundle = make_bundle(scratch, sorted(places[0].iterdir())[:32])
        speeds = ratios(bundle, places, scratch, given.turns)
        quarter, most, seconds = undisturbed(bundle, files, scratch / "whole.csv", given.files)
        kept = killed(bundle, files, scratch / "killed.csv", random.Random(given.seed), seconds)
        whole, other = (scratch / f"{name}.csv" for name in ("whole", "killed"))
        with other.open(encoding="utf-8", newline="") as handle:
            names = [row["image"] for row in csv.DictReader(handle)]
        every = sorted(path.relative_to(files).as_posix() for path in files.rglob("*.jpg"))
        once, equal = sorted(names) == every, whole.read_bytes() == other.read_bytes()
    speed = median(speeds)
    outcome = (
        f"{given.files:,} files: killed at {', '.join(f'{n:,}' for n in kept)} answers and continued, every file "
        f"{'once' if once else 'NOT once'}, {'the same bytes' if equal else 'OTHER BYTES'}; memory {quarter:.0f} MiB "
        f"at a quarter, {most:.0f} MiB at most after it; speed {speed:.3f} of the bare loop ({min(speeds):.3f} to "
        f"{max(speeds):.3f}), {given.files / seconds:,.0f} files/s"
    )
    (print if given.no_record else lambda text: record("predict_folder", text))(outcome)
    grown = most - quarter
    if not (once and equal) or speed < LEAST_SPEED or (grown > 64 and grown > MOST_GROWTH * quarter):
        raise SystemExit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
