"""Annotations of objects are read as the classes that are in each picture, or refused by file and line."""

from __future__ import annotations

import json
import random
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import conftest
import pytest
from facts import tells
from refusals import refused

from natix_hf.errors import DataError
from natix_hf.intake.annotations import Boxes, read_boxes

_BOX = " 0.5 0.5 0.2 0.2\n"


def _read(files: Mapping[str, str | bytes | dict[str, Any]]) -> Boxes | None:
    """What the annotations among these files say. A name with the ending of a picture is one."""
    content = {name: json.dumps(text).encode() if isinstance(text, dict) else text.encode() if isinstance(text, str)
               else text for name, text in files.items()}  # fmt: skip
    pictures = [name for name in content if name.lower().endswith((".jpg", ".png"))]
    return read_boxes(list(content), pictures, content.__getitem__)


def _boxes(files: Mapping[str, str | bytes | dict[str, Any]]) -> Boxes:
    boxes = _read(files)
    assert boxes
    return boxes


def _coco(pictures: Mapping[str, list[str]], classes: list[str]) -> dict[str, Any]:
    """A COCO file of pictures and what is marked in them."""
    numbers = {name: number for number, name in enumerate(pictures, 10)}
    marks = [{"id": 1, "image_id": numbers[name], "category_id": classes.index(kind), "bbox": [0, 0, 1, 1]}
             for name, kinds in pictures.items() for kind in kinds]  # fmt: skip
    return {
        "info": {},
        "images": [{"id": number, "file_name": name, "width": 9, "height": 9} for name, number in numbers.items()],
        "annotations": marks,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
    }


def _voc(filename: str, *names: str) -> str:
    objects = "".join(f"<object><name>{name}</name><part><name>wheel</name></part></object>" for name in names)
    return f"<annotation><filename>{filename}</filename>{objects}</annotation>"


def _labelme(picture: str, *labels: str) -> dict[str, Any]:
    return {"version": "5", "flags": {}, "imagePath": picture, "shapes": [{"label": label} for label in labels]}


_YAML = "names: ['no', yes]\nnc: 2\n"


@pytest.mark.parametrize("seed", range(30))
def test_each_layout_says_what_was_meant(seed: int) -> None:
    """Random pictures and marks, written in every layout, are read alike."""
    rng = random.Random(seed)
    classes = rng.sample(["cone", "worker", "no", "Straße", "arrow board"], rng.randint(1, 4))
    meant = {f"{rng.choice(['train', 'valid', 'test'])}/{number}.jpg": rng.choices(classes, k=rng.choice([0, 0, 1, 3]))
             for number in range(rng.randint(1, 12))}  # fmt: skip
    split = {"train": "train", "valid": "validation", "test": "test"}
    splits = {name: split[name.partition("/")[0]] for name in meant}
    present = {name: frozenset(kinds) for name, kinds in meant.items()}

    def text(kinds: list[str]) -> str:
        lines = [f"{classes.index(kind)} {rng.random()} 0.5 0.1 0.2" for kind in kinds]
        return rng.choice(["\n", "\r\n"]).join(lines) + rng.choice(["", "\n"])

    listed: list[str] | dict[int, str] = rng.choice([classes, dict(enumerate(classes))])
    yaml = json.dumps({"train": "../train/images", "val": "../valid/images", "names": listed})
    under = {"images/" + name: kinds for name, kinds in meant.items()}
    layouts: dict[str, list[Mapping[str, Any]]] = {
        "YOLO": [
            dict.fromkeys(under, "") | {"data.yaml": yaml}
            | {f"labels/{name[:-4]}.txt": text(kinds) for name, kinds in meant.items()},
            {name.replace("/", "/images/"): "" for name in meant} | {"data.yaml": yaml}
            | {f"{name[:-4].replace('/', '/labels/')}.txt": text(kinds) for name, kinds in meant.items()},
            dict.fromkeys(meant, "") | {"classes.txt": "\n".join(classes)}
            | {f"{name[:-4]}.txt": text(kinds) for name, kinds in meant.items()},
        ],
        "COCO": [
            dict.fromkeys(meant, "") | {"annotations.json": _coco(meant, classes)},
            dict.fromkeys(meant, "")
            | {f"{part}/_annotations.coco.json": _coco({name.partition("/")[2]: kinds for name, kinds in meant.items()
                                                       if name.startswith(part)}, classes) for part in split},
        ],
        "LabelMe": [
            dict.fromkeys(meant, "")
            | {f"{name[:-4]}.json": _labelme("..\\old\\x.jpg", *kinds) for name, kinds in meant.items()},
            dict.fromkeys(meant, "") | {f"json/{name[:-4].replace('/', '_')}.json": _labelme(f"../{name}", *kinds)
                                            for name, kinds in meant.items()},
        ],
        "Pascal VOC": [
            dict.fromkeys(meant, "") | {f"{name[:-4]}.xml": _voc("x", *kinds) for name, kinds in meant.items()},
            dict.fromkeys(meant, "") | {f"Annotations/{name.partition('/')[2][:-4]}.xml":
                                            _voc(name.partition("/")[2], *kinds) for name, kinds in meant.items()},
        ],
    }  # fmt: skip
    for layout, ways in layouts.items():
        for files in ways:
            boxes = _boxes(files)
            plain = {name.replace("images/", ""): kinds for name, kinds in boxes.present.items()}
            assert (boxes.layout, plain) == (layout, present), files
            assert {name.replace("images/", ""): said for name, said in boxes.splits.items()} == splits, files
            assert boxes.files == {name for name in files if not name.endswith(".jpg")}
            assert set(boxes.names) <= set(classes) and set().union(*present.values()) <= set(boxes.names)
            assert boxes.notes == []


