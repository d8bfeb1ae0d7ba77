"""`natix-hf estimate`: a GPU that is not here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_RECIPE, explora_recipe, refused, tiny_backbone, write_recipe

from natix_hf import cli
from natix_hf.errors import UsageError
from natix_hf.estimate import forecast as module
from natix_hf.estimate import pictures
from natix_hf.estimate.forecast import Machine, estimate
from natix_hf.estimate.gpus import GPUS, UTILISATION, gpu_of
from natix_hf.estimate.table import Forecast, Row
from natix_hf.recipe import Recipe, load_recipe

A6000 = Machine(GPUS["a6000"], 1, 8)


def recipe_of(source: str, **sections: Any) -> Recipe:
    return Recipe.build(TINY_RECIPE | {"data": {**TINY_RECIPE["data"], "source": source}} | sections)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_SECONDS", 0.01)  # how long each kind of picture is made


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, parquet_source: Path, pretrained: Path) -> Recipe:
    """Of every phase."""
    path = explora_recipe(tmp_path_factory.mktemp("recipe"), parquet_source, pretrained, objective="mae")
    return load_recipe(path, ["phases=[1,4,2,3,5,6]"])


def test_the_command_tells_every_phase(
    tmp_path: Path, parquet_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = TINY_RECIPE | {"data": {**TINY_RECIPE["data"], "source": str(parquet_source)}}
    path = write_recipe(tmp_path / "tiny.yaml", content)
    with pytest.raises(SystemExit) as stop:
        cli.main(["estimate", str(path), "--gpu", "RTX A6000", "--gpus", "2", "--price-per-hour", "1"])
    told = capsys.readouterr().out
    assert stop.value.code == 0
    for number in (0, 1, 2, 6):
        assert re.search(rf"^{number}  .* s to .* s ", told, re.MULTILINE), told
    assert "2 x RTX A6000" in told and "16 cores" in told and "25% to 50%" in told
    assert re.search(r"^cost +0\.\d\d to 0\.\d\d at 1 an hour", told, re.MULTILINE), told


def test_a_larger_batch_needs_more_until_it_does_not_fit(tiny: Recipe) -> None:
    def memory(batch: int) -> Forecast:
        changed = recipe_of(
            tiny.data.source, phase1={**TINY_RECIPE["phase1"], "per_device_train_batch_size": batch}  # type: ignore[arg-type]
        )
        return estimate(changed, [1], Machine(GPUS["t4"], 1, 4))

    small, large = memory(16), memory(4096)
    assert not small.faults and small.rows[1].memory < large.rows[1].memory  # type: ignore[operator]
    found = re.search(r"largest batch that fits: about ([\d,]+)", "\n".join(small.lines))
    assert found is not None
    most = int(found[1].replace(",", ""))
    assert not memory(most).faults
    [fault] = memory(2 * most).faults
    assert "phase1.per_device_train_batch_size" in fault and "16 GB" in fault


def test_more_gpus_and_a_faster_one_take_less_time(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "loader_s", lambda *_: 1e-9)  # whatever the pictures take
    monkeypatch.setattr(module, "_FIXED_S", (0.0, 0.0))
    recipe = recipe_of(str(tiny.data.source), phase1={**TINY_RECIPE["phase1"], "num_train_epochs": 1000})

    def seconds(gpu: str, gpus: int = 1) -> tuple[float, float]:
        found = estimate(recipe, [1], Machine(GPUS[gpu], gpus, 8), rows=10**6).rows[1].pictures_per_s
        assert found is not None
        return found

    slow, fast, two = seconds("t4"), seconds("h100"), seconds("t4", 2)
    assert fast[0] / slow[0] == pytest.approx(GPUS["h100"].fp32 / GPUS["t4"].fp32, rel=1e-3)
    assert two[0] / slow[0] == pytest.approx(2, rel=1e-3)
    assert slow[1] / slow[0] == pytest.approx(UTILISATION[1] / UTILISATION[0])


def test_all_phases_and_what_they_leave(tiny: Recipe) -> None:
    found = estimate(tiny, None, A6000)
    assert [row.title[0] for row in found.rows] == ["0", "1", "4", "2", "3", "5", "6"]
    told = [line.split()[0] for line in found.lines]  # phase 4 trains its classifier as phase 1 does
    assert {"phase1", "phase4"} <= set(told) and "phase4.supervised" not in told
    assert found.disk > found.checkpoints > 0


def test_diet_needs_memory_for_every_image(tmp_path: Path, parquet_source: Path, pretrained: Path) -> None:
    """Weights, gradient and two moments of a layer from 2 x 32 features: 1024 bytes an image."""
    recipe = load_recipe(explora_recipe(tmp_path, parquet_source, pretrained, objective="diet"), ["phases=[4]"])

    def step(images: int) -> tuple[float, int]:
        found = estimate(recipe, None, A6000, rows=40, unlabelled=images)
        assert found.rows[1].memory is not None
        return found.rows[1].memory, found.checkpoints

    few, many = step(10**4), step(10**6)
    assert many[0] - few[0] == pytest.approx(990_000 * 1024, rel=0.35)  # beside it the logits of a batch
    assert many[1] - few[1] == pytest.approx(2 * 990_000 * 768, rel=0.1)  # two checkpoints, without gradients


@pytest.mark.parametrize("objective", ["dinov2", "diet"])
def test_a_dinov3_in_phase_4(objective: str, tmp_path: Path, parquet_source: Path) -> None:
    tiny_backbone("dinov3_vit").save_pretrained(tmp_path / "dinov3")
    path = explora_recipe(tmp_path, parquet_source, tmp_path / "dinov3", objective=objective)
    found = [estimate(load_recipe(path, ["phases=[1,4,2,6]"]), None, A6000) for _ in range(2)]
    assert found[0].rows[2].memory == found[1].rows[2].memory > 0  # type: ignore[operator]


def test_a_card_without_bfloat16(tiny: Recipe) -> None:
    recipe = recipe_of(str(tiny.data.source), phase1={**TINY_RECIPE["phase1"], "bf16": True})
    assert not estimate(recipe, [1], A6000).faults
    [fault] = estimate(recipe, [1], Machine(GPUS["t4"], 1, 8)).faults
    assert "phase1.bf16" in fault and "fp16" in fault


def test_a_source_that_is_not_here_needs_a_number() -> None:
    recipe = recipe_of("org/dataset")
    with refused(UsageError, "data.source", "--rows"):
        estimate(recipe, [1], A6000)
    found = estimate(recipe, [1], A6000, rows=10_000)
    more = estimate(recipe, [1], A6000, rows=100_000)
    assert found.rows[0].disk is not None and more.rows[0].disk == pytest.approx(10 * found.rows[0].disk, rel=0.2)
    assert any("1920 x 1080" in line for line in found.lines)


def test_a_gpu_by_any_spelling_or_a_line_that_lists_them() -> None:
    assert gpu_of("A6000") == gpu_of("rtx a6000") == gpu_of("RTX-A6000") == GPUS["a6000"]
    assert gpu_of("H100") == gpu_of("h100 sxm") and gpu_of("RTX 4090") == gpu_of("4090")
    with refused(UsageError, "h1000", "h100", "a6000"):
        gpu_of("h1000")


def test_the_table_adds_up() -> None:
    rows = [Row("0  decode", None, None, (60.0, 60.0), 10**9), Row("1  train", (5, 9), 4 * 10**9, (60, 3600), 10**8)]
    found = Forecast(rows, checkpoints=10**9, price_per_hour=3)
    assert found.seconds == (120, 3660) and found.disk == 2_100_000_000
    told = list(found.told())
    assert "2.1 GB" in told[-2] and "4.0 GB" in told[-2] and "1 h 01 min" in told[-2]
    assert told[-1].startswith("cost") and "0.10 to 3.05 at 3 an hour" in told[-1]
