"""The synthetic street scenes: the same pixels everywhere, no label in the background, the Hub's columns."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from facts import tells
from packaging.version import Version
from PIL import Image

from natix_hf import synthetic
from natix_hf.data.config import DataConfig
from natix_hf.data.sources import load_source
from natix_hf.errors import RecipeError
from natix_hf.synthetic import SyntheticConfig, build_synthetic, label_of, render

SMALL = SyntheticConfig(videos=12, frames=2, image_size=32)


def _pixels(config: SyntheticConfig, video: int, frame: int) -> np.ndarray:
    return np.asarray(render(config, video, frame))


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)


OLD_PILLOW = Version(PIL.__version__) < Version("11.2.1")
# sha256 of the decoded pixels. They change only with a deliberate change of the drawing code or of a pinned library.
CONSTANTS = [
    ("a", 0, 64, 0, 0, "629734b96b43f0e7326b8fd005382d81c5cc298e56839ba1fc5bad77cbc98791"),
    ("b", 0, 64, 0, 0, "c0d1aad26da57241cf9e66e27f06a333dfa8bc910cf9558f003a519273d354cd"),
    ("b", 0, 64, 1, 2, "25f720750532447fb85c36d1f05e1fd2698a5c7f06089c07701bd04e0578f314"),
    ("b", 7, 96, 12, 1, "d7f6420c9750b77e11d21d629febc2a9d39533f6b22dc59d1b179b8f8953b62f"),
    ("a", 3, 32, 1399, 0, "ecae97157eda5f852eea2691c11befdd5ce9ba3698a18cbaddaaf7e269e10343"),
]


@pytest.mark.skipif(OLD_PILLOW, reason="Pillow before 11.2.1 draws some lines otherwise")
@pytest.mark.parametrize(("camera", "seed", "size", "video", "frame", "expected"), CONSTANTS)
def test_pixels_are_the_same_on_every_machine(
    camera: Any, seed: int, size: int, video: int, frame: int, expected: str
) -> None:
    config = SyntheticConfig(camera=camera, seed=seed, image_size=size)
    assert _digest(_pixels(config, video, frame)) == expected


def test_other_pixels_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (synthetic.drawn_otherwise() is None) == (not OLD_PILLOW)
    monkeypatch.setattr(synthetic, "_WITNESS", "of another Pillow")
    (note,) = load_source(DataConfig(source="synthetic", synthetic=SMALL)).notes
    tells(note, f"Pillow {PIL.__version__}", "constraints.txt")


def test_counts_do_not_change_a_frame() -> None:
    few, many = SyntheticConfig(videos=2, frames=1), SyntheticConfig(videos=5000, frames=9)
    for video in (0, 1, 700):
        assert label_of(few, video) == label_of(many, video)
        assert np.array_equal(_pixels(few, video, 1), _pixels(many, video, 1))


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_share_of_positives(share: float) -> None:
    config = SyntheticConfig(positive_share=share)
    assert abs(np.mean([label_of(config, video) for video in range(1400)]) - share) < 0.04


def test_the_label_changes_nothing_but_the_objects() -> None:
    config = SyntheticConfig(camera="a")
    changed = []
    for video in range(40):
        with_roadwork = np.asarray(synthetic._draw(config, video, 0, 1))
        with_standins = np.asarray(synthetic._draw(config, video, 0, 0))
        changed.append(float((with_roadwork != with_standins).any(axis=2).mean()))
    assert np.mean(changed) < 0.2  # all the rest, sensor noise included, is bit for bit the same


def test_dataset_has_the_hubs_columns_and_order() -> None:
    import datasets

    rows = build_synthetic(SMALL)
    assert {name: getattr(kind, "dtype", None) for name, kind in rows.features.items() if name != "image"} == {
        "id": "string",
        "label": "int64",
        "scene_description": "string",
        "video_info.vid_id": "string",
        "video_info.frame_id": "int64",
        "scene_level_tags.daytime": "string",
        "scene_level_tags.weather": "string",
        "scene_level_tags.scene_environment": "string",
        "city_name": "string",
    }
    assert isinstance(rows.features["image"], datasets.Image)
    assert len(rows) == 24 and len(set(rows["id"])) == 24
    labels = list(rows["label"])
    assert labels == sorted(labels) and set(labels) == {0, 1}
    for row in rows:
        camera, video, frame = row["id"].split("-")
        assert (camera, row["video_info.vid_id"], row["video_info.frame_id"]) == ("b", f"b-{video}", int(frame))
        assert row["label"] == label_of(SMALL, int(video)) == int(row["scene_description"] != "")
        assert np.array_equal(np.asarray(row["image"]), _pixels(SMALL, int(video), int(frame)))
    raw = rows.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert Image.open(io.BytesIO(raw["bytes"])).format == "PNG"


def test_cache_is_reused_for_an_equal_config_only(monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_synthetic(SMALL)
    drawn = []
    draw_frame = synthetic.draw_frame

    def counting(*args: Any, **kwargs: Any) -> Image.Image:
        drawn.append(1)
        return draw_frame(*args, **kwargs)

    monkeypatch.setattr(synthetic, "draw_frame", counting)
    again = build_synthetic(SyntheticConfig(videos=12, frames=2, image_size=32))
    assert not drawn and again.cache_files == first.cache_files
    build_synthetic(SyntheticConfig(videos=12, frames=2, image_size=32, seed=1))
    assert len(drawn) == 24
    # New drawing code must not be answered from old pictures.
    monkeypatch.setattr(synthetic, "_drawing_digest", lambda: "another drawing")
    build_synthetic(SMALL)
    assert len(drawn) == 48


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("camera", "c", "a | b"), ("camera", ["a"], "a | b"), ("videos", 1, "at least 2"),
        ("videos", 2.5, "a whole number"), ("frames", 0, "at least 1"), ("image_size", 15, "at least 16"),
        ("image_size", True, "a whole number"), ("seed", -1, "at least 0"),
        ("positive_share", 0, "between 0 and 1"), ("positive_share", 1.0, "between 0 and 1"),
        ("positive_share", float("nan"), "a finite number"), ("positive_share", "half", "a number"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_clear_line(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(RecipeError) as error:
        SyntheticConfig(**{key: value})
    assert tells(error.value, f"data.synthetic.{key} is {value!r}".removesuffix("0"), allowed)


def test_import_is_light() -> None:
    code = (
        "import sys, natix_hf.synthetic as s; s.render(s.SyntheticConfig(), 0, 0);"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
