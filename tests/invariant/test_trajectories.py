"""Trainings that must be one training: two ranks, accumulation, small batches, and a run that was cut off.

Trajectories are compared, not exit codes: the loss of every step and the logits at the end, by their largest *and*
their mean difference. float32, no dropout, learning rate 1e-4 (at higher ones AdamW turns the rounding in the key
biases, whose true gradient is zero, into steps).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TINY, TINY_RECIPE, write_recipe
from ranks import launch

from natix_hf.models.features import cache_folder
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import read_json
from natix_hf.resources import resource_folder
from natix_hf.trainers import base

STEPS = 10
# Every architecture and both ways of training in either test; what one of them leaves out the other has.
CASES = [(name, "none" if number == 0 else "full") for number, name in enumerate(TINY)] + [("dinov2", "doran")]
CUT = [(name, "none" if number % 2 else "full") for number, name in enumerate(TINY)]
MAXIMUM, MEAN = 1e-5, 1e-6


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory, parquet_source: Path) -> dict[tuple[str, str], Path]:
    """A recipe file for every case. DINOv3 draws `pos_embed_rescale` from the global generator: off here. One
    architecture trains at rates by depth."""
    folder, files = tmp_path_factory.mktemp("cases"), {}
    for architecture, adapter in {*CASES, *CUT}:
        config = TINY[architecture] | ({"pos_embed_rescale": None} if architecture == "dinov3_vit" else {})
        training = {"learning_rate": 1e-4, "max_steps": STEPS, "logging_steps": 1, "dataloader_drop_last": True}
        if (architecture, adapter) == ("dinov2_with_registers", "full"):
            training |= {"layer_decay": 0.7, "head_learning_rate": 2e-4}
        content = TINY_RECIPE | {
            "data": TINY_RECIPE["data"] | {"source": str(parquet_source)},
            "model": {"config": config, "image_size": 28},
            "phase1": TINY_RECIPE["phase1"] | training | {"adapter": adapter, "ema_decay": 0.5},
        }
        files[architecture, adapter] = write_recipe(folder / f"{architecture}_{adapter}.yaml", content)
    return files


@dataclass
class Trajectory:
    """What a training left: loss of every step, val_select logits, ranks."""

    losses: np.ndarray
    logits: np.ndarray
    world_size: int


def trajectory(run: Path) -> Trajectory:
    phase = run / "phase1_baseline"
    losses = [row["loss"] for row in read_json(phase / "history.json") if "loss" in row]
    logits = pq.read_table(phase / "logits" / "val_select.parquet")["logit"].to_numpy()
    return Trajectory(np.array(losses), logits, read_json(phase / "manifest.json")["metrics"]["world_size"])


def batches(per_device: int, accumulation: int) -> list[str]:
    return [
        f"phase1.per_device_train_batch_size={per_device}",
        f"phase1.gradient_accumulation_steps={accumulation}",
    ]


def assert_one_training(one: Trajectory, other: Trajectory) -> None:
    assert len(one.losses) == len(other.losses) == STEPS
    for a, b in ((one.losses, other.losses), (one.logits, other.logits)):
        difference = np.abs(a - b)
        assert difference.max() < MAXIMUM and difference.mean() < MEAN
    assert np.ptp(one.losses) > 1e-2, "the loss moves: there is something to compare"


@pytest.mark.xdist_group("ranks")  # which are forked from one process
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_batch_of_8_is_four_batches_of_2_and_two_ranks_with_4(
    case: tuple[str, str], recipes: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    whole, accumulated = (
        run_recipe(str(recipes[case]), [1], tmp_path / f"{size}", overrides=batches(size, 8 // size))
        for size in (8, 2)
    )
    script, two = resource_folder("recipes") / "phase1.py", tmp_path / "two"
    settings = ["--recipe", str(recipes[case]), "--run-dir", str(two), *batches(4, 1)]
    done = launch("cpu_2proc.yaml", script, tmp_path, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [trajectory(run).world_size for run in (whole, two)] == [1, 2]
    for other in (accumulated, two):
        assert_one_training(trajectory(whole), trajectory(other))


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("case", CASES[:2], ids="-".join)
def test_mixup_and_a_teacher_are_those_of_two_ranks_with_half_the_batches(
    case: tuple[str, str], recipes: dict[tuple[str, str], Path], tmp_path: Path, _finished_run: Path
) -> None:
    """Each batch is mixed by its number in the step, on whatever rank it is. The first rank asks the teacher, whose
    answers are not kept from one training to the other."""
    levers = ["phase1.mixup=0.4", f"phase1.teacher={_finished_run}"]
    accumulated, plain = (
        run_recipe(str(recipes[case]), [1], tmp_path / f"run{len(more)}", overrides=[*batches(4, 2), *more])
        for more in (levers, [])
    )
    shutil.rmtree(cache_folder() / "features")
    script, two = resource_folder("recipes") / "phase1.py", tmp_path / "two"
    settings = ["--recipe", str(recipes[case]), "--run-dir", str(two), *batches(4, 1), *levers]
    done = launch("cpu_2proc.yaml", script, tmp_path, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert trajectory(two).world_size == 2
    assert_one_training(trajectory(accumulated), trajectory(two))
    assert np.abs(trajectory(plain).losses - trajectory(two).losses).max() > 1e-3


@pytest.mark.parametrize("case", CUT, ids="-".join)
def test_a_run_cut_off_within_an_epoch_continues_to_the_same_bits(
    case: tuple[str, str], recipes: dict[tuple[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Augmentation and dropout on: views come from (seed, epoch, row), dropout from the restored generator."""
    architecture, adapter = case
    config = {"drop_path_rate": 0.2} if architecture != "vit" else {"hidden_dropout_prob": 0.2}
    overrides = [
        *(f"model.config.{key}={value}" for key, value in config.items()),
        *("phase1.save_strategy=steps", "phase1.save_steps=3", "phase1.load_best_model_at_end=false"),
        *("phase1.learning_rate=1e-3", "phase1.max_steps=12"),
        *(["phase1.feature_views=3"] if adapter == "none" else []),
    ]
    whole = run_recipe(str(recipes[case]), [1], tmp_path / "whole", overrides=overrides)
    complete = base.mark_complete

    def killed(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-9":
            raise KeyboardInterrupt
        complete(checkpoint)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(base, "mark_complete", killed)
        run_recipe(str(recipes[case]), [1], tmp_path / "cut", overrides=overrides)
    cut = run_recipe(str(recipes[case]), [1], tmp_path / "cut", overrides=overrides)
    metrics: list[dict[str, Any]] = [
        read_json(run / "phase1_baseline" / "manifest.json")["metrics"] for run in (whole, cut)
    ]
    steps_an_epoch = metrics[0]["steps"] / read_json(whole / "phase1_baseline" / "history.json")[-1]["epoch"]
    assert 6 % steps_an_epoch, "checkpoint-6 lies within an epoch"
    assert [m["resumed_from"] for m in metrics] == [None, "checkpoint-6"]
    assert metrics[0]["candidate_sha256"] == metrics[1]["candidate_sha256"]
    np.testing.assert_array_equal(trajectory(whole).losses, trajectory(cut).losses)
