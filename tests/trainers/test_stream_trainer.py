"""The self-supervised stage on a stream: exactly max_steps, resumed bit by bit, told what it has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Killed, kill_at, striped_image, tiny_backbone
from refusals import refused
from safetensors.torch import load_file
from stages import save_in

from natix_hf.data.config import AugmentConfig, DataConfig
from natix_hf.data.frames import open_sources
from natix_hf.data.splits import Splits
from natix_hf.data.stream import Stream
from natix_hf.errors import RecipeError, UsageError
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.provenance.files import read_json
from natix_hf.recipe import parse_recipe
from natix_hf.trainers import pretraining, self_supervised
from natix_hf.trainers.explora import ExploraTrainer

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on two cores
MODEL = ModelConfig(config={"model_type": "dinov2", "patch_size": 7}, image_size=28)
STEPS, BATCH = 7, 6


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 25 pictures and two files that are none: a pass and a half are needed."""
    folder, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    for number in range(25):
        striped_image(number % 2, rng).save(folder / f"{number}.png")
    for number in range(2):
        (folder / f"bad{number}.jpg").write_bytes(b"no picture")
    return folder


def _pretrain(frames: Path, folder: Path, objective: str = "mae", **changes: Any) -> dict[str, Any]:
    section = {
        "objective": objective, "rank": 4, "max_steps": STEPS, "probe_steps": 3, "learning_rate": 2e-3,
        "per_device_train_batch_size": BATCH, "dataloader_num_workers": 0, "logging_steps": 1,
        "mae": {"decoder_width": 16, "decoder_heads": 2, "decoder_layers": 1},
        "dinov2": {"n_prototypes": 32, "head_hidden": 32, "bottleneck": 16}, "crops": {"local_crops": 2},
        "unlabelled": [str(frames)], "stream": True, "shuffle_buffer": 8,
    }  # fmt: skip
    config = parse_recipe({"phase4": section | changes}).phase4
    data = DataConfig(source=None, on_bad_image="skip", cache_px=24)
    shards, _ = open_sources(config.unlabelled, data, {})
    stream = Stream(shards, data, Splits([], [], [], [], []), config.shuffle_buffer, config.seed)
    return self_supervised.pretrain_backbone(
        tiny_backbone("dinov2"), make_processor(MODEL), stream.sample(10), None, config, AugmentConfig(),
        save_in(folder / "backbone"), folder / "checkpoints", None, stream,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("mae", {}),
        ("mae", {"dataloader_num_workers": 2}),
        ("mae", {"gradient_accumulation_steps": 2, "dataloader_num_workers": 3}),
        ("dinov2", {"dataloader_num_workers": 2}),
    ],
)
def test_resumed_equals_uninterrupted_bit_by_bit(
    objective: str, changes: dict[str, Any], frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _pretrain(frames, tmp_path / "whole", objective, **changes)
    with monkeypatch.context() as patch:
        original = ExploraTrainer.__init__

        def with_killer(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.add_callback(kill_at(5))

        patch.setattr(ExploraTrainer, "__init__", with_killer)
        with pytest.raises(Killed):
            _pretrain(frames, tmp_path / "cut", objective, **changes)
    resumed = _pretrain(frames, tmp_path / "cut", objective, **changes)
    assert resumed["resumed_from"] == "checkpoint-3" and resumed["steps"] == whole["steps"] == STEPS
    keys = ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_spread", "dino")
    told = [[{k: row[k] for k in keys if k in row} for row in report["history"]] for report in (whole, resumed)]
    assert told[0][:-1] == told[1][:-1] and len(told[0]) > STEPS  # the last one sums up: seconds, mean loss
    one, other = (load_file(tmp_path / name / "backbone" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert resumed["streamed"] == whole["streamed"]


def test_exactly_max_steps_and_every_frame_counted_once(frames: Path, tmp_path: Path) -> None:
    report = _pretrain(frames, tmp_path)
    streamed = report["streamed"]
    assert report["steps"] == streamed["batches"] == STEPS and report["images"] == 25
    assert streamed["seen"] == {frames.name: 25} and streamed["left_out"] == {"unreadable": 2}
    assert sorted(streamed["reasons"]) == [f"{frames.name}:bad{i}.jpg" for i in range(2)]
    few = _pretrain(frames, tmp_path / "few", max_steps=2, probe_steps=0)
    assert few["steps"] == 2 and few["images"] == 2 * BATCH
    stored = read_json(tmp_path / "checkpoints" / "checkpoint-7" / "stream.json")
    assert [rank["batches"] for rank in stored["ranks"]] == [STEPS]


def test_other_readers_cannot_continue_it(frames: Path, tmp_path: Path) -> None:
    _pretrain(frames, tmp_path, dataloader_num_workers=2)
    call = lambda: _pretrain(frames, tmp_path, dataloader_num_workers=1)  # noqa: E731
    refused(UsageError, call, "checkpoint-7", "1 processes with 2 readers", "1 processes with 1 readers")


def test_an_objective_whose_views_cannot_be_drawn_is_refused(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = pretraining.objective_class("mae")
    monkeypatch.setattr(cls, "views", classmethod(lambda *args, **kwargs: [0]))
    refused(RecipeError, lambda: _pretrain(frames, tmp_path), "phase4.stream", "mae", "draw")


@pytest.mark.parametrize(
    ("section", "facts"),
    [
        ({"stream": True}, ("phase4.stream", "phase4.unlabelled")),
        ({"stream": True, "unlabelled": ["a"], "max_steps": -1}, ("phase4.stream", "phase4.max_steps")),
        ({"shuffle_buffer": 5}, ("phase4.shuffle_buffer", "phase4.stream")),
        ({"stream": True, "unlabelled": ["a"], "shuffle_buffer": 0}, ("phase4.shuffle_buffer", "at least 1")),
        (
            {"stream": True, "unlabelled": ["a"], "auto_find_batch_size": True},
            ("phase4.auto_find_batch_size", "phase4.stream"),
        ),
    ],
)
def test_keys_that_do_not_fit(section: dict[str, Any], facts: tuple[str, ...]) -> None:
    refused(RecipeError, lambda: parse_recipe({"phase4": section}), *facts)
