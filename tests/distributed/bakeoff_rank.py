"""One rank of tests/distributed/test_bakeoff_two_ranks.py: ranks that measure different figures, under a launcher.

`bakeoff_rank.py FOLDER`: every rank stores what it decided and what it trained; rank 0 alone finds old figures.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState

from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.provenance.files import write_json
from natix_hf.recipe import parse_recipe
from natix_hf.trainers.bakeoff import bake_off

WIDE: dict[str, Any] = {
    "model_type": "dinov2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14
}  # fmt: skip
SCORES = [
    {"lora": 0.4, "dora": 0.3, "adalora": 0.2, "lokr": 0.1},
    {"lora": 0.1, "dora": 0.2, "adalora": 0.3, "lokr": 0.4},
]

if __name__ == "__main__":
    state = PartialState(cpu=True)
    rank, folder = state.process_index, Path(sys.argv[1])
    trained: list[str] = []

    def trial(name: str, options: dict[str, Any], training: dict[str, Any]) -> float:
        trained.append(name)
        return SCORES[rank][name]

    config = parse_recipe({"phase1": {"adapter": "auto"}}).phase1
    model = build_classifier(ModelConfig(config=WIDE, image_size=28), seed=0)
    # A disk of its own for each: what rank 0 has finished counts for all.
    chosen, facts = bake_off(model, config, 80, trial, folder / f"disk-{rank}")
    write_json(folder / f"rank-{rank}.json", facts | {"chosen": chosen.adapter, "trained": trained})
    state.wait_for_everyone()
    state.destroy_process_group()
