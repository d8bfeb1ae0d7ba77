"""Folders of every kind become rows; what is wrong with a source is one line that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import png_bytes, striped_image, write_parquet_source
from facts import tells
from refusals import refused

from natix_hf.data.config import DataConfig
from natix_hf.data.images import open_image
from natix_hf.data.rows import load_image_data
from natix_hf.data.sources import load_source
from natix_hf.data.splits import ROLES
from natix_hf.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf_datasets")


def table(labels: list[Any], label_type: str = "int64", **columns: list[Any]) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    cells = [{"bytes": png_bytes(striped_image(i % 2, rng)), "path": None} for i in range(len(labels))]
    features = {"image": datasets.Image(), "label": datasets.Value(label_type)}
    features |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict({"image": cells, "label": labels} | columns, datasets.Features(features))


def parquet(folder: Path, data: datasets.Dataset, split: str = "train") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    data.to_parquet(folder / f"{split}.parquet")
    return str(folder)


def parquet_source(folder: Path) -> str:
    return parquet(folder, table([0, 0, 1, 1]))


def image_source(folder: Path, names: tuple[str, ...] = ("none", "roadwork")) -> str:
    rng = np.random.default_rng(0)
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(2):
            striped_image(label, rng).save(folder / name / f"{index}.png")
    return str(folder)


def on_disk(folder: Path, data: Any) -> str:
    data.save_to_disk(str(folder))
    return str(folder)


FOUR = [0, 0, 1, 1]
FOLDERS: dict[str, Callable[[Path], str]] = {
    "parquet": parquet_source, "images": image_source, "disk": lambda f: on_disk(f, table(FOUR)),
    # A format that was set before saving comes back with the dataset: cells would be arrays.
    "formatted disk": lambda f: on_disk(f, table(FOUR).with_format("numpy")),
    "disk with splits": lambda f: on_disk(f, datasets.DatasetDict({"train": table(FOUR)})),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_kind_of_folder_is_a_source(kind: str, tmp_path: Path) -> None:
    rows = load_source(DataConfig(source=FOLDERS[kind](tmp_path / "source")))
    assert rows.labels.tolist() == FOUR and rows.labels.dtype == np.int64
    names = ["none/0.png", "none/1.png", "roadwork/0.png", "roadwork/1.png"]
    assert rows.ids == (names if kind == "images" else [f"train/{i}" for i in range(4)])
    assert rows.groups == [None] * 4 and not any(rows.given) and rows.left_out == {}
    assert {open_image(cell).size for cell in rows.images["image"]} == {(36, 30)}


def test_the_alphabet_does_not_decide_what_is_positive(tmp_path: Path) -> None:
    """`datasets` numbers class folders by the alphabet: roadwork before street would make roadwork 0."""
    source = image_source(tmp_path / "images", ("roadwork", "street", "tunnel"))

    def load(positive: str | None, source: str = source) -> Any:
        return load_source(DataConfig(source=source, positive_class=positive))

    assert load("roadwork").labels.tolist() == [1, 1, 0, 0, 0, 0]
    refused(DataError, lambda: load(None), "roadwork (2), street (2), tunnel (2)", "data.positive_class")
    refused(DataError, lambda: load("rail"), "rail", "roadwork, street, tunnel")
    refused(DataError, lambda: load("roadwork", parquet_source(tmp_path / "numbers")), "roadwork", "0, 1")


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
def test_an_official_test_split_and_dotted_columns(kind: str, tmp_path: Path) -> None:
    source = write_parquet_source(tmp_path / "parquet", groups=4, frames=2, official_test=3)
    if kind == "save_to_disk":
        datasets.load_dataset(str(source)).save_to_disk(str(tmp_path / "disk"))
        source = tmp_path / "disk"
    config = DataConfig(source=str(source), group_by="video_info.vid_id", slices=["scene_level_tags.weather"])
    rows = load_source(config)
    assert rows.given == [None] * 8 + ["test"] * 6
    assert rows.ids == [f"train/{i}" for i in range(8)] + [f"test/{i}" for i in range(6)]
    assert rows.groups == [f"train-{i // 2}" for i in range(8)] + [f"test-{i // 2}" for i in range(6)]
    assert set(rows.columns["scene_level_tags.weather"]) == {"rain", "clear"}


def test_a_source_of_a_test_split_alone_is_divided(tmp_path: Path) -> None:
    rows = load_source(DataConfig(source=parquet(tmp_path, table([0, 1, 0, 1]), split="test")))
    assert rows.ids[0] == "test/0" and not any(rows.given)
    [note] = rows.notes
    tells(note, tmp_path.name, "no train split", "only test", "divided")


def test_null_groups_are_their_rows_own_and_numbers_are_text(tmp_path: Path) -> None:
    source = parquet(tmp_path, table([0, 1, 0], group=["7", None, "7"]))
    assert load_source(DataConfig(source=source, group_by="group")).groups == ["7", None, "7"]
    assert load_source(DataConfig(source=source, group_by="label")).groups == ["0", "1", "0"]


def test_the_label_rule_is_the_validators(tmp_path: Path) -> None:
    texts = ["", " ", None, "a hole", "cones", " ", None]
    source = parquet(tmp_path, table([0, 0, 0, 0, 1, 1, 1], scene_description=texts))
    rows = load_source(DataConfig(source=source, label_rule="scene_description"))
    assert list(rows.left_out) == ["train/3", "train/5", "train/6"]
    assert all(tells(why, f"label {label}") for why, label in zip(rows.left_out.values(), (0, 1, 1), strict=True))
    assert load_source(DataConfig(source=source)).left_out == {}


def _damaged(folder: Path) -> str:
    """A parquet file whose footer is whole and whose data pages are not: found when it is read, not when opened."""
    source = parquet(folder, table([0, 1] * 40))
    file = folder / "train.parquet"
    content = bytearray(file.read_bytes())
    content[4:-2000] = b"\xff" * (len(content) - 2004)
    file.write_bytes(content)
    return source


def _classes(labels: list[int]) -> datasets.Dataset:
    return table(labels).cast_column("label", datasets.ClassLabel(names=["none", "roadwork"]))


def _mixed(folder: Path) -> str:
    return on_disk(folder, datasets.DatasetDict({"train": table([0, 1]), "test": _classes([0, 1])}))


def _two_schemas(folder: Path) -> str:
    """Found while `datasets` writes its cache, which raises an error of its own kind."""
    parquet(folder, table([0, 1]), split="train-00000-of-00002")
    return parquet(folder, table([0, 1], other=["a", "b"]), split="train-00001-of-00002")


WRONG: dict[str, tuple[Callable[[Path], str], dict[str, Any], list[str]]] = {
    "no folder": (str, {}, ["source", "data.source"]),
    "no relative folder": (lambda f: "photos", {}, ["photos"]),
    "a file": (lambda f: __file__, {}, ["test_data_sources"]),
    "empty folder": (lambda f: (f.mkdir(), str(f))[1], {}, ["source"]),
    "no rows in parquet": (lambda f: parquet(f, table([0]).select([])), {}, ["source"]),
    "no rows in save_to_disk": (lambda f: on_disk(f, table([0]).select([])), {}, ["source"]),
    "damaged parquet": (_damaged, {}, ["source"]),
    "files do not fit": (_two_schemas, {}, ["source"]),
    "splits do not fit": (_mixed, {}, ["none (1)", "0 (1)", "data.positive_class"]),
    "no image column": (parquet_source, {"image_column": "photo"}, ["'photo'", "image, label"]),
    "no label column": (parquet_source, {"label_column": "y"}, ["'y'"]),
    "no group column": (parquet_source, {"group_by": "video.id"}, ["'video.id'"]),
    "no slice column": (parquet_source, {"slices": ["weather"]}, ["'weather'"]),
    "no description": (parquet_source, {"label_rule": "scene_description"}, ["'scene_description'"]),
    "three labels": (lambda f: parquet(f, table([0, 1, 2])), {}, ["0 (1), 1 (1), 2 (1)", "data.positive_class"]),
    "label null": (lambda f: parquet(f, table([0, None, 1])), {}, ["train/1", "no label"]),
    "no label at all": (lambda f: parquet(f, table([None, None])), {}, ["source", "'label'"]),
    "label a half": (lambda f: parquet(f, table([0.5, 1], "float64")), {}, ["train/0", "label 0.5"]),
    "-1 for no": (lambda f: parquet(f, table([-1, 1, -1])), {}, ["1 (1)", "2 rows", "negative", "write 0"]),
    "-1 alone": (lambda f: parquet(f, table([-1, -1])), {}, ["source", "no row with a label", "-1"]),
    "one label": (lambda f: parquet(f, table([1, 1, 1])), {}, ["one class only", "1 (3)"]),
    "not images": (parquet_source, {"image_column": "label"}, ["'label'", "images"]),
    "a revision of a folder": (parquet_source, {"revision": "main"}, ["data.revision", "Hub", "source"]),
}


@pytest.mark.parametrize("make", [table, lambda labels: _classes(labels)], ids=["numbers", "ClassLabel"])
def test_rows_that_are_marked_as_unlabelled_are_left_out_with_a_line(make: Any, tmp_path: Path) -> None:
    """-1 is what `datasets` stores for no label. An empty cell is an error: somebody forgot it."""
    rows = load_source(DataConfig(source=parquet(tmp_path, make([0, 1, -1, 0, 1]))))
    assert rows.labels.tolist() == [0, 1, -1, 0, 1] and list(rows.left_out) == ["train/2"]
    assert tells(rows.left_out["train/2"], "unlabelled", "-1") and any("1 rows" in note for note in rows.notes)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_source_is_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    make, settings, facts = WRONG[case]
    source = make(tmp_path / "source")
    refused(DataError, lambda: load_source(DataConfig(source=source, **settings)), *facts)


def test_a_source_that_lost_a_row_does_not_fit_its_splits(tmp_path: Path) -> None:
    data = load_image_data(DataConfig(source=parquet(tmp_path / "a", table([0, 1] * 10))))
    shorter = DataConfig(source=parquet(tmp_path / "b", table([0, 1] * 9)))
    refused(DataError, lambda: load_image_data(shorter, data.splits), "row train/1", "splits.json", "new run")


def test_rows_of_a_role_are_aligned(tmp_path: Path) -> None:
    """Ids, labels, groups, originals, copies and columns of one position belong to one row of the source."""
    source = write_parquet_source(tmp_path, groups=20, frames=2)
    weather = "scene_level_tags.weather"
    data = load_image_data(DataConfig(source=str(source), group_by="video_info.vid_id", slices=["id", weather]))
    [original_rows] = datasets.load_dataset(str(source)).values()
    seen: list[str] = []
    for name in ROLES:
        rows = data.role(name)
        seen += rows.ids
        for at, (row_id, image) in enumerate(zip(rows.ids, rows.images(), strict=True)):
            original = original_rows.cast_column("image", datasets.Image(decode=False))[int(row_id.split("/")[1])]
            assert open_image(original["image"]).tobytes() == image.tobytes() == rows.decoded[at]["pixels"]
            assert original["label"] == rows.labels[at]
            assert f"group:{original['video_info.vid_id']}" == rows.groups[at]
            assert original["id"] == rows.columns["id"][at] and original[weather] == rows.columns[weather][at]
    assert sorted(seen) == sorted(data.rows.ids)
