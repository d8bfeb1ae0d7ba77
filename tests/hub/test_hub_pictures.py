"""A data set of plain pictures on the Hub is read like a folder, whatever words stand in the names of its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import png_bytes, striped_image
from local_hub import LocalHub

from natix_hf.data.config import DataConfig
from natix_hf.data.sources import load_source

REPO = "lab/street"


@pytest.fixture
def pictures(hub: LocalHub) -> str:
    rng = np.random.default_rng(0)
    names = [f"{name}/{stem}.png" for name in ("none", "roadwork") for stem in ("1", "2", "crash-test-3", "train 4")]
    files = {name: png_bytes(striped_image(int(name.startswith("road")), rng)) for name in names}
    return hub.create(REPO, files | {"notes.txt": b"x"}, kind="dataset")


def test_a_word_for_a_split_in_a_name_is_no_split(
    pictures: str, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    rows = load_source(DataConfig(source=REPO))
    assert len(rows.ids) == 8 and rows.labels.tolist() == [0] * 4 + [1] * 4 and set(rows.given) == {None}
    assert rows.files.found == 10 and set(rows.files.left_out) == {".gitattributes", "notes.txt"}
    hub.fail("drop", "GET", "/api/")
    hub.fail("drop", "GET", "/resolve/")
    assert load_source(DataConfig(source=REPO)).ids == rows.ids, "what was downloaded is read without a connection"
