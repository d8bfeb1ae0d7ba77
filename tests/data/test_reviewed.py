"""Reviewed lists: what they say however they are written, what is refused, and that nothing else moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_recipe
from refusals import refused

from natix_hf.data.config import DataConfig
from natix_hf.data.division import make_splits
from natix_hf.data.reading import reading_facts, reading_of
from natix_hf.data.reviewed import actions_in, apply_review, read_reviewed, reviewed_sha256
from natix_hf.data.rows import load_image_data
from natix_hf.data.splits import Splits, read_splits, write_splits
from natix_hf.errors import DataError, RecipeError
from natix_hf.recipe import load_recipe, parse_recipe

AUDITED = "finding,row_id,label_now,suggested_label,action\n"


def splits_of(groups: int = 40, rows: int = 3, noise: float = 0.0) -> Splits:
    ids = [f"{group}/{row}.png" for group in range(groups) for row in range(rows)]
    labels = np.repeat(np.arange(groups) % 2, rows)
    names: list[str | None] = [name.split("/")[0] for name in ids]
    return make_splits(ids, labels, names, ids, [None] * len(ids), {"0/0.png": "unreadable image"}, 0, "drop", noise)


def first(splits: Splits, role: str, label: int | None = None, count: int = 1) -> list[str]:
    wanted = [i for i in splits.positions(role) if label is None or splits.labels[i] == label]
    return [splits.ids[i] for i in wanted[:count]]


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str | bytes, name: str = "list.csv") -> str:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", b"row_id,label\na/1.png,1\nb/2.png,0\n"),
        ("list.csv", b"\xef\xbb\xbfrow_id;label\r\na/1.png;yes\r\nb/2.png;no\r\n\r\n"),
        ("list.csv", b"label,row_id\n1.0,a/1.png\nFALSE,b/2.png\n1,a/1.png\n"),
        ("list.tsv", b"row_id\tlabel\r\n a/1.png \tTrue\r\nb/2.png\t0\r\n"),
        ("list.txt", "row_id;label\na/1.png;1\nb/2.png;0\n".encode("utf-16")),
        ("list.jsonl", b'{"row_id": "a/1.png", "label": true}\n{"row_id": "b/2.png", "label": 0}\n'),
        ("list.csv", (AUDITED + "1,a/1.png,0,1,Relabel \n1,c,0,1,keep\n2,b/2.png,1,0,RELABEL\n3,d,1,0,\n").encode()),
    ],
    ids=["plain", "excel", "words", "tsv", "utf16", "jsonl", "audit"],
)
def test_a_list_says_the_same_however_it_is_written(name: str, text: bytes, write: Write) -> None:
    file = write(text, name)
    found = read_reviewed(file, "relabel")
    assert {row_id: row.label for row_id, row in found.items()} == {"a/1.png": 1, "b/2.png": 0}
    plain = write(b"row_id,label\nb/2.png,0\na/1.png,1\n", "elsewhere.csv")
    assert reviewed_sha256(file, "relabel") == reviewed_sha256([plain], "relabel")


def test_an_audits_list_serves_both_keys(write: Write) -> None:
    file = write(AUDITED + "1,a,0,1,exclude\n2,b,1,0,relabel\n3,c,0,1,keep\n4,d,0,1,\n")
    assert list(read_reviewed(file, "exclude")) == ["a"] and list(read_reviewed(file, "relabel")) == ["b"]
    assert read_reviewed(None, "exclude") == {} and list(actions_in(Path(file))) == ["a", "b", "c"]
    more = write("row_id\nz\na\n", "more.csv")
    assert list(read_reviewed([file, more], "exclude")) == ["a", "z"]


@pytest.mark.parametrize(
    ("kind", "text", "facts"),
    [
        ("exclude", "", ["is empty", "row_id"]),
        ("exclude", "row_id\n", ["no row"]),
        ("exclude", "train/0\ntrain/1\n", ["no column 'row_id'", "train/0"]),
        ("exclude", "row_id,label_now,suggested_label\na,0,1\n", ["'action'", "reviewed"]),
        ("exclude", AUDITED + "1,a,0,1,\n", ["action", "look at the rows"]),
        ("exclude", AUDITED + "1,a,0,1,exclud\n", ["line 2", "'exclud'", "did you mean 'exclude'"]),
        ("exclude", AUDITED + "1,a,0,1,exclude\n1,a,0,1,keep\n", ["row a", "line 2", "line 3", "exclude", "keep"]),
        ("exclude", AUDITED + "1,,0,1,exclude\n", ["line 2", "row_id"]),
        ("exclude", "row_id\na,b\n", ["line 2", "quote"]),
        ("exclude", b"\x00\x01\x02", ["zero bytes"]),
        ("relabel", "row_id\na\n", ["row_id and label"]),
        ("relabel", "row_id,label\na,2\n", ["line 2", "'2'", "0 (no) or 1 (yes)"]),
        ("relabel", "row_id,label\na,\n", ["line 2", "None"]),
        ("relabel", AUDITED + "1,a,0,,relabel\n", ["line 2", "None"]),
        ("relabel", "row_id,label\na,1\nb,0\na,0\n", ["row a", "line 2", "line 4"]),
        ("relabel", AUDITED + "1,a,0,0,relabel\n", ["line 2", "row a", "which it has"]),
    ],
)
def test_what_is_no_reviewed_list_is_refused(kind: Any, text: str | bytes, facts: list[str], write: Write) -> None:
    file = write(text)
    refused(DataError, lambda: read_reviewed(file, kind), f"data.{kind}", *facts)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refused(DataError, lambda: read_reviewed(str(tmp_path / "no.csv"), "exclude"), "data.exclude", "no.csv")
    refused(DataError, lambda: read_reviewed(str(tmp_path), "relabel"), "data.relabel", str(tmp_path))
    refused(RecipeError, lambda: DataConfig(exclude=""), "data.exclude")
    refused(RecipeError, lambda: DataConfig(relabel=["a", " "]), "data.relabel")


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_nothing_but_the_listed_rows_changes(noise: float, write: Write) -> None:
    before = splits_of(noise=noise)
    out = first(before, "train", 0, 2) + first(before, "val_select", 1)
    over = first(before, "train", 1, 2)
    config = DataConfig(
        exclude=write("row_id\n" + "\n".join([*out, "0/0.png"]) + "\n", "out.csv"),
        relabel=write("row_id,label\n" + "".join(f"{row},0\n" for row in over), "over.csv"),
    )
    after = apply_review(before, config)
    was, now = (dict(zip(s.ids, zip(s.roles, s.groups, s.sha256, strict=True), strict=True)) for s in (before, after))
    assert now == {row: facts for row, facts in was.items() if row not in out}
    labels = dict(zip(after.ids, after.labels, strict=True))
    old = dict(zip(before.ids, before.labels, strict=True))
    assert {row for row in labels if labels[row] != old[row]} == set(over)
    assert [row["id"] for row in after.dropped] == ["0/0.png", *out]
    assert [(row["id"], row["label"], row["by"]) for row in after.relabelled] == [(row, 0, "over.csv") for row in over]


def test_without_a_list_nothing_is_different() -> None:
    assert apply_review(splits_of(), DataConfig()) == splits_of()


@pytest.mark.parametrize("role", ["val_calib", "test"])
@pytest.mark.parametrize("kind", ["exclude", "relabel"])
def test_rows_that_are_measured_on_keep_their_labels(role: str, kind: str, write: Write) -> None:
    splits = splits_of()
    [row], [fine] = first(splits, role, 0), first(splits, "train", 0)
    text = f"row_id\n{fine}\n{row}\n" if kind == "exclude" else f"row_id,label\n{fine},1\n{row},1\n"
    config = replace(DataConfig(), **{kind: write(text)})
    refused(DataError, lambda: apply_review(splits, config), f"data.{kind}", row, role, "1 of 2", "line 3")


def test_rows_that_do_not_fit_the_source_are_refused(write: Write) -> None:
    splits = splits_of()
    [row] = first(splits, "train", 0)
    unknown = DataConfig(exclude=write(f"row_id\n{row}\nx\ny\n"))
    refused(DataError, lambda: apply_review(splits, unknown), "2 of 3", "first is x", "line 3")
    both = DataConfig(exclude=write(f"row_id\n{row}\n", "a.csv"), relabel=write(f"row_id,label\n{row},1\n", "b.csv"))
    refused(DataError, lambda: apply_review(splits, both), row, "a.csv, line 2", "b.csv, line 2")
    gone = DataConfig(relabel=write("row_id,label\n0/0.png,1\n"))
    refused(DataError, lambda: apply_review(splits, gone), "0/0.png", "unreadable image")
    ones = "".join(f"{row},0\n" for row in first(splits, "val_select", 1, 1000))
    one_label = DataConfig(relabel=write(f"row_id,label\n{ones}"))
    refused(DataError, lambda: apply_review(splits, one_label), "val_select", "one label")


def test_splits_keep_what_a_review_changed(write: Write, tmp_path: Path) -> None:
    before = splits_of()
    [row] = first(before, "train", 1)
    after = apply_review(before, DataConfig(relabel=write(f"row_id,label\n{row},0\n")))
    write_splits(tmp_path / "splits.json", after, {})
    assert read_splits(tmp_path / "splits.json") == after
    write_splits(tmp_path / "old.json", before, {})
    assert "relabelled" not in (tmp_path / "old.json").read_text(encoding="utf-8")


def test_the_content_of_a_list_decides_whether_a_run_is_current(write: Write, tmp_path: Path) -> None:
    def sha256(**lists: Any) -> str:
        return parse_recipe({"data": lists}).section_sha256("data")

    a = write("row_id\na\nb\n", "a.csv")
    other_name, as_excel = write("row_id\na\nb\n", "b.csv"), write("\ufeffrow_id\r\nb\r\na\r\n", "c.csv")
    assert sha256(exclude=a) == sha256(exclude=other_name) == sha256(exclude=[as_excel]) != sha256()
    before = sha256(exclude=a)
    write("row_id\na\nc\n", "a.csv")
    assert sha256(exclude=a) != before
    recipe = write_recipe(tmp_path / "r.yaml", {"data": {"exclude": str(tmp_path / "gone.csv")}})
    refused(DataError, lambda: load_recipe(str(recipe)).section_sha256("data"), "data.exclude", "gone.csv")


def test_a_loaded_source_follows_its_lists_and_says_so(parquet_source: Path, write: Write) -> None:
    config = DataConfig(source=str(parquet_source), group_by="video_info.vid_id")
    plain = load_image_data(config)
    out, over = first(plain.splits, "train", 0, 2), first(plain.splits, "train", 1, 3)
    same = first(plain.splits, "val_select", 1)
    lines = "".join(f"1,{row},0,1,exclude\n" for row in out) + "".join(f"2,{row},1,0,relabel\n" for row in over)
    file = write(AUDITED + lines + f"3,{same[0]},0,1,relabel\n", "audit.csv")
    config = replace(config, exclude=file, relabel=file)
    data = load_image_data(config)
    train = data.role("train")
    assert len(train) == len(plain.role("train")) - 2 and not set(out) & set(train.ids)
    assert [train.labels[train.ids.index(row)] for row in over] == [0, 0, 0]
    for role in ("val_calib", "test"):
        assert data.role(role).ids == plain.role(role).ids
        assert data.role(role).labels.tolist() == plain.role(role).labels.tolist()
    reading = reading_of(data)
    assert reading["reviewed"] == {"excluded": 2, "relabelled": 3, "unchanged": 1, "by": ["audit.csv"]}
    told = dict(reading_facts(reading))["reviewed"]
    assert all(word in told for word in ("2 rows excluded", "3 relabelled", "audit.csv", "1 to relabel has"))
    assert reading["splits"]["train"]["0"] == int((train.labels == 0).sum())
    # Afterwards the run's splits decide, without the file.
    Path(file).unlink()
    again = load_image_data(config, data.splits)
    assert again.role("train").labels.tolist() == train.labels.tolist()
    assert again.rows.labels.tolist() == data.rows.labels.tolist()
    assert "reviewed" not in reading_of(plain)
