"""The supervised stage on striped pictures, as these tests run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Killed, kill_at, write_parquet_source

from natix_hf.data.asked import ask
from natix_hf.data.config import AugmentConfig, DataConfig
from natix_hf.data.rows import ImageData, load_image_data
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.recipe import parse_recipe
from natix_hf.trainers.roadwork import RoadworkTrainer
from natix_hf.trainers.supervised import train_classifier

QUICK: dict[str, Any] = {"num_train_epochs": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 16,
                         "dataloader_num_workers": 0, "logging_steps": 1}  # fmt: skip


def striped_data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    source = write_parquet_source(tmp_path_factory.mktemp("source"))
    return load_image_data(DataConfig(source=str(source), group_by="video_info.vid_id"))


def save_in(folder: Path) -> Any:
    return lambda merged: merged.save_pretrained(folder) or folder


def train_stage(
    data: ImageData, folder: Path, model: ModelConfig, adapter: str, save: Any = None, **section: Any
) -> dict[str, Any]:
    """Leaves `folder/model`."""
    config = parse_recipe({"phase1": QUICK | {"adapter": adapter} | section}).phase1
    return train_classifier(
        build_classifier(model, seed=0), make_processor(model), data.role("train"), ask(data.role("val_select")),
        config, AugmentConfig(), None, folder / "checkpoints", save or save_in(folder / "model"),
    )  # fmt: skip


@contextmanager
def killed_after(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training of a `RoadworkTrainer` in the block ends after `step` optimizer steps, as a kill would end it."""
    init = RoadworkTrainer.__init__

    def killed(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.add_callback(kill_at(step))

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RoadworkTrainer, "__init__", killed)
        yield
