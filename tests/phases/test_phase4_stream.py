"""Phase 4 on streamed images, with labelled data and without: nothing decoded stays on the disk, all is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import explora_recipe, png_bytes, striped_image
from refusals import refused
from transformers import AutoModel

from natix_hf.data import decode
from natix_hf.data.rows import load_image_data
from natix_hf.errors import DataError, RunError
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import read_json
from natix_hf.recipe import load_recipe
from natix_hf.runs.verify import run_problems

STREAM = {"stream": True, "shuffle_buffer": 16, "use_labeled_data": False}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("drive"), np.random.default_rng(0)
    for number in range(40):
        striped_image(number % 2, rng).save(folder / f"frame{number:03}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("x")
    return folder


def test_frames_alone(tmp_path: Path, frames: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "decode_row", None)  # nothing is decoded into a cache
    recipe = explora_recipe(tmp_path, None, pretrained, **STREAM)
    given = [f"phase4.unlabelled=[{frames}]", "data.on_bad_image=skip", "phase4.dataloader_num_workers=2"]
    run = run_recipe(recipe, [4], tmp_path / "run", overrides=given)
    folder = run / "phase4_explora"
    metrics = read_json(folder / "manifest.json")["metrics"]
    assert metrics["images"] == metrics["unlabelled"] == 40 and metrics["streamed"] is True
    assert metrics["streamed_views"] == 6 * 16 and metrics["unlabelled_left_out"] == 1 and metrics["best_step"] == 6
    told = read_json(folder / "unlabelled.json")
    assert told["streamed"] is True and told["sources"] == [str(frames)] and told["other_files"] == {str(frames): 1}
    assert told["frames"] == {frames.name: 40} and told["views"] == 6 * 16
    assert told["left_out_frames"] == {"unreadable": 1} and list(told["left_out"]) == [f"{frames.name}:bad.png"]
    log = (run / "run.log").read_text(encoding="utf-8")
    assert "frames left out: 1" in log and f"{frames.name}:bad.png" in log and "neither pictures nor tar" in log
    assert AutoModel.from_pretrained(folder / "backbone") and run_problems(run) == []
    before = read_json(folder / "manifest.json")
    run_recipe(recipe, [4], run, overrides=given)  # current: nothing to do
    assert read_json(folder / "manifest.json") == before


def test_a_bad_frame_in_the_middle_is_no_bad_input(
    tmp_path: Path, frames: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training has begun: exit code 1, and the same run goes on."""
    recipe = explora_recipe(tmp_path, None, pretrained, **STREAM)
    given, run = [f"phase4.unlabelled=[{frames}]", "data.on_bad_image=skip"], tmp_path / "run"

    def meets_it(*_: Any, **__: Any) -> None:
        raise DataError("the image drive0:late.png cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr("natix_hf.trainers.self_supervised.ExploraTrainer.train", meets_it)
        facts = "phase4.unlabelled", "drive0:late.png", "same command"
        refused(RunError, lambda: run_recipe(recipe, [4], run, overrides=given), *facts)
    assert (run / "phase4_explora").is_dir() and not (run / "phase4_explora" / "manifest.json").exists()
    run_recipe(recipe, [4], run, overrides=given)
    assert run_problems(run) == []


def test_with_labelled_data(tmp_path: Path, frames: Path, pretrained: Path, parquet_source: Path) -> None:
    """Train rows join, rows of val and test leave, and the probe chooses as ever."""
    recipe = explora_recipe(tmp_path, parquet_source, pretrained, **STREAM)
    data = load_image_data(load_recipe(recipe, [f"phase4.unlabelled=[{frames}]"]).data)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    held: list[Any] = [image for role in ("val_select", "test") for image in data.role(role).images()]
    for number, image in enumerate(held):
        (mixed / f"held{number}.png").write_bytes(png_bytes(image))
    given = [f"phase4.unlabelled=[{frames}, {mixed}]", "data.on_bad_image=skip", "phase4.max_steps=10"]
    run = run_recipe(recipe, [4], tmp_path / "run", overrides=given)
    folder = run / "phase4_explora"
    told, metrics = read_json(folder / "unlabelled.json"), read_json(folder / "manifest.json")["metrics"]
    train = len(data.role("train"))
    assert told["frames"] == {frames.name: 40, "data.source": train} and metrics["images"] == 40 + train
    assert metrics["unlabelled"] == 40
    assert told["left_out_frames"] == {"unreadable": 1, "overlaps": len(held)}
    assert metrics["best_score"] is not None and run_problems(run) == []