# YOLO


def test_yolo_without_names_and_with_background() -> None:
    boxes = _boxes({"images/0.jpg": "", "images/a/1.JPG": "", "images/2.jpg": "", "labels/0.txt": "3" + _BOX,
                    "labels/a/1.txt": "", "labels/9.txt": "0" + _BOX, "preview.jpg": ""})  # fmt: skip
    assert boxes.names == ["class 3"] and boxes.splits == {}
    assert boxes.present == {"images/0.jpg": {"class 3"}, "images/a/1.JPG": set(), "images/2.jpg": set()}
    assert boxes.files == {"labels/0.txt", "labels/a/1.txt"}
    tells(boxes.notes[0], "1 picture", "images/2.jpg") and tells(boxes.notes[1], "1 label file", "labels/9.txt")


def test_a_split_of_yolo_without_any_label_is_not_background() -> None:
    files = {f"{part}/images/{number}.jpg": "" for part in ("train", "test") for number in (0, 1)}
    boxes = _boxes(files | {"train/labels/0.txt": "0" + _BOX})
    assert boxes.present == {"train/images/0.jpg": {"class 0"}, "train/images/1.jpg": set()}
    tells(boxes.notes[1], "2 pictures", "test/images/0.jpg")


def test_yolo_reads_polygons_and_names_as_typed() -> None:
    boxes = _boxes({"images/0.jpg": "", "labels/0.txt": "1 " + "0.1 " * 8 + "\n0.0 0 0 1 1 .9", "d.yaml": _YAML})
    assert boxes.names == ["no", "yes"] and boxes.present["images/0.jpg"] == {"no", "yes"}


def test_the_divisions_of_a_data_yaml() -> None:
    files = {f"images/{part}/{number}.jpg": "" for part in ("a", "b") for number in (0, 1)}
    files |= {"labels/a/0.txt": "0" + _BOX, "labels/b/1.txt": ""}
    boxes = _boxes(files | {"x.yaml": "names: [a]\npath: /me/set\ntrain: images/a\nval: [images/b/]\n"})
    assert set(boxes.splits.items()) == {(name, "train" if "/a/" in name else "validation") for name in boxes.present}
    boxes = _boxes(files | {"x.yaml": "names: [a]\ntrain: t.txt\n", "t.txt": "./images/a/0.jpg\nimages/b/1.jpg\n"})
    assert boxes.splits == {"images/a/0.jpg": "train", "images/b/1.jpg": "train"} and "t.txt" in boxes.files
    boxes = _boxes(files | {"x.yaml": "names: [a]\ntrain: images\nval: images/b\n"})
    assert boxes.splits == {} and tells(boxes.notes[-1], "2 pictures", "train", "validation", "x.yaml")


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ({"labels/0.txt": "0" + _BOX + "a cone\n"}, ("labels/0.txt", "line 2", "a cone")),
        ({"labels/0.txt": "0 0.5 0.5 0.2\n"}, ("labels/0.txt", "line 1")),
        ({"labels/0.txt": "-1" + _BOX}, ("line 1", "-1")),
        ({"labels/0.txt": "0 nan 0 1 1\n"}, ("line 1",)),
        ({"labels/0.txt": b"\xff\xd8\xff\xe0" * 99}, ("labels/0.txt", "line 1", "…")),
        ({"labels/0.txt": "\n2" + _BOX, "data.yaml": _YAML}, ("labels/0.txt", "line 2", "class 2", "0 to 1")),
        ({"labels/0.txt": "", "data.yaml": "nc: 3\nnames: [a]\n"}, ("data.yaml", "nc", "3", "1 class")),
        ({"labels/0.txt": "", "data.yaml": "nc: 1\nnames: a\n"}, ("data.yaml", "names", "'a'")),
        ({"labels/0.txt": "", "data.yaml": "nc: 1\nnames: [a\n"}, ("data.yaml", "line 3", "YAML")),
        ({"labels/0.txt": "", "data.yaml": _YAML, "classes.txt": "a\n"},
         ("data.yaml", "classes.txt", "other classes")),
        ({"labels/0.txt": "", "c.json": _coco({"images/0.jpg": []}, ["a"])},
         ("YOLO", "labels/0.txt", "COCO", "c.json")),
    ],
)  # fmt: skip
def test_faults_of_yolo(files: dict[str, str], facts: tuple[str, ...]) -> None:
    refused(DataError, lambda: _read({"images/0.jpg": ""} | files), *facts)


