"""Samples are grouped as WebDataset groups them, and their small files become values."""

from __future__ import annotations

import json
import random
import re
import tarfile
from pathlib import Path

import pytest
from conftest import SHARED
from refusals import refused

from natix_hf.data.images import open_image
from natix_hf.errors import DataError
from natix_hf.intake.archives import list_members, read_members
from natix_hf.intake.pointers import lfs_pointer, stand_in, unreadable_note
from natix_hf.intake.webdataset import group_samples, is_webdataset, sample_values

PARTS = ("a", "b7", "ü", "x y", "seg", "JPG", "cls", "v1.2", "c-3")


def test_samples_are_grouped_by_the_first_dot_of_the_base_name() -> None:
    """Against the regular expression of webdataset/tariterators.py."""
    rng = random.Random(0)
    folders = [rng.choice(PARTS) + "/" for _ in range(20)]
    members = sorted(
        {"".join(rng.sample(folders, rng.randrange(3))) + ".".join(rng.choices(PARTS, k=rng.randint(1, 4)))
         for _ in range(400)}
    )  # fmt: skip
    expected: dict[str, dict[str, str]] = {}
    for member in members:
        found = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", member)
        if found:
            expected.setdefault(found[1], {}).setdefault(found[2].lower(), member)
    assert len(expected) > 50
    assert group_samples(members) == expected
    assert group_samples(["a/.hidden.jpg", ".x", "plain", "dot."]) == {}
    refused(DataError, lambda: group_samples(["a/1.jpg", "a/1.JPG"]), "a/1.jpg", "a/1.JPG")


def test_a_shard_is_told_by_what_lies_beside_its_pictures() -> None:
    pictures = [f"{i}.jpg" for i in range(9)]
    for ending in ("cls", "json", "txt", "CLS", "meta.json"):
        assert is_webdataset(pictures + [f"{i}.{ending}" for i in range(8)], pictures)
    assert not is_webdataset(pictures, pictures)
    assert not is_webdataset([], [])
    assert not is_webdataset([*pictures, "0.txt", "readme.txt", "labels.json"], pictures)
    assert not is_webdataset(pictures + [f"other/{i}.cls" for i in range(9)], pictures)
    assert not is_webdataset(pictures + [f"{i}.png" for i in range(9)], pictures)


def test_values_of_a_sample() -> None:
    fields = {
        "jpg": b"\xff\xd8",
        "cls": b" 07\n",
        "class": "ja é".encode(),
        "id": b"1" * 30,
        "txt": "\ufeffa caption\n".encode(),
        "json": json.dumps({"label": 1, "video": {"id": "v1", "at": {"s": 2.5}}, "tags": ["a"], "none": {}}).encode(),
        "meta.json": b'{"label": true}',
        "list.jsn": b"[1, 2]",
    }
    assert sample_values(fields) == {
        "cls": 7, "class": "ja é", "id": "1" * 30, "txt": "a caption", "label": 1, "video.id": "v1", "video.at.s": 2.5,
        "tags": ["a"], "none": {}, "meta.label": True, "list.jsn": [1, 2],
    }  # fmt: skip
    assert sample_values({"png": b"", "seg.png": b""}) == {}


@pytest.mark.parametrize(
    ("fields", "fact"),
    [
        ({"json": b"{"}, "a/7.json"),
        ({"json": b""}, "a/7.json"),
        ({"json": b"[" * 100_000}, "a/7.json"),
        ({"json": b'{"x": ' + b"9" * 5000 + b"}"}, "a/7.json"),
        ({"json": b'{"label": 0, "label": 1}'}, "'label' twice"),
        ({"json": b'{"a.b": 0, "a": {"b": 1}}'}, "'a.b' twice"),
        ({"txt": b"\xff\xfe"}, "a/7.txt"),
        ({"cls": b"\xff"}, "a/7.cls"),
        ({"cls": b"1", "json": b'{"cls": 0}'}, "'cls'"),
    ],
)
def test_a_field_that_cannot_be_read_names_its_member(fields: dict[str, bytes], fact: str) -> None:
    refused(DataError, lambda: sample_values(fields, "a/7"), "a/7", fact)


def test_pointers_are_told_from_files(tmp_path: Path) -> None:
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 9\n"
    assert lfs_pointer(lfs)
    for head, fact in {
        lfs: "git lfs pull",
        b"/annex/objects/SHA256E-s9--aa.jpg\n": "git annex get",
        b"outs:\n- md5: aa.dir\n  size: 9\n  path: data\n": "dvc pull",
        unreadable_note("it is damaged"): "it is damaged",
    }.items():
        assert fact in str(stand_in(head))
        (tmp_path / "a.jpg").write_bytes(head)
        for value in (head, {"bytes": head, "path": "a.jpg"}, tmp_path / "a.jpg", str(tmp_path / "a.jpg")):
            refused(DataError, lambda value=value: open_image(value, "row 3"), "row 3", fact)
    for head in (b"", b"version 2", b"\xff\xd8\xff", b"PK\3\4", b"outs: 3", b"name,label\n"):
        assert not lfs_pointer(head)
        assert stand_in(head) is None


@pytest.mark.shared
@pytest.mark.parametrize("name", ["webdataset", "webdataset_json"])
def test_the_shards_that_people_bring(tmp_path: Path, name: str) -> None:
    with tarfile.open(SHARED / f"data/field_cases/{name}.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    path = next(tmp_path.rglob("train-0000.tar"))
    names = [member.name for member in list_members(path)[0]]
    pictures = [member for member in names if member.endswith(".jpg")]
    assert is_webdataset(names, pictures)
    read = dict(read_members(path))
    samples = group_samples(names)
    assert len(samples) == len(pictures)
    column = "cls" if name == "webdataset" else "label"
    values = [
        sample_values({field: read[member] for field, member in fields.items()}, key)
        for key, fields in samples.items()
    ]
    assert {value[column] for value in values} == {0, 1}


@pytest.mark.shared
def test_the_pointer_that_people_bring(tmp_path: Path) -> None:
    with tarfile.open(SHARED / "data/field_cases/lfs_pointer.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    assert lfs_pointer(next(tmp_path.rglob("*.parquet")).read_bytes())
