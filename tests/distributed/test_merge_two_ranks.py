"""`MergeValidationCallback()` on two gloo ranks: one writes, both end with the merged model or with the error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import merge_rank
import pytest
import torch
from facts import tells
from ranks import launch
from safetensors.torch import load_file

pytestmark = pytest.mark.xdist_group("ranks")  # which are forked from one process


def _ranks(folder: Path, written: str) -> list[dict[str, Any]]:
    done = launch("cpu_2proc.yaml", Path(merge_rank.__file__), folder, str(folder), written)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((folder / f"rank_{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert [rank["world_size"] for rank in found] == [2, 2]
    return found


def test_both_ranks_go_on_with_the_merged_model(tmp_path: Path) -> None:
    first, second = _ranks(tmp_path, "sound")
    assert first["model"] == second["model"] == "ViTForImageClassification"
    assert first["proof"] == second["proof"] and first["proof"]["adapter_effect"] > 1e-3
    assert first["loss"] == second["loss"]
    assert first["again"] == second["again"] and tells(first["again"], "ViTForImageClassification", "new Trainer")
    models = [load_file(tmp_path / f"rank_{rank}.safetensors") for rank in range(2)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert {path.name for path in (tmp_path / "again").iterdir()} >= {"config.json", "model.safetensors"}
    assert not list(tmp_path.glob("*/adapter_*"))


def test_both_ranks_are_told_of_a_refusal(tmp_path: Path) -> None:
    first, second = _ranks(tmp_path, "spoilt")
    assert first["model"] == second["model"] == "PeftModel"
    assert first["error"] == second["error"] and tells(first["error"], "classifier.bias", tmp_path / "merged")
