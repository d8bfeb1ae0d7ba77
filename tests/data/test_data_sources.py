"""Folders of every kind become rows; what is wrong with a source is one line that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import png_bytes, striped_image, write_parquet_source

from natix_hf.data.config import DataConfig
from natix_hf.data.images import open_image
from natix_hf.data.rows import load_image_data
from natix_hf.data.sources import load_source
from natix_hf.data.splits import ROLES
from natix_hf.data.synthetic import SyntheticConfig
from natix_hf.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf_datasets")


def table(labels: list[Any], label_type: str = "int64", **columns: list[Any]) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    cells = [{"bytes": png_bytes(striped_image(i % 2, rng)), "path": None} for i in range(len(labels))]
    features = {"image": datasets.Image(), "label": datasets.Value(label_type)}
    features |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(
        {"image": cells, "label": labels, **columns}, features=datasets.Features(features)
    )


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


def disk_source(folder: Path) -> str:
    table([0, 0, 1, 1]).save_to_disk(str(folder))
    return str(folder)


def formatted_disk_source(folder: Path) -> str:
    """A format that was set before saving comes back with the dataset: cells would be arrays."""
    table([0, 0, 1, 1]).with_format("numpy").save_to_disk(str(folder))
    return str(folder)


def disk_dict_source(folder: Path) -> str:
    datasets.DatasetDict({"train": table([0, 0, 1, 1])}).save_to_disk(str(folder))
    return str(folder)


@pytest.mark.parametrize(
    "make", [parquet_source, image_source, disk_source, formatted_disk_source, disk_dict_source]
)
def test_every_kind_of_folder_is_a_source(make: Callable[[Path], str], tmp_path: Path) -> None:
    config = DataConfig(source=make(tmp_path / "source"))
    rows = load_source(config)
    assert rows.labels.tolist() == [0, 0, 1, 1] and rows.labels.dtype == np.int64
    assert rows.ids == ["train/0", "train/1", "train/2", "train/3"], "the ids are the rows' places in their split"
    assert load_source(config).ids == rows.ids
    assert rows.groups == [None] * 4 and not rows.official_test.any() and rows.left_out == {}
    images = [open_image(cell) for cell in rows.dataset["image"]]
    assert {image.size for image in images} == {(36, 30)}


def test_the_alphabet_does_not_decide_what_is_positive(tmp_path: Path) -> None:
    """`datasets` numbers class folders by the alphabet: roadwork before street would make roadwork 0."""
    source = image_source(tmp_path / "images", ("roadwork", "street", "tunnel"))
    with pytest.raises(DataError, match=r"the classes are roadwork, street, tunnel: set data\.positive_class"):
        load_source(DataConfig(source=source))
    rows = load_source(DataConfig(source=source, positive_class="roadwork"))
    assert rows.labels.tolist() == [1, 1, 0, 0, 0, 0]
    with pytest.raises(DataError, match="'rail' is none of the classes"):
        load_source(DataConfig(source=source, positive_class="rail"))
    with pytest.raises(DataError, match="'label' holds int64 values"):
        load_source(DataConfig(source=parquet_source(tmp_path / "numbers"), positive_class="roadwork"))


def test_a_class_label_without_a_label_is_no_no(tmp_path: Path) -> None:
    """`datasets` keeps -1 for a missing class."""
    names = datasets.ClassLabel(names=["none", "roadwork"])
    data = table([0, 1, -1]).cast_column("label", names)
    with pytest.raises(DataError, match=r"row train/2 .* has label None"):
        load_source(DataConfig(source=parquet(tmp_path, data)))


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.revision is for a dataset on the Hub"):
        load_source(DataConfig(source=parquet_source(tmp_path), revision="main"))


def test_the_synthetic_source() -> None:
    config = DataConfig(synthetic=SyntheticConfig(videos=6, frames=2, image_size=16), group_by="video_info.vid_id")
    rows = load_source(config)
    assert len(rows.ids) == len(set(rows.ids)) == 12
    assert len(set(rows.groups)) == 6


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
def test_an_official_test_split_and_dotted_columns(kind: str, tmp_path: Path) -> None:
    source = write_parquet_source(tmp_path / "parquet", groups=4, frames=2, official_test=3)
    if kind == "save_to_disk":
        datasets.load_dataset(str(source)).save_to_disk(str(tmp_path / "disk"))
        source = tmp_path / "disk"
    config = DataConfig(source=str(source), group_by="video_info.vid_id", slices=["scene_level_tags.weather"])
    rows = load_source(config)
    assert rows.official_test.tolist() == [False] * 8 + [True] * 6
    assert rows.ids == [f"train/{i}" for i in range(8)] + [f"test/{i}" for i in range(6)]
    assert rows.groups == [f"train-{i // 2}" for i in range(8)] + [f"test-{i // 2}" for i in range(6)]
    assert set(rows.dataset["scene_level_tags.weather"]) == {"rain", "clear"}


def test_a_source_of_a_test_split_alone_is_divided(tmp_path: Path) -> None:
    rows = load_source(DataConfig(source=parquet(tmp_path, table([0, 1, 0, 1]), split="test")))
    assert rows.ids[0] == "test/0" and not rows.official_test.any()


def test_null_groups_are_their_rows_own_and_numbers_are_text(tmp_path: Path) -> None:
    source = parquet(tmp_path, table([0, 1, 0], group=["7", None, "7"]))
    assert load_source(DataConfig(source=source, group_by="group")).groups == ["7", None, "7"]
    assert load_source(DataConfig(source=source, group_by="label")).groups == ["0", "1", "0"]


def test_the_label_rule_is_the_validators(tmp_path: Path) -> None:
    texts = ["", " ", None, "a hole", "cones", " ", None]
    source = parquet(tmp_path, table([0, 0, 0, 0, 1, 1, 1], scene_description=texts))
    rows = load_source(DataConfig(source=source, label_rule="scene_description"))
    assert rows.left_out == {
        "train/3": "label 0 with a scene description",
        "train/5": "label 1 without a scene description",
        "train/6": "label 1 without a scene description",
    }
    assert load_source(DataConfig(source=source)).left_out == {}


def _damaged(folder: Path) -> str:
    """A parquet file whose footer is whole and whose data pages are not: found when it is read, not when opened."""
    source = parquet(folder, table([0, 1] * 40))
    file = folder / "train.parquet"
    content = bytearray(file.read_bytes())
    content[4:-2000] = b"\xff" * (len(content) - 2004)
    file.write_bytes(content)
    return source


def _mixed(folder: Path) -> str:
    data = table([0, 1])
    renamed = data.cast_column("label", datasets.ClassLabel(names=["none", "roadwork"]))
    datasets.DatasetDict({"train": data, "test": renamed}).save_to_disk(str(folder))
    return str(folder)


def _two_schemas(folder: Path) -> str:
    """Found while `datasets` writes its cache, which raises an error of its own kind."""
    parquet(folder, table([0, 1]), split="train-00000-of-00002")
    return parquet(folder, table([0, 1], other=["a", "b"]), split="train-00001-of-00002")


def _empty_folder(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


def _empty_disk(folder: Path) -> str:
    table([0]).select([]).save_to_disk(str(folder))
    return str(folder)


WRONG: dict[str, tuple[Callable[[Path], str], dict[str, Any], str]] = {
    "no folder": (lambda f: str(f), {}, "there is no folder .*source"),
    "no relative folder": (lambda f: "photos", {}, "there is no folder photos"),
    "a file": (lambda f: __file__, {}, "there is no folder .*test_data_sources"),
    "empty folder": (_empty_folder, {}, "source cannot be loaded"),
    "no rows in parquet": (lambda f: parquet(f, table([0]).select([])), {}, "source"),
    "no rows in save_to_disk": (_empty_disk, {}, "source cannot be loaded"),
    "damaged parquet": (_damaged, {}, "source cannot be loaded"),
    "files do not fit": (_two_schemas, {}, "source cannot be loaded"),
    "splits do not fit": (_mixed, {}, "train, test of .* do not have the same columns"),
    "no image column": (parquet_source, {"image_column": "photo"}, "no column 'photo': it has image, label"),
    "no label column": (parquet_source, {"label_column": "y"}, "no column 'y'"),
    "no group column": (parquet_source, {"group_by": "video.id"}, "no column 'video.id'"),
    "no slice column": (parquet_source, {"slices": ["weather"]}, "no column 'weather'"),
    "no description": (parquet_source, {"label_rule": "scene_description"}, "no column 'scene_description'"),
    "label 2": (lambda f: parquet(f, table([0, 1, 2])), {}, "row train/2 of .* has label 2"),
    "label -1": (lambda f: parquet(f, table([0, -1])), {}, "row train/1 of .* has label -1"),
    "label null": (lambda f: parquet(f, table([0, None])), {}, "row train/1 of .* has label None"),
    "label text": (lambda f: parquet(f, table(["0", "1"], "string")), {}, "row train/0 of .* has label '0'"),
    "label a half": (lambda f: parquet(f, table([0.5, 1], "float64")), {}, "row train/0 of .* has label 0.5"),
    "not images": (parquet_source, {"image_column": "label"}, "column 'label' of .* does not hold images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_source_is_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    make, settings, expected = WRONG[case]
    with pytest.raises(DataError, match=expected) as caught:
        load_source(DataConfig(source=make(tmp_path / "source"), **settings))
    assert "\n" not in str(caught.value)


def test_a_source_that_lost_a_row_does_not_fit_its_splits(tmp_path: Path) -> None:
    data = load_image_data(DataConfig(source=parquet(tmp_path / "a", table([0, 1] * 10))))
    shorter = DataConfig(source=parquet(tmp_path / "b", table([0, 1] * 9)))
    with pytest.raises(DataError, match=r"lacks row train/1[89] of splits.json"):
        load_image_data(shorter, data.splits)


def test_rows_of_a_role_are_aligned(tmp_path: Path) -> None:
    """Ids, labels, groups, originals, copies and columns of one position belong to one row of the source."""
    source = write_parquet_source(tmp_path, groups=20, frames=2)
    data = load_image_data(DataConfig(source=str(source), group_by="video_info.vid_id"))
    seen: list[str] = []
    for name in ROLES:
        rows = data.role(name)
        seen += rows.ids
        for at, (row_id, image) in enumerate(zip(rows.ids, rows.images(), strict=True)):
            original = data.rows.dataset[data.rows.ids.index(row_id)]
            assert open_image(original["image"]).tobytes() == image.tobytes() == rows.decoded[at]["pixels"]
            assert original["label"] == rows.labels[at]
            assert f"group:{original['video_info.vid_id']}" == rows.groups[at]
            assert original["id"] == rows.column("id")[at]
    assert sorted(seen) == sorted(data.rows.ids)
