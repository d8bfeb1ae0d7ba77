"""The pace of a training, on a clock of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from stages import striped_data

from natix_hf.data.asked import ask
from natix_hf.data.config import AugmentConfig
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.trainers import pace
from natix_hf.trainers.arguments import training_arguments
from natix_hf.trainers.roadwork import RoadworkTrainer
from natix_hf.trainers.stage import make_stage
from natix_hf.trainers.supervised_config import SupervisedConfig


class Clock:
    """Time passes only where the test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(RoadworkTrainer):
    clock: Clock

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.now += 100 if self.state.global_step < 2 else 1  # the first steps are slow
        return super().training_step(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.now += 10
        return super().evaluate(*args, **kwargs)

    def save_extra(self, checkpoint: Path) -> None:
        self.clock.now += 1000
        super().save_extra(checkpoint)


def test_steps_scores_and_checkpoints_are_told_apart(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Slow.clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    data = striped_data(tmp_path_factory)
    model = ModelConfig(config=TINY["vit"], image_size=28)
    config = SupervisedConfig(
        num_train_epochs=2, per_device_train_batch_size=16, dataloader_num_workers=0,
        extra={"gradient_accumulation_steps": 2, "dataloader_drop_last": True},
    )  # fmt: skip
    arguments = training_arguments(config.training_fields(), tmp_path / "checkpoints")
    processor = make_processor(model)
    stage = make_stage(
        build_classifier(model, 0), processor, data.role("train"), ask(data.role("val_select")), config,
        AugmentConfig(), None, arguments,
    )  # fmt: skip
    trainer = Slow(args=arguments, quiet=True, **stage.given)
    trainer.train()
    found = trainer.pace.facts()
    assert found["step_s"] == 2  # two batches a step
    assert found["steps"] == trainer.state.global_step - 2
    assert (found["score_s"], found["save_s"], found["rows_a_step"]) == (10, 1000, 32)
    newest = max(Path(str(arguments.output_dir)).glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    assert found["checkpoint_bytes"] == pytest.approx(size, rel=0.02)
    assert found["memory"]["process"] > 10**8
    trainer.pace.begin()
    assert "step_s" not in trainer.pace.facts()
