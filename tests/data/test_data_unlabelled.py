"""Images without labels: any source, nothing of val or test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import striped_image, write_parquet_source
from facts import tells
from refusals import refused

from natix_hf.data.config import DataConfig
from natix_hf.data.rows import ImageData, load_image_data
from natix_hf.data.unlabelled import joined, unlabelled_rows
from natix_hf.errors import DataError


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    source = write_parquet_source(tmp_path / "labelled")
    return load_image_data(DataConfig(source=str(source), group_by="video_info.vid_id"))


def _frames(folder: Path, images: list[Any]) -> str:
    folder.mkdir()
    for i, image in enumerate(images):
        image.save(folder / f"frame-{i}.png")
    return str(folder)


def _new(count: int) -> list[Any]:
    rng = np.random.default_rng(77)
    return [striped_image(0, rng) for _ in range(count)]


def test_a_folder_of_frames_needs_no_labels(data: ImageData, tmp_path: Path) -> None:
    frames = _frames(tmp_path / "drive", _new(5))
    [rows], left_out = unlabelled_rows([frames], data.config, data.splits)
    assert rows.ids == [f"drive:frame-{i}.png" for i in range(5)] and left_out == {}
    train = data.role("train")
    both = joined([train, rows])
    assert both.ids == [*train.ids, *rows.ids]
    assert len(both.decoded) == len(both.source) == len(both)
    assert both.decoded["sha256"][-5:] == rows.decoded["sha256"][:]


@pytest.mark.parametrize("role", ["val_select", "val_calib", "test"])
def test_pictures_of_val_and_test_leave(data: ImageData, tmp_path: Path, role: str) -> None:
    frames = _frames(tmp_path / "drive", [*_new(3), next(iter(data.role(role).images()))])
    [rows], left_out = unlabelled_rows([frames], data.config, data.splits)
    assert rows.ids == ["drive:frame-0.png", "drive:frame-1.png", "drive:frame-2.png"]
    assert list(left_out) == ["drive:frame-3.png"] and tells(left_out["drive:frame-3.png"], data.role(role).ids[0])
    strict = replace(data.config, on_overlap="error")
    facts = "phase4.unlabelled", "drive:frame-3.png", data.role(role).ids[0], "data.on_overlap=drop"
    refused(DataError, lambda: unlabelled_rows([frames], strict, data.splits), *facts)


def test_train_pictures_may_be_there_twice(data: ImageData, tmp_path: Path) -> None:
    frames = _frames(tmp_path / "drive", [next(iter(data.role("train").images()))])
    [rows], left_out = unlabelled_rows([frames], data.config, data.splits)
    assert len(rows) == 1 and left_out == {}


def test_groups_of_test_leave_though_their_pictures_are_new(data: ImageData, tmp_path: Path) -> None:
    """Other frames of the same videos: parquet with the column of groups."""
    other = write_parquet_source(tmp_path / "other", seed=5)
    [rows], left_out = unlabelled_rows([str(other)], data.config, data.splits)
    protected = {g for role in ("val_select", "val_calib", "test") for g in data.role(role).groups.tolist()}
    assert left_out and not {f"group:{g}" for g in rows.groups} & protected
    assert len(rows) + len(left_out) == 120


def test_a_source_of_nothing_new_is_refused_and_one_that_is_not_there(data: ImageData, tmp_path: Path) -> None:
    for source in (_frames(tmp_path / "drive", list(data.role("test").images())), "./nowhere"):
        call = lambda source=source: unlabelled_rows([source], data.config, data.splits)  # noqa: E731
        refused(DataError, call, "phase4.unlabelled", source)


def test_two_folders_of_one_name_keep_their_rows_apart(data: ImageData, tmp_path: Path) -> None:
    for side in ("left", "right"):
        (tmp_path / side).mkdir()
    sources = [_frames(tmp_path / side / "drive", _new(2)) for side in ("left", "right")]
    parts, _ = unlabelled_rows(sources, data.config, data.splits)
    ids = [row_id for rows in parts for row_id in rows.ids]
    assert len(set(ids)) == 4
