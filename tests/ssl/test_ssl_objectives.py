"""A third objective needs one class and one row of the table: it trains, resumes and is merged like the others."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import pytest
import torch
from conftest import explora_recipe, save_vit_mae, striped_image, tiny_backbone, write_parquet_source
from facts import tells
from torch import nn

from natix_hf import ExploraTrainer
from natix_hf.data.config import AugmentConfig
from natix_hf.data.views import TrainViews
from natix_hf.errors import RecipeError
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.manifest import read_manifest
from natix_hf.ssl.objective import PlainObjective
from natix_hf.ssl.objectives import OBJECTIVES, ObjectiveSections, default_objective, objective_class, settings_of

PACKAGE = Path(__file__).resolve().parents[2] / "natix_hf"


@dataclass(frozen=True)
class BrightnessConfig:
    weight: float = 1.0


class Brightness(PlainObjective):
    """Tells the mean brightness of a view from its cls token."""

    sections: ClassVar[dict[str, type]] = {"brightness": BrightnessConfig}

    def __init__(self, encoder: nn.Module, config: BrightnessConfig, seed: int) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, config
        torch.manual_seed(seed)
        self.head = nn.Linear(32, 1)

    @classmethod
    def build(
        cls, student: nn.Module, image_size: int, seed: int, decoder: Any, images: int, *, brightness: Any
    ) -> Self:
        return cls(student, brightness, seed)

    @classmethod
    def views(cls, images: Any, processor: Any, patch_size: int, augment: Any, seed: int, *, brightness: Any) -> Any:
        plain = replace(AugmentConfig(), rotate=0.0)
        return TrainViews(images, plain, processor.size["height"], processor.image_mean, processor.image_std, seed)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        told = self.head(self.encoder(pixel_values=pixel_values).last_hidden_state[:, 0])[:, 0]
        return {"loss": self.settings.weight * (told - pixel_values.mean(dim=(1, 2, 3))).square().mean()}

    def backbone(self) -> nn.Module:
        return self.encoder


def test_a_third_objective_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "brightness", Brightness)
    rng = np.random.default_rng(0)
    images = datasets.Dataset.from_dict({"image": [striped_image(i % 2, rng) for i in range(32)]})
    losses = {}
    for weight in (1.0, 2.0):
        args = {"max_steps": 8, "learning_rate": 1e-2, "per_device_train_batch_size": 16, "logging_steps": 1,
                "dataloader_num_workers": 0, "output_dir": str(tmp_path / str(weight))}  # fmt: skip
        trainer = ExploraTrainer(
            tiny_backbone("dinov2"), "brightness", images, args, rank=2, probe_steps=0,
            settings={"brightness": BrightnessConfig(weight)},
        )  # fmt: skip
        trainer.train()
        losses[weight] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        assert trainer.proof is not None and trainer.proof["max_difference"] <= 1e-4
    assert losses[1.0][-1] < losses[1.0][0] and losses[2.0][0] == pytest.approx(2 * losses[1.0][0], rel=1e-4)
    assert {*trainer.merged().state_dict()} == {*tiny_backbone("dinov2").state_dict()}


class PlainBrightness(Brightness):
    """The same without settings: it needs no section in a recipe."""

    sections: ClassVar[dict[str, type]] = {}

    @classmethod
    def build(cls, student: nn.Module, image_size: int, seed: int, decoder: Any, images: int) -> Self:
        assert decoder is None  # it does not take one
        return cls(student, BrightnessConfig(), seed)

    @classmethod
    def views(cls, *args: Any) -> Any:
        return Brightness.views(*args, brightness=None)


def test_a_recipe_names_a_third_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the table is all that phase 4, its report and its checks need, whatever the backbone's own decoder."""
    monkeypatch.setitem(OBJECTIVES, "brightness", PlainBrightness)
    save_vit_mae(tmp_path / "backbone")
    source = write_parquet_source(tmp_path / "source", groups=20)
    recipe = explora_recipe(tmp_path, source, tmp_path / "backbone", objective="brightness", use_labeled_data=False)
    run = run_recipe(recipe, [4], tmp_path / "run")
    metrics = read_manifest(run / "phase4_explora")["metrics"]
    assert metrics["objective"] == "brightness" and metrics["decoder"] is None and metrics["steps"] == 6


def test_no_other_file_asks_for_a_name() -> None:
    """A comparison with the name of an objective elsewhere is a place that a new one would be forgotten in."""
    asks = re.compile(rf"""[=!]= ["']({"|".join(OBJECTIVES)})["']""")
    for path in PACKAGE.rglob("*.py"):
        assert not asks.search(path.read_text(encoding="utf-8")), path


def test_the_table() -> None:
    with pytest.raises(RecipeError) as caught:
        objective_class("simclr")
    assert tells(caught.value, "phase4.objective", "'simclr'", *OBJECTIVES)
    assert [default_objective(name) for name in ("vit", "dinov2", "dinov2_with_registers")] == ["mae"] + 2 * ["dinov2"]
    sections = {f.name for f in fields(ObjectiveSections)}
    for name in OBJECTIVES:
        cls = objective_class(name)
        assert set(cls.sections) <= sections
        assert settings_of(cls, {}) == {section: kind() for section, kind in cls.sections.items()}
