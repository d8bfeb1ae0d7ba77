"""Verifying a bundle against one plain sha256 pass over its files.

    python benchmarks/load_verify.py [--rounds 5]

A bundle of DINOv2-base (about 350 MB, from a config). The two alternate in rounds, after a first pass that warms the
file cache; medians. Memory is the most that Python allocates meanwhile. It fails where verifying takes 1.5 times the
plain pass, or more memory than 16 MB.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from results import record
from timing import median_ratio

from natix_hf.bundle.build import build_bundle
from natix_hf.bundle.contents import bundle_problems
from natix_hf.bundle.policy import Policy
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.provenance.files import list_files
from natix_hf.results.answers import save_candidate

MOST, MOST_MB = 1.5, 16.0


def make(folder: Path) -> Path:
    config = ModelConfig(config={"model_type": "dinov2", "patch_size": 14}, image_size=224)
    candidate = save_candidate(folder / "candidate", build_classifier(config, seed=0), make_processor(config))
    build_bundle(
        folder / "bundle",
        candidate.model,
        Policy(threshold_logit=0.3, candidate_sha256=candidate.sha256, model_sha256=""),
        evaluation={"rows": 0},
        card="# card\n",
        model_card=None,
        plots=[],
        lineage={},
        images=[],
        expected_logits=np.zeros(0),
    )
    return folder / "bundle"


def plain(bundle: Path) -> None:
    for name in list_files(bundle):
        with (bundle / name).open("rb") as file:
            hashlib.file_digest(file, "sha256").hexdigest()


def verify(bundle: Path) -> None:
    problems = bundle_problems(bundle)
    if problems:
        raise SystemExit(problems[0])


def timed(function: Callable[[Path], Any], bundle: Path) -> float:
    begin = time.perf_counter()
    function(bundle)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        bundle = make(Path(scratch))
        size = sum((bundle / name).stat().st_size for name in list_files(bundle)) / 1e6
        plain(bundle)
        times: dict[str, list[float]] = {"plain": [], "verify": []}
        for _ in range(rounds):
            times["plain"].append(timed(plain, bundle))
            times["verify"].append(timed(verify, bundle))
        tracemalloc.start()
        verify(bundle)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    ratio = median_ratio(times["verify"], times["plain"])
    record(
        "load_verify",
        f"{size:.0f} MB verified in {median(times['verify']):.2f} s, a plain sha256 pass takes "
        f"{median(times['plain']):.2f} s: {ratio:.2f} times; peak of Python's memory {peak:.1f} MB",
    )
    if ratio >= MOST or peak > MOST_MB:
        raise SystemExit(f"verifying takes {ratio:.2f} plain passes and {peak:.1f} MB")


if __name__ == "__main__":
    main()
