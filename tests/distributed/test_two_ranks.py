"""Two gloo ranks through `accelerate launch`: that there are two, that they train one model, that the others wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from natix_hf.pipeline import run_recipe
from natix_hf.resources import resource_folder
from natix_hf.verify import run_problems

SETTINGS = ["phase1.learning_rate=1e-4", "phase1.num_train_epochs=2", "phase1.dataloader_drop_last=true"]


def launch(config: str, number: int, recipe: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch recipes/phaseN.py` from `folder`. One gloo run in five aborts at exit here: tried twice."""
    script = resource_folder("recipes") / f"phase{number}.py"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(resource_folder("accelerate_configs") / config), str(script), "--recipe", str(recipe), *arguments]
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=300)
        if "SIGABRT" not in done.stderr:
            break
    return done


def logits_of(run: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(run / "phase1_baseline" / "logits" / "val_select.parquet")
    return table["row_id"].to_pylist(), table["logit"].to_numpy()


def test_two_ranks_train_the_model_of_one_rank_with_accumulation(tiny_recipe_file: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    for number in (1, 2, 6):
        small = "phase1.per_device_train_batch_size=4"
        done = launch("cpu_2proc.yaml", number, tiny_recipe_file, tmp_path, *SETTINGS, small, "--run-dir", str(both))
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("phase 0 ") == 1, "rank 0 alone speaks"
    manifest = json.loads((both / "phase1_baseline" / "manifest.json").read_text())
    assert manifest["metrics"]["world_size"] == 2
    assert run_problems(both) == []

    alone = tmp_path / "alone"
    accumulated = ["phase1.per_device_train_batch_size=4", "phase1.gradient_accumulation_steps=2"]
    done = launch("cpu.yaml", 1, tiny_recipe_file, tmp_path, *SETTINGS, *accumulated, "--run-dir", str(alone))
    assert done.returncode == 0, done.stderr[-3000:]
    single = json.loads((alone / "phase1_baseline" / "manifest.json").read_text())
    assert single["metrics"]["world_size"] == 1
    assert single["metrics"]["steps"] == manifest["metrics"]["steps"]
    ids, z = logits_of(both)
    ids_alone, z_alone = logits_of(alone)
    assert ids == ids_alone
    assert np.abs(z - z_alone).max() < 1e-5 and np.abs(z - z_alone).mean() < 1e-6
    assert np.ptp(z) > 1e-2, "the models are trained: their logits differ between rows"


def test_natix_hf_run_launches_its_training_phases(tiny_recipe_file: Path, tmp_path: Path) -> None:
    """The way `natix-hf run` takes on a machine with several GPUs, with the ranks on the CPU."""
    config = resource_folder("accelerate_configs") / "cpu_2proc.yaml"
    run = run_recipe(
        str(tiny_recipe_file), [1, 2], tmp_path / "run with a space", config, ["phase1.num_train_epochs=1"]
    )
    assert json.loads((run / "phase1_baseline" / "manifest.json").read_text())["metrics"]["world_size"] == 2
    assert run_problems(run) == []


def test_a_phase_script_continues_the_newest_run_and_new_begins_another(
    tiny_recipe_file: Path, tmp_path: Path
) -> None:
    for arguments in ([], ["phase2.objective=f1"], ["--new"]):
        done = launch("cpu.yaml", 1, tiny_recipe_file, tmp_path, "phase1.num_train_epochs=1", *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("current, skipped" in done.stdout.splitlines()[-1]) == (arguments == ["phase2.objective=f1"])
    assert len(list((tmp_path / "outputs" / "tiny").iterdir())) == 2


def test_an_error_on_rank_0_ends_every_rank_with_one_line(tiny_recipe_file: Path, tmp_path: Path) -> None:
    done = launch("cpu_2proc.yaml", 6, tiny_recipe_file, tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("natix-hf: ")]
    assert len(lines) == 1 and "phase 6 needs phase 2" in lines[0] and "--phases 2" in lines[0]
