"""An optimizer step of a full fine-tune with `torch_compile: true` and without, and what compiling costs beforehand.

    python benchmarks/compile.py [--turns 9] [--steps 2] [--batch 8] [--width 384] [--layers 12] [--size 224]

Two copies of one DINOv2 classifier with random weights (by default the shape of DINOv2-S) train on the same batches
that lie ready: forward, loss, backward, AdamW (fused). One has its blocks compiled by `compile_blocks`, as the Trainer
does it. After an untimed warm-up, of which the compiled one's is the cost of compiling, they take turns of a few
steps. Both must have the same losses but for rounding. On a GPU both compute under bfloat16 autocast.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from functools import partial
from statistics import median
from typing import Any

import torch
from results import record
from timing import median_ratio, timed
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageClassification, Dinov2Config, TrainingArguments

from natix_hf.models.device import runs_on_cpu
from natix_hf.trainers.compiled import compile_blocks

_WARM_UP = 3  # steps; the first compiles
_CLOSE = 1e-2  # largest difference of a loss; bfloat16 rounds in the third digit


class Side:
    """One of the two trainings. It keeps the losses of its steps."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.losses: list[float] = []
        self._device = device
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def train(self, steps: int, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        for _ in range(steps):
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type != "cpu"):
                loss: Any = cross_entropy(self.model(pixel_values=pixels).logits, labels)
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.losses.append(float(loss))  # waits for a GPU


def compare(given: argparse.Namespace, scratch: str) -> None:
    device = torch.device("cpu" if runs_on_cpu() else "cuda")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=given.width, num_hidden_layers=given.layers, num_attention_heads=given.width // 64,
        image_size=given.size,
    )  # fmt: skip
    config.num_labels = 2
    eager: Any = AutoModelForImageClassification.from_config(config).to(device).train()
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled, TrainingArguments(scratch, torch_compile=True, use_cpu=device.type == "cpu"))
    pixels = torch.randn(given.batch, 3, given.size, given.size, device=device)
    labels = torch.arange(given.batch, device=device) % 2
    sides = {"eager": Side(eager, device), "compiled": Side(compiled, device)}
    start = {name: timed(partial(side.train, _WARM_UP, pixels, labels))[0] for name, side in sides.items()}
    print(
        f"{_WARM_UP} steps of warm-up: " + ", ".join(f"{name} {took:.1f} s" for name, took in start.items()),
        flush=True,
    )
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(given.turns):
        for name, side in sides.items():
            seconds[name].append(timed(partial(side.train, given.steps, pixels, labels))[0])
        print({name: f"{given.steps / took[-1]:.2f} steps/s" for name, took in seconds.items()}, flush=True)
    apart = max(abs(a - b) for a, b in zip(sides["eager"].losses, sides["compiled"].losses, strict=True))
    if not apart <= _CLOSE:
        raise SystemExit(f"the losses are {apart:.3g} apart: what is compiled computes something else")
    each = ", ".join(f"{name} {given.steps / median(took):.2f} steps/s" for name, took in seconds.items())
    shape = f"width {given.width}, {given.layers} blocks, {given.size} px, batch {given.batch}, {device.type}"
    record(
        f"compile, DINOv2 of {shape}",
        f"{each}: compiled is {median_ratio(seconds['eager'], seconds['compiled']):.2f} times as fast; compiling took "
        f"{start['compiled'] - start['eager']:.0f} s; losses at most {apart:.1g} apart "
        f"(medians of {given.turns} alternating turns of {given.steps} steps)",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9, help="of each side")
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch  # what an earlier run has compiled would hide the cost
        compare(given, scratch)


if __name__ == "__main__":
    main()
