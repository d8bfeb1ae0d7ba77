"""`adapter: auto` on two gloo ranks: they decide as one, and train the same winner."""

from __future__ import annotations

from pathlib import Path

import bakeoff_rank
import pytest
from ranks import launch

from natix_hf.models.adapters import ADAPTERS
from natix_hf.provenance.files import read_json
from natix_hf.resources import resource_folder
from natix_hf.runs.verify import run_problems

pytestmark = pytest.mark.xdist_group("ranks")  # which are forked from one process


def test_two_ranks_decide_as_one(tmp_path: Path) -> None:
    """By the figures of rank 0, its stored ones too, though each measured others and has a folder of its own."""
    script = Path(bakeoff_rank.__file__)
    for attempt in ("first", "continued"):
        done = launch("cpu_2proc.yaml", script, tmp_path, str(tmp_path))
        assert done.returncode == 0, done.stderr[-3000:]
        one, other = (read_json(tmp_path / f"rank-{rank}.json") for rank in (0, 1))
        assert one == other and one["chosen"] == one["adapter"] == "lora"
        assert [row["adapter"] for row in one["bakeoff"] if row["kept"]] == ["lora", "dora", "lora"]
        again = ["adalora", "dora"] if attempt == "continued" else [*bakeoff_rank.SCORES[0], "lora", "dora"]
        assert sorted(one["trained"]) == sorted(again)
        assert not (tmp_path / "disk-1").exists(), "rank 0 alone writes"
        for name in ("1-adalora", "2-dora"):
            (tmp_path / "disk-0" / f"{name}.json").unlink()


def test_two_ranks_train_the_winner(tiny_recipe_file: Path, tmp_path: Path) -> None:
    """Every rank trains in every trial; with another adapter on each their gradients would not meet."""
    run, script = tmp_path / "run", resource_folder("recipes") / "phase1.py"
    settings = ["phase1.adapter=auto", "phase1.num_train_epochs=1", "phase1.per_device_train_batch_size=8"]
    settings += ["--recipe", str(tiny_recipe_file), "--run-dir", str(run)]
    done = launch("cpu_2proc.yaml", script, tmp_path, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("phase1.adapter=auto takes ") == 1, "rank 0 alone speaks"
    metrics = read_json(run / "phase1_baseline" / "manifest.json")["metrics"]
    assert metrics["world_size"] == 2 and metrics["merge"]["max_difference"] <= 1e-4
    assert {row["round"] for row in metrics["bakeoff"]} == {0, 1, 2} and metrics["adapter"] in ADAPTERS
    assert run_problems(run) == []
