"""`natix-hf smoke`: every phase works for a few steps, or one line says which does not."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import STAGE_A, TINY_RECIPE, explora_recipe, refused, write_parquet_source

from natix_hf import cli
from natix_hf.data.config import DataConfig
from natix_hf.errors import RunError, UsageError
from natix_hf.estimate import smoke as module
from natix_hf.estimate.pictures import CoreRates
from natix_hf.estimate.sample import small_recipe
from natix_hf.estimate.smoke import smoke
from natix_hf.estimate.source import list_source
from natix_hf.estimate.stages import trained_weights
from natix_hf.estimate.table import Forecast, Row
from natix_hf.estimate.work import Counts, Work
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.runs.seen import run_of_start


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_every_phase_of_a_recipe(
    tmp_path: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_parquet_source(tmp_path / "source", groups=60, official_test=30, unclear=3)
    frames = write_parquet_source(tmp_path / "frames", groups=30, seed=1)
    recipe = explora_recipe(tmp_path, source, pretrained, objective="mae", unlabelled=[str(frames)])
    before = sorted(path for path in tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    made: list[str] = []

    class Scratch(tempfile.TemporaryDirectory[str]):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self.name)

    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", Scratch)
    given = ["phase6.push=true", "phase6.repo_id=lab/x"]  # it uploads nothing, so it must not
    monkeypatch.setattr("natix_hf.preflight.check_run", lambda *args, **kwargs: None)
    assert exit_code("smoke", recipe, *given, "--phases", "all", "--price-per-hour", "2") == 0
    told = capsys.readouterr().out
    assert told.startswith("device")
    assert "270 pictures, 90 more" in told
    for number in (0, 1, 4, 2, 3, 5, 6):
        assert re.search(rf"^phase {number}  .*: works", told, re.MULTILINE), told
        assert re.search(rf"^{number}  .* s ", told, re.MULTILINE), told
    assert re.search(r"^cost +0\.\d\d at 2 an hour$", told, re.MULTILINE), told
    assert "push" in told  # what could not be checked is said
    assert len(made) == 1 and not Path(made[0]).exists() and sorted(tmp_path.rglob("*")) == before


def test_a_phase_that_fails_is_named(tmp_path: Path, parquet_source: Path) -> None:
    content = TINY_RECIPE | {"data": {**TINY_RECIPE["data"], "source": str(parquet_source)}}
    bad = Recipe.build(content | {"phase1": {**TINY_RECIPE["phase1"], "learning_rate": 900, "max_grad_norm": 0}})
    with refused(RunError, "phase 1", "learning_rate"):
        smoke(bad, [1, 2, 6], None, cpu=True)


def test_a_phase_is_not_tried_without_what_it_needs(parquet_source: Path) -> None:
    recipe = Recipe.build(TINY_RECIPE | {"data": {**TINY_RECIPE["data"], "source": str(parquet_source)}})
    with refused(UsageError, "phase 6", "phase 2"):
        smoke(recipe, [6], None, cpu=True)
    with refused(UsageError, "data.source", "estimate"):
        stage = STAGE_A | {"trainable": "all", "use_labeled_data": False, "unlabelled": [str(parquet_source)]}
        smoke(Recipe.build(TINY_RECIPE | {"data": {"source": None}, "phase4": stage}), [4], None, cpu=True)


def test_the_small_recipe_keeps_what_is_tried(tmp_path: Path, parquet_source: Path) -> None:
    content: dict[str, Any] = TINY_RECIPE | {
        "data": TINY_RECIPE["data"] | {"source": str(parquet_source), "exam": True, "label_rule": "scene_description"},
        "phase1": {**TINY_RECIPE["phase1"], "adapter": "dora", "ema_decay": 0.9, "early_stopping_patience": 1},
        "phase4": STAGE_A | {"supervised": {"adapter": "lora", "num_train_epochs": 50}},
    }
    recipe = Recipe.build(content)
    source = list_source(recipe.data)
    assert source is not None
    small = small_recipe(recipe, source, 10**8, tmp_path)
    assert load_recipe(str(tmp_path / "smoke.yaml")).mapping() == small.mapping()
    for kept in ("adapter", "ema_decay", "per_device_train_batch_size", "learning_rate", "dataloader_num_workers"):
        assert getattr(small.phase1, kept) == getattr(recipe.phase1, kept)
    assert (small.model, small.phase5, small.data.exam) == (recipe.model, recipe.phase5, True)
    assert small.phase4.supervised is not None and small.phase4.supervised.adapter == "lora"
    for stage in (small.phase1, small.phase4, small.phase4.supervised):
        assert 4 <= stage.training_fields()["max_steps"] <= 24
    read = list_source(DataConfig(source=small.data.source, group_by="group", slices=small.data.slices))
    assert read is not None and set(read.rows.columns) == {"scene_level_tags.weather"}
    assert sorted(read.splits.labels) == sorted(source.splits.labels)  # a source smaller than a sample is whole


def test_a_start_that_knows_the_source_can_be_tried(_finished_run: Path, parquet_source: Path, tmp_path: Path) -> None:
    """A sample is divided in another way than the run that the start comes from, and nothing is measured on it."""
    content: dict[str, Any] = TINY_RECIPE | {
        "data": TINY_RECIPE["data"] | {"source": str(parquet_source)},
        "model": {"backbone": str(_finished_run), "image_size": 28},
    }
    recipe = Recipe.build(content)
    source, start = list_source(recipe.data), Path(str(recipe.model.backbone))
    assert source is not None and run_of_start(str(start)) is not None
    copy = Path(str(small_recipe(recipe, source, 10**8, tmp_path).model.backbone))
    assert run_of_start(str(copy)) is None
    assert (copy / "model.safetensors").read_bytes() == (start / "model.safetensors").read_bytes()


def test_a_disk_that_is_too_small_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    forecast = Forecast([Row("0", disk=4 * 10**9), Row("1", disk=2 * 10**9)], checkpoints=10**9)
    free = {"same": 6 * 10**9}
    monkeypatch.setattr(module, "free_bytes", lambda place: free["same"])
    [fault] = module._disk_faults(forecast)  # caches and runs share a disk here
    assert "7.0 GB" in fault and "6.0 GB free" in fault and "--run-dir" in fault
    monkeypatch.setattr(module, "on_one_disk", lambda one, other: False)
    assert module._disk_faults(forecast) == []
    free["same"] = 3 * 10**9
    [fault] = module._disk_faults(forecast)
    assert "4.0 GB" in fault and ("HF_HOME" in fault or "HF_DATASETS_CACHE" in fault)


def test_pictures_are_waited_for_only_where_they_are_made() -> None:
    """One core makes ten views a second, so a step of 40 takes four seconds; a step on features does not."""
    found: Any = SimpleNamespace(
        paces={"phase1": {"step_s": 0.5}}, rates=CoreRates(train=10, objective=10, asked=10, scored=10, drawn=10)
    )
    recipe = Recipe.build({"phase1": {"dataloader_num_workers": 1}})
    for model, seconds in (("classifier", 4.0), ("head", 0.5)):
        step = Work(1, "train", 7, model, "phase1", pictures=40)  # type: ignore[arg-type]
        assert module._unit_s(step, {}, recipe, found, devices=1) == seconds


def test_a_class_for_each_image_is_counted_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """diet's layer of a sample is small: cls token and mean patch, of 32 features each, for every further image."""
    of = {name: Recipe.build(TINY_RECIPE | {"phase4": STAGE_A | {"objective": name}}) for name in ("diet", "mae")}
    assert trained_weights(of["diet"], 10**6) - trained_weights(of["diet"], 400) == 2 * 32 * (10**6 - 400)
    assert trained_weights(of["mae"], 10**6) == trained_weights(of["mae"], 400)
    pace = {"step_s": 1.0, "memory": {"cpu": 10**9}, "checkpoint_bytes": 500}
    found: Any = SimpleNamespace(
        paces={"phase4": pace}, further=10**9, durations={0: 1.0, 4: 9.0}, left={0: (0, 0), 4: (0, 0)},
        source=0, caches=0, model=0,
    )  # fmt: skip
    train, save = (Work(4, kind, 7, "objective", "phase4", pictures=8) for kind in ("train", "save"))  # type: ignore[arg-type]
    monkeypatch.setattr(module, "work_of", lambda *_: [train, save])
    monkeypatch.setattr(module, "_unit_s", lambda *_: 1.0)
    monkeypatch.setattr(module, "_loader_lines", lambda *_: [])
    recipe = replace(of["diet"], phases=[4])
    forecast = module._project(recipe, Counts(9, 9, 9, 9), Counts(1, 1, 1, 1), found, 1, None, recipe)
    assert forecast.rows[1].memory == 10**9 + 16 * 10**9
    assert forecast.checkpoints == 3 * (500 + 12 * 10**9)
    assert any("16 GB" in line.replace("16.0", "16") and "not in the time" in line for line in forecast.lines)
