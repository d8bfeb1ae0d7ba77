"""A source of which every picture is a yes: if annotations mark objects, only the pictures that show one are rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import striped_image
from refusals import refused

from natix_hf.data.config import SourceConfig
from natix_hf.data.part import Part, read_part
from natix_hf.data.sources import DataConfig
from natix_hf.errors import DataError


def coco(folder: Path, marks: dict[str, list[int]], name: str = "instances_val_gps_split.json") -> Path:
    """Pictures 0.png to 4.png and a COCO file about some of them."""
    folder.mkdir(parents=True)
    for i in range(5):
        striped_image(1, np.random.default_rng(i)).save(folder / f"{i}.png")
    whole: dict[str, Any] = {"categories": [{"id": 1, "name": "Cone"}, {"id": 2, "name": "Worker"}]}
    whole["images"] = [{"id": i, "file_name": f"{picture}.png"} for i, picture in enumerate(marks)]
    pairs = [(i, kind) for i, kinds in enumerate(marks.values()) for kind in kinds]
    whole["annotations"] = [{"id": n, "image_id": i, "category_id": kind} for n, (i, kind) in enumerate(pairs)]
    (folder / name).write_text(json.dumps(whole), encoding="utf-8")
    return folder


def read(folder: Path, label: Any) -> Part:
    source = SourceConfig(source=str(folder), name="x", label=label, image_column="image", label_column="label")
    return read_part(source, DataConfig())


def test_what_is_marked_is_a_row(tmp_path: Path) -> None:
    part = read(coco(tmp_path / "a", {"0": [1, 2, 1], "1": [], "3": [2]}), "yes")
    assert part.ids == ["0.png", "3.png"] and part.splits == [None, None], "a split of one label divides nothing"
    assert set(part.left_out) == {"1.png", "2.png", "4.png"} and (part.found, part.used) == (6, 3)
    assert "nothing" in part.left_out["1.png"]
    assert part.left_out["2.png"] == part.left_out["4.png"] != part.left_out["1.png"]
    assert "COCO" in part.labels_from


@pytest.mark.parametrize("label", ["no", "yes"])
def test_without_marks_every_picture_is_a_row(label: str, tmp_path: Path) -> None:
    folder = coco(tmp_path / "a", {"0": [1]})
    if label == "yes":
        (folder / "instances_val_gps_split.json").write_text('{"camera": 3}', encoding="utf-8")
    part = read(folder, label)
    assert len(part.ids) == 5 and (part.found, part.used) == (6, 5)


def test_annotations_that_mark_nothing_are_refused(tmp_path: Path) -> None:
    folder = coco(tmp_path / "a", {"0": [], "1": []})
    refused(DataError, lambda: read(folder, "yes"), "COCO", folder)