# COCO, LabelMe, Pascal VOC


def test_coco_finds_the_pictures_of_its_split() -> None:
    files = {"train2017/0.jpg": "", "val2017/0.jpg": "", "val2017/1.jpg": ""}
    boxes = _boxes(files | {"annotations/instances_train2017.json": _coco({"0.jpg": ["a"]}, ["a", "b"]),
                            "annotations/instances_val2017.json": _coco({"0.jpg": [], "7.jpg": ["b"]}, ["a", "b"]),
                            "annotations/captions_val2017.json": {"images": [], "annotations": []}})  # fmt: skip
    assert boxes.present == {"train2017/0.jpg": {"a"}, "val2017/0.jpg": set()}  # val2017/1.jpg is not spoken of
    assert boxes.splits == {"train2017/0.jpg": "train", "val2017/0.jpg": "validation"}
    assert boxes.names == ["a", "b"] and len(boxes.files) == 2
    tells(boxes.notes[0], "1 annotated picture", "7.jpg", "instances_val2017.json")


_GOOD = _coco({"0.jpg": ["a"]}, ["a"])


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ({"c.json": json.dumps(_GOOD, indent=1)[:-9]}, ("c.json", "line", "JSON")),
        ({"c.json": json.dumps(_GOOD)[:-1] + ', "x": ' + "[" * 100_000}, ("c.json", "JSON")),
        ({"c.json": _GOOD | {"annotations": [{"image_id": 10, "category_id": 5}]}}, ("c.json", "annotations[0]", "5")),
        ({"c.json": _GOOD | {"annotations": [{"category_id": 0}]}}, ("c.json", "annotations[0]", "image_id")),
        ({"c.json": _GOOD | {"images": ["0.jpg"]}}, ("c.json", "images[0]", "0.jpg")),
        ({"c.json": _GOOD | {"images": [{"id": 10}]}}, ("c.json", "images[0]", "file_name")),
        ({"c.json": _coco({"7.jpg": [], "8.jpg": []}, ["a"])}, ("COCO", "2 pictures", "7.jpg", "c.json")),
        ({"c.json": _GOOD, "a/1.jpg": "", "b/1.jpg": "", "d.json": _coco({"1.jpg": []}, ["a"])},
         ("d.json", "1.jpg", "a/1.jpg", "b/1.jpg")),
        ({"0.json": _labelme("0.jpg") | {"shapes": [{}]}}, ("0.json", "shapes[0]", "label")),
        ({"0.json": _labelme("7.jpg"), "0.png": ""}, ("0.json", "0.jpg", "0.png")),
        ({"0.xml": _voc("0.jpg", "a")[:-9]}, ("0.xml", "line 1", "XML")),
        ({"0.xml": '<!DOCTYPE a [<!ENTITY b "cc">]>' + _voc("0.jpg", "&b;")}, ("0.xml", "DOCTYPE")),
        ({"0.xml": _voc("0.jpg"), "1.jpg": "", "1.json": _labelme("1.jpg")}, ("Pascal VOC", "LabelMe", "0.xml")),
        ({"7.xml": _voc("7.jpg")}, ("Pascal VOC", "1 picture", "7.jpg")),
    ],
)  # fmt: skip
def test_faults_of_json_and_xml(files: dict[str, Any], facts: tuple[str, ...]) -> None:
    refused(DataError, lambda: _read({"0.jpg": ""} | files), *facts)


