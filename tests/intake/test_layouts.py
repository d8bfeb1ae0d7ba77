"""Situations that people report: each is read as they mean it, or refused in one line with a way out."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from facts import tells
from PIL import Image
from refusals import refused

from natix_hf.data.config import DataConfig, SourceConfig
from natix_hf.data.reading import reading_of
from natix_hf.data.rows import load_image_data
from natix_hf.data.sources import SourceRows, load_source, load_unlabelled
from natix_hf.errors import DataError, RecipeError

CLASSES = ("none", "roadwork")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf_datasets")


_seed = iter(range(1_000_000))


def picture() -> bytes:
    """A small picture unlike all others."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(next(_seed)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def put(folder: Path, *names: str, **texts: str) -> Path:
    """Write pictures, and texts under names in which `__` stands for a dot."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture())
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def in_folders(*folders: str, count: int = 2) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(count)]


def archive(path: Path, *names: str, **texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: picture() for name in names} | {k.replace("__", "."): v.encode() for k, v in texts.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, data in content.items():
                packed.writestr(name, data)
    else:
        with tarfile.open(path, "w") as tar:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def table(rows: dict[str, Any], column: str = "file_name", name: str = "label") -> str:
    return f"{column},{name}\n" + "".join(f"{key},{value}\n" for key, value in rows.items())


def read(source: Path | str, **keys: Any) -> SourceRows:
    rows = load_source(DataConfig(source=str(source), **keys))
    assert rows.files.found == rows.files.used + len(rows.files.left_out)
    return rows


def counts(rows: SourceRows) -> dict[tuple[str, int], int]:
    return dict(Counter(zip(rows.classes, rows.labels.tolist(), strict=True)))


def roles(rows: SourceRows) -> dict[str | None, int]:
    return dict(Counter(rows.given))


def by_id(rows: SourceRows) -> dict[str, int]:
    return dict(zip(rows.ids, rows.labels.tolist(), strict=True))


# class folders and splits


def test_folders_beside_splits(tmp_path: Path) -> None:
    put(tmp_path, *in_folders("train/none", "train/roadwork", "test/none", "test/roadwork"), "assets/logo.png")
    refused(DataError, lambda: read(tmp_path), "assets (1), none (4), roadwork (4)", "data.exclude_classes")
    rows = read(tmp_path, exclude_classes=["assets"])
    assert roles(rows) == {None: 5, "test": 4} and list(rows.left_out) == ["assets/logo.png"]


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    put(tmp_path / "a", *in_folders("train", "car", "bus"))
    assert counts(read(tmp_path / "a", positive_class="Train")) == {("bus", 0): 2, ("car", 0): 2, ("train", 1): 2}
    refused(DataError, lambda: read(tmp_path / "a"), "bus (2), car (2), train (2)")
    put(tmp_path / "b", *in_folders("test/day", "control/day"))
    assert counts(read(tmp_path / "b", positive_class="test")) == {("control", 0): 2, ("test", 1): 2}
    put(tmp_path / "c", *in_folders("none/train", "none/test", "roadwork/train", "roadwork/test"))
    rows = read(tmp_path / "c")
    assert roles(rows) == {None: 4, "test": 4} and counts(rows) == {("none", 0): 4, ("roadwork", 1): 4}


def test_a_negation_is_plain(tmp_path: Path) -> None:
    """`no` is a part of `not`."""
    for no, yes in (("not_cracked", "cracked"), ("No Cracks", "cracks"), ("nontest", "test"), ("no_table", "table")):
        rows = read(put(tmp_path / no, *in_folders(no, yes)))
        assert counts(rows) == {(no, 0): 2, (yes, 1): 2}


@pytest.mark.parametrize("folder", ["training_set", "Train2017", "train images", "TRAINSET", "train-data"])
def test_longer_names_of_splits(folder: str, tmp_path: Path) -> None:
    other = folder.lower().replace("training", "test").replace("train", "test")
    put(tmp_path, *in_folders(*(f"{split}/{name}" for split in (folder, other) for name in CLASSES)))
    assert roles(read(tmp_path)) == {None: 4, "test": 4}


def test_folders_around_everything(tmp_path: Path) -> None:
    inner = in_folders(*(f"repo-main/data/{name}" for name in CLASSES))
    rows = read(archive(tmp_path / "x.zip", *inner, "repo-main/logo.png"))
    assert counts(rows) == {("none", 0): 2, ("roadwork", 1): 2}
    assert rows.files.left_out == {"x.zip/repo-main/logo.png": "in no class folder"}
    odd = archive(tmp_path / "y.zip", *in_folders("photos/street", "photos/works"))
    refused(DataError, lambda: read(odd), "one class only", "photos (4)", "data.positive_class")
    assert counts(read(odd, positive_class="works")) == {("street", 0): 2, ("works", 1): 2}


def test_dates_around_classes_are_refused(tmp_path: Path) -> None:
    put(tmp_path, *in_folders(*(f"2024-01-0{day}/{name}" for day in (1, 2) for name in CLASSES)))
    refused(DataError, lambda: read(tmp_path), "2024-01-01 (4), 2024-01-02 (4)")
    refused(DataError, lambda: read(tmp_path, positive_class="roadwork"), "'roadwork'", "2024-01-01, 2024-01-02")


def test_what_one_class_only_is_for_want_of(tmp_path: Path) -> None:
    put(tmp_path, *in_folders("none"))
    (tmp_path / "roadwork").mkdir()
    for number in range(9):
        (tmp_path / "roadwork" / f"IMG_{number}.CR2").write_bytes(b"raw")
    refused(DataError, lambda: read(tmp_path), "one class only", "9 x a camera's raw file")


def test_links_that_lead_to_themselves(tmp_path: Path) -> None:
    put(tmp_path, *in_folders(*CLASSES))
    for name, target in (("loop", "loop"), ("none/up", ".."), ("none/a.png", "b.png"), ("none/b.png", "a.png")):
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "none" / "pipe.png")
    rows = read(tmp_path)
    assert len(rows.ids) == 4 and set(rows.files.left_out) == {"loop", "none/up", "none/a.png", "none/b.png",
                                                               "none/pipe.png"}  # fmt: skip
    refused(DataError, lambda: read(tmp_path / "none" / "pipe.png"), "pipe.png", "regular file")


def test_a_folder_called_tilde_is_not_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "~", *in_folders(*CLASSES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(put(tmp_path / "home", *in_folders(*CLASSES, count=3))))
    assert (len(read("./~").ids), len(read("~").ids)) == (4, 6)


def test_names_with_line_breaks_give_one_line(tmp_path: Path) -> None:
    put(tmp_path, *in_folders("no\npe", "ye\nah"))
    refused(DataError, lambda: read(tmp_path), "no\\npe (2)", "data.positive_class")


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    put(tmp_path, *in_folders(*CLASSES))
    for name in (b"none/\xff.png", b"roadwork/\xfe/0.png"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture())
    rows = read(tmp_path)
    assert len(rows.ids) == 4 and set(rows.files.left_out) == {"none/\\xff.png", "roadwork/\\xfe/0.png"}
    refused(RecipeError, lambda: read(path.parent), "udcfe", "rename it")


# archives


def test_archives_with_dots_in_their_names_keep_apart(tmp_path: Path) -> None:
    for name in ("no.works", "no", "v1.2"):
        archive(tmp_path / f"{name}.zip", "0.png")
    assert counts(read(tmp_path, positive_class="v1.2")) == {("no.works", 0): 1, ("no", 0): 1, ("v1.2", 1): 1}


def test_archives_that_hold_files_of_one_name(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        archive(tmp_path / name, *in_folders(*CLASSES))
    rows = read(tmp_path)
    assert len(set(rows.ids)) == 8 and counts(rows) == {("none", 0): 4, ("roadwork", 1): 4}
    assert len({cell["bytes"] for cell in rows.images["image"]}) == 8


def test_archives_of_classes_and_of_splits(tmp_path: Path) -> None:
    for name in CLASSES:
        archive(tmp_path / "a" / f"{name}.zip", "0.png", "1.png")
        archive(tmp_path / "b" / name / "more.zip", "x/0.png", "1.png")
    for split in ("train", "test"):
        archive(tmp_path / "c" / f"{split}.zip", *in_folders(*CLASSES))
    for folder in "abc":
        assert {label for _, label in counts(read(tmp_path / folder))} == {0, 1}
    assert roles(read(tmp_path / "c")) == {None: 4, "test": 4}
    archive(tmp_path / "b" / "more.tar", *in_folders(*CLASSES), more__zip="an archive in it")
    assert read(tmp_path / "b").files.left_out == {"more.tar/more.zip": "an archive inside an archive: unpack it"}


def test_an_archive_beside_unpacked_pictures_is_named(tmp_path: Path) -> None:
    put(tmp_path, *in_folders(*CLASSES))
    archive(tmp_path / "photos.zip", "none/0.png")
    tells(read(tmp_path).files.left_out["photos.zip"], "unpack")


@pytest.mark.parametrize("inside", ["", "x/"])
def test_shards_of_one_data_set(inside: str, tmp_path: Path) -> None:
    """Each holds files of the same names. Their own names are no classes, but may be those of splits."""
    shards = ["train-0000", "train-0001", "val-0000"] if not inside else ["a", "b", "c"]
    meant = {}
    for number, shard in enumerate(shards):
        names = [f"{inside}{i:03}" for i in range(6)]
        labels = {f"{name}__cls": str((i + number) % 2) for i, name in enumerate(names)}
        archive(tmp_path / f"{shard}.tar", *(f"{name}.png" for name in names), **labels)
        meant |= {f"{shard}.tar/{name}.png": (i + number) % 2 for i, name in enumerate(names)}
    rows = read(tmp_path)
    assert by_id(rows) == meant
    assert roles(rows) == ({None: 18} if inside else {None: 12, "val_select": 6})
    refused(DataError, lambda: read(tmp_path, label_column="answer"), "'answer'", "cls", "data.label_column")


def test_annotations_in_an_archive_are_those_of_its_folder(tmp_path: Path) -> None:
    """Text and JSON files beside pictures are no samples of a WebDataset if they hold no labels."""
    notes = {f"x/{i}__json": json.dumps({"shapes": [{"label": "cone"}] * (i % 2), "imagePath": f"{i}.png"})
             for i in range(6)}  # fmt: skip
    names = [f"x/{i}.png" for i in range(6)]
    (tmp_path / "a" / "x").mkdir(parents=True)
    in_folder, in_zip = put(tmp_path / "a", *names, **notes), archive(tmp_path / "a.zip", *names, **notes)
    assert by_id(read(in_folder)) == {f"x/{i}.png": i % 2 for i in range(6)}
    assert by_id(read(in_zip)) == {f"a.zip/x/{i}.png": i % 2 for i in range(6)}


# tables


TWELVE = {f"img/{i}.png": i % 2 for i in range(12)}


def test_a_table_is_a_source(tmp_path: Path) -> None:
    put(tmp_path, *TWELVE, "img/other.png", "elsewhere/0.png", labels__csv=table(TWELVE))
    put(tmp_path, far__csv=table({f"C:\\Users\\me\\{name.replace('/', chr(92))}": v for name, v in TWELVE.items()}))
    for name in ("labels.csv", "far.csv"):
        rows = read(tmp_path / name)
        assert by_id(rows) == TWELVE and (rows.files.found, rows.files.left_out) == (13, {})


def test_a_table_is_a_source_of_pictures_alone(tmp_path: Path) -> None:
    text = "file,label,class\n" + "".join(f"{name},x,y\n" for name in TWELVE)
    put(tmp_path, *TWELVE, "img/other.png", list__csv=text)
    part = load_unlabelled(str(tmp_path / "list.csv"), DataConfig(source=None))
    assert part.ids == sorted(TWELVE, key=list(TWELVE).index) and (part.found, part.used) == (13, 13)
    yes = SourceConfig(source=str(tmp_path / "list.csv"), label="yes", role="train")
    own = put(tmp_path / "own", *in_folders(*CLASSES))
    assert load_source(DataConfig(source=[str(own), yes])).labels.tolist() == [0, 0, 1, 1] + [1] * 12


@pytest.mark.parametrize("name", ["train__txt", "labels__json", "labels__xlsx"])
def test_what_gives_no_labels_is_not_taken_for_one_class(name: str, tmp_path: Path) -> None:
    put(tmp_path, *TWELVE, **{name: "[]"})
    refused(DataError, lambda: read(tmp_path), "12 pictures", "csv", *(["labels.xlsx"] if "xlsx" in name else []))


def test_labels_in_a_table(tmp_path: Path) -> None:
    put(tmp_path, *TWELVE)
    for no, yes in (("0.0", "1.0"), ("False", "TRUE"), ("no", "Yes"), ("0", "1")):
        put(tmp_path, labels__csv=table({name: (no, yes)[label] for name, label in TWELVE.items()}))
        assert by_id(read(tmp_path)) == TWELVE
        assert by_id(read(tmp_path, positive_class=yes.lower())) == TWELVE
    put(tmp_path, labels__csv=table(TWELVE | {"img/2.png": -1}))
    rows = read(tmp_path)
    assert list(rows.left_out) == ["img/2.png"] and tells(" ".join(rows.notes), "1 rows", "-1")
    for value in ("", "nan", "NaN"):
        put(tmp_path, labels__csv=table(TWELVE | {"img/2.png": value}))
        refused(DataError, lambda: read(tmp_path, positive_class="1"), "1 of 12 rows", "labels.csv line 4")


def test_what_was_typed_is_not_replaced(tmp_path: Path) -> None:
    """A column of another usual name is taken only where data.label_column was left alone."""
    put(tmp_path, *TWELVE, labels__csv=table(TWELVE, name="class"))
    assert by_id(read(tmp_path)) == TWELVE
    refused(DataError, lambda: read(tmp_path, label_column="klass"), "'klass'", "class", "data.label_column")
    put(tmp_path, labels__csv=table(TWELVE, name="is_roadwork"))
    assert by_id(read(tmp_path, label_column="is_roadwork")) == TWELVE
    put(tmp_path, labels__csv="file,a,b\n" + "".join(f"{name},x,{label}\n" for name, label in TWELVE.items()))
    refused(DataError, lambda: read(tmp_path), "'label'", "a, b", "data.label_column")


def test_a_picture_in_two_splits_counts_for_the_more_protected_one(tmp_path: Path) -> None:
    split = {"train": list(TWELVE)[:10], "test": list(TWELVE)[6:], "val": list(TWELVE)[9:10]}
    put(tmp_path, *TWELVE, **{f"{name}__csv": table({n: TWELVE[n] for n in names}) for name, names in split.items()})
    rows = read(tmp_path)
    assert [name for name, role in zip(rows.ids, rows.given, strict=True) if role == "test"] == sorted(split["test"])
    tells(" ".join(rows.notes), "in two splits", "img/6.png")


def test_a_column_of_splits_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    text = "file,label,split\n" + "".join(f"{n},{v},{'holdout' if v else 'train'}\n" for n, v in TWELVE.items())
    rows = read(put(tmp_path, *TWELVE, labels__csv=text))
    assert roles(rows) == {None: 12} and tells(" ".join(rows.notes), "'split'", "6 values", "'holdout'")


@pytest.mark.parametrize(
    "text",
    ["file_name,class,category\n{},1,x\n", "file_name,night,rain\n{},1,1\n", "file_name,label\n{},0.5\n",
     "file_name,label\n{},\"x\n", "time,level\n1,INFO\n2,INFO\n", "", "\0\0"],
)  # fmt: skip
def test_no_table_keeps_class_folders_from_being_read(text: str, tmp_path: Path) -> None:
    put(tmp_path, *in_folders(*CLASSES), metadata__csv=text.format("none/0.png"))
    assert counts(read(tmp_path)) == {("none", 0): 2, ("roadwork", 1): 2}


def test_plain_labels_of_a_table_win_over_folders_that_say_nothing(tmp_path: Path) -> None:
    names = in_folders("camera 1", "camera 2")
    rows = read(put(tmp_path, *names, l__csv=table({name: int("2/" in name) for name in names})))
    assert counts(rows) == {("0", 0): 2, ("1", 1): 2}


def test_kaggles_sample_submission_gives_no_labels(tmp_path: Path) -> None:
    put(tmp_path, *in_folders("train", count=6), *(f"test/t{i}.png" for i in range(3)))
    put(tmp_path, train_labels__csv=table({i: i % 2 for i in range(6)}, "id"),
        sample_submission__csv=table({f"t{i}": 0 for i in range(3)}, "id"))  # fmt: skip
    rows = read(tmp_path)
    assert counts(rows) == {("0", 0): 3, ("1", 1): 3, ("(no label)", -1): 3} and len(rows.left_out) == 3
    assert "sample_submission.csv" in rows.files.left_out and tells(" ".join(rows.notes), "sample_submission.csv")


def test_a_table_of_other_pictures(tmp_path: Path) -> None:
    put(tmp_path, *TWELVE, labels__csv=table({f"other/{i}x.png": 0 for i in range(12)}))
    facts = "labels.csv line 2", "other/0x.png", "12 rows"
    refused(DataError, lambda: read(tmp_path), *facts)
    refused(DataError, lambda: read(tmp_path, on_bad_image="skip"), *facts)


def test_coco_as_it_is_published(tmp_path: Path) -> None:
    put(tmp_path, *in_folders("train2017", count=6), *(f"val2017/v{i}.png" for i in range(4)))
    (tmp_path / "annotations").mkdir()
    for split, names in (("train", [f"{i}.png" for i in range(6)]), ("val", [f"v{i}.png" for i in range(4)])):
        content = {"images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
                   "annotations": [{"id": i, "image_id": i, "category_id": 1} for i in range(0, len(names), 2)],
                   "categories": [{"id": 1, "name": "cone"}]}  # fmt: skip
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    rows = read(tmp_path)
    assert counts(rows) == {("cone", 1): 5, ("no cone", 0): 5} and roles(rows) == {None: 6, "val_select": 4}


def test_annotations_are_read_where_the_positive_class_is_marked_in_them(tmp_path: Path) -> None:
    """Pascal VOC holds several folders of pictures."""
    put(tmp_path, *(f"JPEGImages/{i}.jpg" for i in range(6)), "SegmentationClass/0.png")
    (tmp_path / "Annotations").mkdir()
    for i in range(6):
        text = f"<filename>{i}.jpg</filename>" + "<object><name>cone</name></object>" * (i % 2)
        (tmp_path / "Annotations" / f"{i}.xml").write_text(f"<annotation>{text}</annotation>")
    refused(DataError, lambda: read(tmp_path), "JPEGImages (6), SegmentationClass (1)", "data.positive_class")
    rows = read(tmp_path, positive_class="cone")
    assert by_id(rows) == {f"JPEGImages/{i}.jpg": i % 2 for i in range(6)}
    assert list(rows.files.left_out) == ["SegmentationClass/0.png"]


# parquet


def columns(path: Path, count: int = 4, **further: list[Any]) -> Path:
    cells = [{"bytes": picture(), "path": None} for _ in range(count)]
    data = {"image": cells, "label": [i % 2 for i in range(count)]} | further
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(data).cast_column("image", datasets.Image()).to_parquet(path)
    return path.parent


def test_a_clone_of_a_data_set_names_every_file(tmp_path: Path) -> None:
    columns(tmp_path / "data" / "train-00000-of-00001.parquet")
    columns(tmp_path / "data" / "test-00000-of-00001.parquet")
    put(tmp_path, "assets/preview.png", README__md="# a data set", __gitattributes="x", notes__csv="a,b\n1,2\n")
    rows = read(tmp_path)
    assert roles(rows) == {None: 4, "test": 4} and (rows.files.found, rows.files.used) == (6, 2)
    assert set(rows.files.left_out) == {"assets/preview.png", "README.md", ".gitattributes", "notes.csv"}
    tells(" ".join(rows.notes), "1 pictures", "no parquet")


def test_the_files_of_other_configurations_are_named(tmp_path: Path) -> None:
    for name in "ab":
        columns(tmp_path / name / "train-00000-of-00001.parquet", count=4 if name == "a" else 6)
    declared = "".join(f"- {{config_name: {n}, data_files: [{{split: train, path: {n}/*}}]}}\n" for n in "ab")
    put(tmp_path, README__md=f"---\nconfigs:\n{declared}---\n# two\n")
    refused(DataError, lambda: read(tmp_path), "a, b", "data.config")
    refused(DataError, lambda: read(tmp_path, config="c"), "'c'", "a, b")
    rows = read(tmp_path, config="b")
    assert len(rows.ids) == 6 and set(rows.files.left_out) == {"README.md", "a/train-00000-of-00001.parquet"}


def test_configurations_of_pictures(tmp_path: Path) -> None:
    put(tmp_path, *in_folders(*(f"{config}/{name}" for config in "ab" for name in CLASSES)), "logo.png")
    declared = "".join(f"- {{config_name: {n}, data_files: [{{split: train, path: {n}/**}}]}}\n" for n in "ab")
    put(tmp_path, README__md=f"---\nconfigs:\n{declared}---\n# two\n")
    refused(DataError, lambda: read(tmp_path), "a, b", "data.config")
    rows = read(tmp_path, config="b")
    assert counts(rows) == {("none", 0): 2, ("roadwork", 1): 2} and rows.files.used == 4
    assert set(rows.files.left_out) == {"README.md", "logo.png", *in_folders("a/none", "a/roadwork")}


@pytest.mark.parametrize("header", ["configs: [1]", "configs: [", "configs: {a: 1}", "a: b"])
def test_an_odd_readme_is_no_traceback(header: str, tmp_path: Path) -> None:
    put(columns(tmp_path / "train.parquet"), README__md=f"---\n{header}\n---\n")
    try:
        assert len(read(tmp_path).ids) == 4
    except DataError as error:
        assert tells(error, tmp_path)


def test_a_parquet_file_beside_pictures_is_a_table_if_it_names_them(tmp_path: Path) -> None:
    content = pa.table({"file_name": list(TWELVE), "label": list(TWELVE.values())})
    pa.parquet.write_table(content, put(tmp_path, *TWELVE) / "metadata.parquet")
    rows = read(tmp_path)
    assert by_id(rows) == TWELVE and (rows.files.found, rows.files.left_out) == (13, {})


def test_splits_of_columns(tmp_path: Path) -> None:
    rows = read(columns(tmp_path / "a" / "all.parquet", 6, split=["train"] * 4 + ["Test"] * 2))
    assert roles(rows) == {None: 4, "test": 2}
    rows = read(columns(tmp_path / "b" / "all.parquet", 6, split=["train"] * 4 + ["x"] * 2))
    assert roles(rows) == {None: 6} and tells(" ".join(rows.notes), "'split'", "2 values", "'x'")
    columns(tmp_path / "c" / "photos_a.parquet")
    rows = read(columns(tmp_path / "c" / "photos_test.parquet"))
    assert roles(rows) == {None: 8} and tells(" ".join(rows.notes), "photos_test.parquet", "test.parquet")
    columns(tmp_path / "d" / "photos_train.parquet")
    assert roles(read(columns(tmp_path / "d" / "photos_test.parquet"))) == {None: 4, "test": 4}


# several sources


def test_a_class_that_a_key_names_must_be_somewhere(tmp_path: Path) -> None:
    own, plain = put(tmp_path / "own", *in_folders("cone", "other")), put(tmp_path / "b", *in_folders("no", "yes"))
    more = SourceConfig(source=str(put(tmp_path / "more", "0.png")), label="yes", role="train")

    def load(sources: list[Any], **keys: Any) -> SourceRows:
        return load_source(DataConfig(source=sources, **keys))

    # A source that lacks the class, and whose names are plain, is read by its names.
    rows = load([str(own), str(plain)], positive_class="cone")
    assert counts(rows) == {("cone", 1): 2, ("other", 0): 2, ("no", 0): 2, ("yes", 1): 2}
    refused(DataError, lambda: load([str(own), more], positive_class="cnoe"), "'cnoe'", "cone, other")
    refused(DataError, lambda: load([str(plain), more], exclude_classes=["unsrue"]), "'unsrue'", "no, yes")
    typo = SourceConfig(source=str(own), positive_class="yes")
    refused(DataError, lambda: load([typo, str(plain)]), "'yes'", "own", "cone, other")


def test_files_are_named_in_a_mix_with_parquet(tmp_path: Path) -> None:
    columns(tmp_path / "a" / "train.parquet", 40)
    put(tmp_path / "b", *in_folders("no", "yes", count=14))
    (tmp_path / "b" / "yes" / "same.png").write_bytes((tmp_path / "b" / "no" / "0.png").read_bytes())
    reading = reading_of(load_image_data(DataConfig(source=[str(tmp_path / "a"), str(tmp_path / "b")])))
    assert [entry["file"] for entry in reading["files"]["left_out"]] == ["b:no/0.png", "b:yes/same.png"]
    assert (reading["files"]["found"], reading["files"]["used"], reading["rows"]) == (30, 28, 67)


Values = Callable[[int], Any]
SAYS_YES: dict[str, tuple[Values, str, str]] = {
    "text": (lambda i: ("no", "yes")[i], "Yes", "no"),
    "text with blanks": (lambda i: (" none", "Roadwork ")[i], "roadwork", "NONE"),
    "bool": (lambda i: bool(i), "True", "false"),
    "whole floats": (float, "1", "0.0"),
    "text of numbers": (str, "1", "0"),
    "text of floats": (lambda i: f"{i}.0", "1", "0"),
    "one-hot list": (lambda i: [1 - i, i], "1", "0"),
    "one-hot floats": (lambda i: [1.0 - i, float(i)], "1", "0"),
    "mixed spellings": (lambda i: ("no", "NO", "No ")[0] if not i else "YES", "yes", "no"),
}


@pytest.mark.parametrize("case", SAYS_YES)
def test_the_values_of_a_label_column(case: str, tmp_path: Path) -> None:
    """Text keys take what was typed, and the other class may be asked about too."""
    value, yes, no = SAYS_YES[case]
    folder = columns(tmp_path / "train.parquet", 8, label=[value(i % 2) for i in range(8)])
    labels = [i % 2 for i in range(8)]
    asked: list[tuple[dict[str, Any], list[int]]] = [
        ({}, labels), ({"positive_class": yes}, labels), ({"positive_class": no}, [1 - i for i in labels])
    ]  # fmt: skip
    for keys, meant in asked:
        rows = read(folder, **keys)
        assert rows.labels.tolist() == meant and not rows.left_out
    refused(DataError, lambda: read(folder, positive_class="perhaps"), "'perhaps'", "data.positive_class")


def test_one_hot_columns_of_parquet(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({
        "image": [{"bytes": picture(), "path": None} for _ in range(6)], "cone": [0, 1, 0, 0, 1, 0],
        "barrier": [1, 0, 0, 0, 0, 0], "street": [0, 0, 1, 1, 0, 1], "city": ["a"] * 6,
    }).cast_column("image", datasets.Image())  # fmt: skip
    data.to_parquet(tmp_path / "train.parquet")
    assert read(tmp_path, positive_class="Cone").labels.tolist() == [0, 1, 0, 0, 1, 0]
    refused(DataError, lambda: read(tmp_path), "barrier (1), cone (2), street (3)", "data.positive_class")


@pytest.mark.parametrize("value", [None, float("nan"), "", "nan"])
def test_a_missing_label_is_named_by_its_row(value: Any, tmp_path: Path) -> None:
    labels = ["0", "1", value, "1"] if isinstance(value, str) else [0.0, 1.0, value, 1.0]
    folder = columns(tmp_path / "train.parquet", 4, label=labels)
    refused(DataError, lambda: read(folder), "train/2", "1 of 4 rows", "-1")
    columns(tmp_path / "b" / "train.parquet", 4, label=labels[:2] * 2)
    none = ["", ""] if isinstance(value, str) else [None, None]
    rows = read(columns(tmp_path / "b" / "test.parquet", 2, label=none))
    assert list(rows.left_out) == ["test/0", "test/1"] and tells(" ".join(rows.notes), "test split", "2 rows")


@pytest.mark.parametrize("value", [["cone"], ["a", "b"], [None, None], [], {"a": 1}, [1, 1], b"yes", float("inf"), .5])
def test_what_is_no_label_is_refused_in_one_line(value: Any, tmp_path: Path) -> None:
    folder = columns(tmp_path / "train.parquet", 2, label=[value, value])
    refused(DataError, lambda: read(folder), "train/0", "one-hot list")
