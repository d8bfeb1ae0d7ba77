"""Two gloo ranks, here and there through `accelerate launch`: that there are two, write one run, and wait."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_RECIPE, write_parquet_source, write_recipe
from facts import tells
from ranks import accelerate_launch, launch

from natix_hf.pipeline import run_recipe
from natix_hf.resources import resource_folder
from natix_hf.results.candidate import Candidate
from natix_hf.results.out_of_fold import read_out_of_fold
from natix_hf.runs.verify import run_problems

pytestmark = pytest.mark.xdist_group("ranks")  # which are forked from one process
SETTINGS = ["phase1.num_train_epochs=1", "phase1.per_device_train_batch_size=8"]


def launch_phase(how: Any, config: str, number: int, recipe: Path, folder: Path, *arguments: str) -> Any:
    script = resource_folder("recipes") / f"phase{number}.py"
    return how(config, script, folder, "--recipe", str(recipe), *arguments)


def test_two_ranks_train_and_one_does_the_rest(tiny_recipe_file: Path, tmp_path: Path) -> None:
    """tests/invariant compares what they train with what one rank trains."""
    run = tmp_path / "run"
    for number in (1, 2, 6):
        settings = [*SETTINGS, "--run-dir", str(run)]
        done = launch_phase(launch, "cpu_2proc.yaml", number, tiny_recipe_file, tmp_path, *settings)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("device ") == 1, "rank 0 alone speaks"
    assert json.loads((run / "phase1_baseline" / "manifest.json").read_text())["metrics"]["world_size"] == 2
    assert run_problems(run) == []


def test_two_ranks_train_folds_and_seeds_as_one_does(tmp_path: Path) -> None:
    """At a small learning rate, and one rank with the double batch, as in tests/invariant."""
    source = write_parquet_source(tmp_path / "source", groups=40, frames=2, seed=3)
    data = {**TINY_RECIPE["data"], "source": str(source), "exam": True}
    recipe = write_recipe(tmp_path / "folds.yaml", TINY_RECIPE | {"data": data})
    found = {}
    for config, batch, world in (("cpu.yaml", 16, 1), ("cpu_2proc.yaml", 8, 2)):
        run = tmp_path / f"run-{world}"
        settings = [f"phase1.per_device_train_batch_size={batch}", "phase1.num_train_epochs=1", "phase1.folds=2"]
        settings += ["phase1.keep_folds=true", "phase1.seeds=2", "phase1.learning_rate=1e-4"]
        settings.append("phase1.dataloader_drop_last=true")
        settings += ["--run-dir", str(run)]
        done = launch_phase(launch, config, 1, recipe, tmp_path, *settings)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads((run / "phase1_baseline" / "manifest.json").read_text())["metrics"]["world_size"] == world
        assert run_problems(run) == []
        found[world] = read_out_of_fold(run / "phase1_baseline")
        manifest = json.loads((run / "phase1_baseline" / "manifest.json").read_text(encoding="utf-8"))
        assert len({one["start_sha256"] for one in (manifest["metrics"], *manifest["metrics"]["members"])}) == 1
    assert found[1].asked.ids == found[2].asked.ids and found[1].folds.tolist() == found[2].folds.tolist()
    np.testing.assert_allclose(found[2].logits, found[1].logits, atol=2e-4)
    for name in ("seed-43", "fold-1", "fold-2"):
        members = [Candidate(tmp_path / f"run-{world}" / "phase1_baseline" / "members" / name) for world in (1, 2)]
        one, two = (member.stored_logits("val_select", found[1].asked.exam).logits for member in members)
        np.testing.assert_allclose(two, one, atol=2e-4)


def test_natix_hf_run_launches_its_training_phases(tiny_recipe_file: Path, tmp_path: Path) -> None:
    """The way `natix-hf run` takes on a machine with several GPUs, with the ranks on the CPU."""
    config = resource_folder("accelerate_configs") / "cpu_2proc.yaml"
    overrides = ["phase1.num_train_epochs=1"]
    run = run_recipe(str(tiny_recipe_file), [1], tmp_path / "run with a space", config, overrides)
    assert json.loads((run / "phase1_baseline" / "manifest.json").read_text())["metrics"]["world_size"] == 2
    assert run_problems(run) == []


def test_a_phase_script_continues_the_newest_run_and_new_begins_another(
    tiny_recipe_file: Path, tmp_path: Path
) -> None:
    for arguments in ([], ["phase2.objective=f1"], ["--new"]):
        done = launch_phase(launch, "cpu.yaml", 1, tiny_recipe_file, tmp_path, "phase1.num_train_epochs=1", *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("current, skipped" in done.stdout.splitlines()[-1]) == (arguments == ["phase2.objective=f1"])
    assert len(list((tmp_path / "outputs" / "tiny").iterdir())) == 2


def test_an_error_on_rank_0_ends_every_rank_with_one_line(tiny_recipe_file: Path, tmp_path: Path) -> None:
    done = launch_phase(accelerate_launch, "cpu_2proc.yaml", 6, tiny_recipe_file, tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("natix-hf: ")]
    assert len(lines) == 1 and tells(lines[0], "phase 6", "phase 2", "--phases 2")


@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_fails_is_seen_and_ends_the_other(bad: int, tmp_path: Path) -> None:
    """Of the launcher of these tests itself: else they could pass with a rank that never ran."""
    script = tmp_path / "rank.py"
    script.write_text(f"import os, sys, time\nos.environ['RANK'] == '{bad}' and sys.exit(3)\ntime.sleep(200)\n")
    assert launch("cpu_2proc.yaml", script, tmp_path).returncode == 3


def test_two_ranks_learn_one_gate(tmp_path: Path) -> None:
    """On answers of which some are wrong: else phase 3 would have nothing to learn from."""
    source = write_parquet_source(tmp_path / "source", groups=200, frames=2, seed=3, unclear=5)
    content = TINY_RECIPE | {
        "data": {**TINY_RECIPE["data"], "source": str(source)},
        "phase1": {**TINY_RECIPE["phase1"], "num_train_epochs": 1},
    }
    recipe = write_recipe(tmp_path / "gate.yaml", content)
    run = run_recipe(str(recipe), [1, 2], tmp_path / "run")
    done = launch_phase(launch, "cpu_2proc.yaml", 3, recipe, tmp_path, "--run-dir", str(run))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((run / "phase3_gate" / "gate.json").read_text(encoding="utf-8"))["folds"] == 2
    assert run_problems(run) == []
