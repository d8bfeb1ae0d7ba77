"""Groups of rows: by a column, by a part of the path, or by look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from natix_hf.data.config import DataConfig
from natix_hf.data.reading import reading_of
from natix_hf.data.rows import load_image_data
from natix_hf.data.sources import load_source
from natix_hf.errors import DataError, RecipeError
from natix_hf.section import Section


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf_datasets")


def frames(folder: Path, videos: int = 24, count: int = 4) -> str:
    """Class folders of frames `v<video>_f<frame>.png`. The frames of a video are one picture, slightly brighter."""
    rng = np.random.default_rng(0)
    for video in range(videos):
        name = ("no", "yes")[video % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        first = np.asarray(smooth(rng), dtype=np.int64)
        for frame in range(count):
            picture = Image.fromarray(np.clip(first + 2 * frame, 0, 255).astype(np.uint8))
            picture.save(folder / name / f"v{video:02d}_f{frame}.png")
    return str(folder)


def smooth(rng: np.random.Generator) -> Image.Image:
    """A picture of coarse random patches, which no other resembles."""
    return Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [(r"v\d+", [f"v{v:02d}" for v in range(24)]), (r"/v(\d)(\d)_", [f"{v // 10}/{v % 10}" for v in range(24)])],
)
def test_groups_by_a_pattern(pattern: str, groups: list[str], tmp_path: Path) -> None:
    data = load_image_data(DataConfig(source=frames(tmp_path / "a"), group_by={"pattern": pattern}))
    assert sorted(set(data.rows.groups)) == groups
    role_of = dict(zip(data.splits.groups, data.splits.roles, strict=True))
    assert len(role_of) == 24 and len(data.splits.ids) == 96, "a group stands in one split"
    reading = reading_of(data)
    assert reading["groups"] == {"count": 24, "from": "pattern"} and reading["warnings"] == []


def test_a_pattern_that_is_not_everywhere_is_said(tmp_path: Path) -> None:
    source = frames(tmp_path / "a")
    rows = load_source(DataConfig(source=source, group_by={"pattern": "v0[0-4]"}))
    assert sum(group is None for group in rows.groups) == 19 * 4
    assert any("76 of 96" in note for note in rows.notes)
    nowhere = DataConfig(source=source, group_by={"pattern": "clip"})
    refused(DataError, lambda: load_source(nowhere), "clip", "no path", "v00_f0")
    refused(RecipeError, lambda: DataConfig(group_by={"pattern": "v("}), "data.group_by.pattern", "v(")
    refused(DataError, lambda: load_source(DataConfig(source=source, group_by="video")), "no column 'video'")


def test_pictures_that_look_alike_are_one_group(tmp_path: Path) -> None:
    source = frames(tmp_path / "a")
    apart = load_image_data(DataConfig(source=source))
    told = reading_of(apart)
    assert told["groups"] == {"count": 96, "from": "none"} and told["near_duplicates_across_splits"] > 48
    assert any("look like" in line and "data.group_by" in line for line in told["warnings"])
    together = load_image_data(DataConfig(source=source, group_by="near_duplicates"))
    by_video: dict[str, set[Any]] = {}
    for row_id, role in zip(together.splits.ids, together.splits.roles, strict=True):
        by_video.setdefault(row_id.split("_")[0], set()).add(role)
    assert {len(roles) for roles in by_video.values()} == {1}, "a video stands in one split"
    told = reading_of(together)
    assert told["near_duplicates_across_splits"] == 0 and told["groups"] == {"count": 24, "from": "near_duplicates"}


def test_look_alikes_are_joined_with_the_groups_of_a_source(tmp_path: Path) -> None:
    """The frames of a video show new pictures, but the source says that they belong together."""
    own = frames(tmp_path / "own", videos=20, count=4)
    rng = np.random.default_rng(5)
    for path in sorted(Path(own).rglob("*.png")):
        smooth(rng).save(path)
    other = tmp_path / "other"
    (other / "no").mkdir(parents=True)
    for i, path in enumerate(sorted((Path(own) / "no").glob("v00_*"))[:2]):  # brighter: their videos become one group
        Image.open(path).point(lambda v: min(255, v + 3)).save(other / "no" / f"{i}.png")
    sources = [{"source": own, "group_by": {"pattern": r"v\d+"}}, {"source": str(other)}]
    data = load_image_data(DataConfig(source=sources, group_by="near_duplicates"))
    members: dict[str, set[str]] = {}
    for row_id, group in zip(data.splits.ids, data.splits.groups, strict=True):
        members.setdefault(group, set()).add(row_id.split("_")[0])
    assert len(members) == 20 and {"own:no/v00", "other:no/0.png", "other:no/1.png"} in members.values()
    assert reading_of(data)["groups"] == {"count": 20, "from": "near_duplicates"}


def test_a_group_pattern_is_a_section_that_comes_back(tmp_path: Path) -> None:
    config = DataConfig(group_by={"pattern": "v"})
    assert isinstance(config.group_by, Section) and DataConfig.build(config.mapping()) == config
    assert config.plain()["group_by"] == {"pattern": "v"}