@pytest.mark.parametrize(
    "files",
    [
        {"0.jpg.json": {"title": "0.jpg", "imageViews": "3"}},
        {"0.json": {"images": [1], "annotations": [2]}, "broken.json": "{"},
        {"0.json": {"images": {}, "annotations": [], "categories": []}},
        {"0.txt": "0" + _BOX, "README.txt": "hello"},
        {"0.txt": "a caption", "environment.yaml": "name: x\ndependencies: [nc]\n"},
        {"0.xml": "<annotations><image name='0.jpg'/></annotations>", "1.xml": "<?xml version='1.0'?><kml/>"},
        {"images/1.jpg": "", "captions/1.txt": "a cone"},
        {},
    ],
)
def test_other_files_are_no_annotations(files: dict[str, Any]) -> None:
    assert _read({"0.jpg": ""} | files) is None


def test_damaged_annotations_are_read_or_refused() -> None:
    rng = random.Random(0)
    good = {"labels/0.txt": ("0" + _BOX) * 3, "data.yaml": _YAML, "c.json": json.dumps(_GOOD),
            "0.json": json.dumps(_labelme("0.jpg", "a")), "0.xml": _voc("0.jpg", "a")}  # fmt: skip
    for _ in range(1500):
        name = rng.choice(list(good))
        content = bytearray(good[name].encode())
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        files = {"0.jpg": ""}
        if name.endswith((".txt", ".yaml")):
            files |= {"images/0.jpg": "", "labels/0.txt": ""}
        try:
            _read(files | {name: bytes(content)})
        except DataError as error:
            tells(error)


# CMU ROADWork


def _roadwork() -> dict[str, Any]:
    """The structure of the dataset: images.zip and annotations.zip unpacked into one folder."""
    boston = "boston_2bdb5a72602342a5991b402beb8b7ab4_000001_23370"
    train = {"pgh04_0458.JPG": ["Cone", "TTC Sign"], "pgh04_0459.jpg": ["Worker"], "pgh05_0001.jpg": []}
    val = {f"{boston}.jpg": ["Work Vehicle"]}
    kinds = ["Cone", "Worker", "Work Vehicle", "TTC Sign"]
    files: dict[str, Any] = {f"images/{name.lower()}": "" for name in train | val}
    for part, pictures in {"train": train, "val": val}.items():
        whole = _coco(pictures, kinds)
        for record in whole["images"]:
            record |= {"scene_description": "Cones.", "city_name": "pittsburgh", "gps": [40.4, -80.0],
                       "video_info": {"vid_id": "x", "seq_id": 1, "frame_id": "1.jpg"},
                       "scene_level_tags": {"weather": ["Sunny"], "travel_alteration": ["None"]}}  # fmt: skip
        files[f"annotations/instances_{part}_gps_split.json"] = whole
    return files


def test_roadwork_is_read() -> None:
    boxes = _boxes(_roadwork())
    assert boxes.layout == "COCO" and boxes.notes == []
    positive = {name for name, kinds in boxes.present.items() if kinds}
    assert positive == {"images/pgh04_0458.jpg", "images/pgh04_0459.jpg",
                        "images/boston_2bdb5a72602342a5991b402beb8b7ab4_000001_23370.jpg"}  # fmt: skip
    assert boxes.present["images/pgh04_0458.jpg"] == {"Cone", "TTC Sign"}
    assert [name for name, split in boxes.splits.items() if split == "validation"] == [max(positive, key=len)]
    assert sum(split == "train" for split in boxes.splits.values()) == 3


def test_roadwork_with_all_its_divisions_gives_none() -> None:
    files = _roadwork()
    files["annotations/instances_val_pittsburgh_only.json"] = _coco({"pgh04_0459.jpg": ["Worker"]}, ["Worker"])
    files["annotations/instances_geographic_da_pretrain.json"] = _coco({"pgh04_0459.jpg": ["Worker"]}, ["Worker"])
    boxes = _boxes(files)
    assert boxes.splits == {} and boxes.present["images/pgh04_0459.jpg"] == {"Worker"}
    tells(boxes.notes[0], "1 picture", "pgh04_0459.jpg", "instances_train_gps_split.json", "val_pittsburgh_only.json")


@pytest.mark.shared
@pytest.mark.parametrize("case", ["yolo", "sidecar_json", "sidecar_txt"])
def test_revealed_annotations(tmp_path: Path, case: str) -> None:
    with tarfile.open(conftest.SHARED / "data" / "field_cases" / f"{case}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / case
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    pictures = [name for name in names if name.endswith(".jpg")]
    boxes = read_boxes(names, pictures, lambda name: (root / name).read_bytes())
    if case != "yolo":
        assert boxes is None
        return
    assert boxes and boxes.names == ["roadwork"] and boxes.present.keys() == set(pictures) and len(pictures) == 48
    assert sum(map(bool, boxes.present.values())) == 24 and boxes.notes == []
    assert boxes.files == set(names) - set(pictures)
    assert sum(split == "train" for split in boxes.splits.values()) == 36 and set(boxes.splits) == set(pictures)
