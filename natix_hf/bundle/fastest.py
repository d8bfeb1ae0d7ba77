"""Which backend of several is the fastest here: measured, with a few forward passes of each."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from natix_hf.bundle.backends import Backend, Precision
from natix_hf.bundle.inference import Inference
from natix_hf.errors import NatixError

# The most that two exact backends may differ by in a logit, as at the export of a `model.onnx`.
TOLERANCE = 1e-4
# Compiling takes about a minute, and saves about a third of the work that comes after it.
WORK_THAT_PAYS_S = 300.0
_TURNS = 3


def fastest(
    folder: Path,
    device: str | None,
    candidates: Sequence[Backend],
    precision: Precision,
    expected_images: int | None = None,
) -> Inference:
    """Load the backends that may answer, and return the fastest.

    Args:
        candidates: One or more. With one, nothing is measured. "compile" is tried only if the fastest of the others
            would need five minutes for the images that are expected.
        expected_images: The number of images that will come. None, or one: they come one at a time.
    """
    if len(candidates) == 1:
        return Inference(folder, device, candidates[0], precision)
    batch = 1 if expected_images is None else min(8, expected_images)
    # What the bundle's own weights answer in PyTorch is what the others are held against. Compiling comes last.
    quick = sorted(candidates, key=lambda name: (name == "compile", name != "torch"))
    best, seconds, first, reference = None, np.inf, "", None
    for name in quick:
        if name == "compile" and best is not None and seconds / batch * (expected_images or 1) < WORK_THAT_PAYS_S:
            continue
        try:
            found = Inference(folder, device, name, precision)
        except NatixError as error:
            if name == quick[-1] and best is None:
                raise
            warnings.warn(f"backend {name} is left out: {error}", stacklevel=4)
            continue
        taken, answers = _measure(found, batch)
        if precision == "float32" and reference is not None:
            difference = float(np.abs(answers - reference).max())
            if not difference <= TOLERANCE:
                told = f"{first} and {name} differ by {difference:.1e} in a logit"
                warnings.warn(f"backend {name} is left out: {told}; natix-hf verify tells more", stacklevel=4)
                continue
        if reference is None:
            first, reference = name, answers
        if taken < seconds:
            best, seconds = found, taken
    assert best is not None, "the last candidate raises if none could be had"
    return best


def _measure(inference: Inference, batch: int) -> tuple[float, np.ndarray]:
    """Seconds of a forward pass, the least of a few, and the logits of a batch of noise."""
    size = inference.preprocess.image_size
    noise = np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype(np.float32)
    answers, times = inference.answer(noise)[0], []
    for _ in range(_TURNS):
        begin = time.perf_counter()
        inference.answer(noise)
        times.append(time.perf_counter() - begin)
    return min(times), answers
