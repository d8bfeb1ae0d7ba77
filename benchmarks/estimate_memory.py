"""Peak memory of an optimizer step: ours and accelerate's estimates, beside a step that really runs.

    python benchmarks/estimate_memory.py [--batch 8]

DINOv2-S of 224 px, fine-tuned in full, with LoRA, and adapted without labels by either objective, in float32 on this
machine's CPU. The truth is torch's `MemTracker` over a step with real numbers. `accelerate estimate-memory` needs a
model of the Hub; for a training with Adam it prints four times the weights (`calculate_maximum_sizes`), whatever the
batch and the adapter are.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import calculate_maximum_sizes
from gpu_day import Day, classifier, crops, loss_of, objective, pixels
from results import record

from natix_hf.estimate.shapes import step_footprint

_SHAPE = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 224}
_NAME = "DINOv2-S"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        day = Day(False, "", Path(scratch))
        day.shapes = {_NAME: _SHAPE}
        arguments = day.arguments(given.batch)
        for what, make, item in (
            ("full", partial(classifier, day, _NAME, "full"), pixels(224)),
            ("lora", partial(classifier, day, _NAME, "lora"), pixels(224)),
            ("mae", partial(objective, day, _NAME, "mae"), crops(224, "mae")),
            ("dinov2", partial(objective, day, _NAME, "dinov2"), crops(224, "dinov2")),
        ):
            ours = step_footprint(make, item, loss_of, arguments, None).peak
            real = step_footprint(make, item, loss_of, arguments, None, with_values=True).peak
            peer = 4 * calculate_maximum_sizes(make())[0]
            rows.append(f"{what}: {real / 1e9:.3f} GB, ours {ours / real:.3f} and accelerate {peer / real:.3f} of it")
            print(rows[-1], flush=True)
    record(f"estimate_memory.py --batch {given.batch}", f"{_NAME}, " + "; ".join(rows), ["torch", "accelerate"])


if __name__ == "__main__":
    main()
