"""One rank of tests/distributed/test_conformal_two_ranks.py, under a launcher: `conformal_rank.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from natix_hf.models.gate import gate_inputs, save_gate
from natix_hf.provenance.files import write_json
from natix_hf.recipe import parse_recipe
from natix_hf.trainers import conformal
from natix_hf.trainers.gate import gate_targets, train_gate

if __name__ == "__main__":
    rank, folder = PartialState(cpu=True).process_index, Path(sys.argv[1])
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    logits = rng.normal(size=500) + 2 * labels - 1
    features = rng.normal(size=(500, 4)).astype(np.float32)
    seen: list[list[float]] = []
    real = conformal.conformal_loss

    def watched(scores: Any, margins: Any, codes: Any, *args: float) -> Any:
        seen.append([float(codes[::2].min()), float(codes[1::2].max()), float(margins.sum())])
        return real(scores, margins, codes, *args)

    conformal.conformal_loss = watched
    section: dict[str, Any] = {"method": "conformal", "alpha": 0.05, "num_train_epochs": 3, "hidden": 8}
    section["per_device_train_batch_size"] = 80
    config = parse_recipe({"phase3": section}).phase3
    gate = train_gate(gate_inputs(features, logits, 0.0), gate_targets("conformal", logits, labels, 0.0), config)
    save_gate(folder / f"{rank}.safetensors", gate)
    write_json(folder / f"{rank}.json", seen)
    PartialState().wait_for_everyone()
