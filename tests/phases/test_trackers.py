"""The curves of a training can be read back from its trackers, and a resumed training continues its curve."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Killed, explora_recipe, kill_at
from refusals import refused

from natix_hf.errors import RecipeError
from natix_hf.pipeline import run_recipe
from natix_hf.trainers.arguments import check_training, training_arguments
from natix_hf.trainers.supervised_config import SupervisedConfig

SUPERVISED = {"train/loss", "train/learning_rate", "train/data_wait", "eval/mcc", "eval/nll"}
ADAPTED = {"train/loss", "train/learning_rate", "train/data_wait", "eval/linear_auroc", "eval/knn_auroc"}
DINO = ADAPTED | {"train/dino", "train/ibot", "train/koleo", "train/target_entropy"}
EXPECTED = {
    "phase1_baseline": SUPERVISED,
    "phase4_explora self_supervised": DINO,
    "phase4_explora phase4_explora": SUPERVISED,
}


def tensorboard_curves(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's reader
def test_tensorboard_has_every_curve(parquet_source: Path, pretrained: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe = explora_recipe(tmp_path, parquet_source, pretrained, objective="dinov2")
    settings = ["phase1.report_to=tensorboard", "phase4.report_to=[tensorboard]", "phase1.num_train_epochs=2"]
    run = run_recipe(recipe, [1, 4], tmp_path / "run", overrides=settings)
    for name, expected in EXPECTED.items():
        curves = tensorboard_curves(run / "tensorboard" / Path(*name.split()))
        assert expected <= set(curves), name
        assert len(curves["train/loss"]) >= 3 and min(curves["train/loss"].values()) > 0
    assert [path.name for path in run.glob("*") if path.name.startswith(("mlruns", "wandb"))] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_resumed_run_continues_its_curve(
    tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from natix_hf.trainers.roadwork import RoadworkTrainer

    init = RoadworkTrainer.__init__

    def killed(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.add_callback(kill_at(7))

    settings = ["phase1.report_to=tensorboard"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RoadworkTrainer, "__init__", killed)
        run_recipe(str(tiny_recipe_file), [1], tmp_path / "run", overrides=settings)
    run_recipe(str(tiny_recipe_file), [1], tmp_path / "run", overrides=settings)
    curve = tensorboard_curves(tmp_path / "run" / "tensorboard" / "phase1_baseline")["train/loss"]
    assert sorted(curve) == list(range(2, 15, 2)), "one curve, from the first step to the last"


TRACKED = """
import sys, socket
from pathlib import Path
connect = socket.socket.connect
def local_only(self, address):
    assert self.family == socket.AF_UNIX, f"asked {address}"
    return connect(self, address)
socket.socket.connect = local_only
from natix_hf.pipeline import run_recipe
settings = ["phase1.report_to=trackio", "phase4.report_to=trackio"]
run_recipe(sys.argv[1], [1, 4], Path(sys.argv[2]), overrides=settings)
from trackio.sqlite_storage import SQLiteStorage
for name in SQLiteStorage.get_runs("natix_hf"):
    keys = {key for row in SQLiteStorage.get_logs("natix_hf", name) for key in row}
    print("tracked", name, *sorted(keys), sep="|")
"""


def test_trackio_has_every_curve_and_asks_nobody(parquet_source: Path, pretrained: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is no part of dev: it needs an older Pillow than constraints.txt")
    recipe = explora_recipe(tmp_path, parquet_source, pretrained, objective="dinov2")
    done = subprocess.run(
        [sys.executable, "-c", TRACKED, recipe, str(tmp_path / "run")],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf")}, stdin=subprocess.DEVNULL, capture_output=True,
        encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    tracked = [line.split("|") for line in done.stdout.splitlines() if line.startswith("tracked|")]
    found = {name: set(keys) for _, name, *keys in tracked}
    assert {name: expected - found.get(f"run {name}", set()) for name, expected in EXPECTED.items()} == {
        name: set() for name in EXPECTED
    }
    assert len(found) == len(EXPECTED) and (tmp_path / "hf" / "trackio").is_dir()


def test_a_tracker_that_cannot_be_used_is_named_before_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tracker in ("clearml", "trackoi"):
        refused(RecipeError, lambda: check_training({"report_to": [tracker]}, tmp_path, "phase4"),  # noqa: B023
                "phase4.report_to", tracker)  # fmt: skip
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for tracker in ("tensorboard", "trackio"):
        refused(RecipeError, lambda: training_arguments({"report_to": tracker}, tmp_path),  # noqa: B023
                "phase1.report_to", f"natix_hf[{tracker}]")  # fmt: skip


def test_the_names_in_a_tracker(tmp_path: Path) -> None:
    given = SupervisedConfig(report_to="none").training_fields()
    named = training_arguments(given, tmp_path / "RUN" / "phase1_baseline" / "checkpoints" / "folds" / "2")
    assert (named.project, named.run_name) == ("natix_hf", "RUN phase1_baseline folds 2")
    own = training_arguments(given | {"project": "roads", "run_name": "first"}, tmp_path / "R" / "p" / "checkpoints")
    assert (own.project, own.run_name) == ("roads", "first")
    assert training_arguments(given, tmp_path / "elsewhere").run_name is None
