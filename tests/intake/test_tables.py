"""Tables are read as they were meant, whatever program wrote them, and name the pictures that they mean."""

from __future__ import annotations

import csv
import io
import itertools
import json
import posixpath
import random
import re
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import pytest
from facts import tells
from refusals import refused

from natix_hf.errors import DataError
from natix_hf.intake.names import Index, find_pictures
from natix_hf.intake.tables import Matched, Table, is_table, match_pictures, one_hot_columns, read_table


def _nowhere(_: str) -> bool:
    return False


def _match(text: str, pictures: list[str], name: str = "labels.csv", exists: Callable[[str], bool] = _nowhere,
           image_column: str = "image") -> Matched | None:  # fmt: skip
    return match_pictures(read_table(name, text.encode()), pictures, exists, image_column)


def _pictures(*arguments: Any, **named: Any) -> list[str | None]:
    matched = _match(*arguments, **named)
    assert matched
    return matched.pictures


# reading


_CELLS = ["", "0", "01", "1.0", "no", "München", "a b", "x,y", "x;y", "x|y", "x\ty", 'say "hi"', "two\nlines", "é",
          "ß.jpg", " "]  # fmt: skip
_HEADERS = [["file_name", "label"], ["file_name", "label", "note; long", "Straße"], ["a,b", "c", "d|e"]]


def _written(rng: random.Random) -> tuple[str, bytes, list[str], list[dict[str, Any]], list[int]]:
    """A table as some program writes it, what is meant, and where each row begins."""
    columns = rng.choice(_HEADERS)
    separator, newline = rng.choice(",;\t|"), rng.choice(["\n", "\r\n", "\r"])
    # Of the line breaks in a cell, csv quotes only those of its own line ends.
    quoting = csv.QUOTE_ALL if newline == "\r" else rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    file, rows, lines = io.StringIO(newline=""), [], []
    writer = csv.writer(file, delimiter=separator, lineterminator=newline, quoting=quoting)
    writer.writerow(columns)
    for number in range(rng.randint(1, 12)):
        cells = [f"{number}.jpg", *(rng.choice(_CELLS) for _ in columns[1:])]
        lines.append(1 + len(re.findall(r"\r\n|\r|\n", file.getvalue())))
        writer.writerow(cells)
        rows.append(dict(zip(columns, (cell.strip() or None for cell in cells), strict=True)))
        if rng.random() < 0.1:
            file.write(newline)
    text = file.getvalue()
    if rng.random() < 0.3:
        text = text.removesuffix(newline)
    encoding = rng.choice(["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-32"])
    name = "table.tsv" if separator == "\t" else "Table.CSV"
    return name, text.encode(encoding), columns, rows, lines


@pytest.mark.parametrize("seed", range(20))
def test_a_table_is_read_as_it_was_meant(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        name, content, columns, rows, lines = _written(rng)
        table = read_table(name, content)
        assert (table.columns, table.rows, table.lines) == (columns, rows, lines), content


def test_what_is_unusual_is_said() -> None:
    table = read_table("a/labels.csv", "file_name;city\n1.jpg;München\n".encode("cp1252"))
    assert table.rows == [{"file_name": "1.jpg", "city": "München"}]
    tells(" ".join(table.notes), "a/labels.csv", "';'", "Windows-1252", "line 2")
    assert read_table("labels.csv", b"file_name,label\n1.jpg,0\n").notes == []
    # pandas's index and Excel's rest
    index = read_table("labels.csv", b",file_name,label,\n0,1.jpg,0,\n1,2.jpg,1,\n,,,\n")
    assert index.rows == [{"file_name": "1.jpg", "label": "0"}, {"file_name": "2.jpg", "label": "1"}]
    tells(" ".join(index.notes), "2 columns without a name", "1 empty row")


def test_what_excel_and_hands_write() -> None:
    assert read_table("t.csv", b"sep=;\r\nfile;label\r\n1.jpg;0\r\n").rows == [{"file": "1.jpg", "label": "0"}]
    assert read_table("t.csv", b"sep=;\r\nfile;label\r\n1.jpg;0\r\n").lines == [3]
    assert read_table("t.csv", b'file, note\n1.jpg, "a, b"\n').rows == [{"file": "1.jpg", "note": "a, b"}]
    short = read_table("t.csv", b"file,label,city\n1.jpg,0\n")
    assert short.rows == [{"file": "1.jpg", "label": "0", "city": None}] and tells(short.notes[0], "1 row", "line 2")
    assert read_table("list.csv", b"file\n1.jpg\n").rows == [{"file": "1.jpg"}]


def test_jsonl_keeps_its_types() -> None:
    lines = ['{"file": "1.jpg", "label": 1, "sure": true}', "", '{"file": " 2.jpg", "label": 0.0, "x": NaN}']
    table = read_table("m.JSONL", "\ufeff".encode() + "\r\n".join(lines).encode())
    assert table.columns == ["file", "label", "sure", "x"]
    assert [list(row.values()) for row in table.rows] == [["1.jpg", 1, True, None], ["2.jpg", 0.0, None, None]]
    assert table.lines == [1, 3]
    assert all(map(is_table, ("a.csv", "b/A.TSV", "c.jsonl", "d.NDJSON"))) and not is_table("csv.json")


_LONG = ",".join(["x" * 50] * 9)


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("t.csv", b"file,label\n1.jpg,0\n2.jpg,1,9\n", ("t.csv", "line 3", "3 cells", "2", "file, label")),
        ("t.csv", b'file,label\n"a\nb.jpg",0\n2.jpg,1,9\n', ("line 4", "3 cells")),
        ("t.csv", b'file,label\n1.jpg,0\n2.jpg,"1\n3.jpg,0\n', ("line 3", "quote")),
        ("t.csv", b'file,label\n"1.jpg"x,0\n', ("line 2", "quote")),
        ("t.csv", b"", ("t.csv", "empty", "file_name,label")),
        ("t.csv", b"\n\n", ("empty",)),
        ("t.csv", b"000.jpg,0\n001.jpg,1\n", ("t.csv", "no header", "line 1", "000.jpg,0")),
        ("t.csv", b"000,0\n001,1\n", ("no header", "000,0")),
        ("t.csv", f"1.jpg,{_LONG}\n".encode(), ("no header", "xxx…")),
        ("t.csv", b"file,label,file\n1.jpg,0,2.jpg\n", ("line 1", "'file'")),
        ("t.csv", b"file,label\n1.jpg,\x81\xfc\n", ("line 2", "UTF-8")),
        ("t.csv", b"f\0i\0l\0e\0\n\0", ("t.csv", "line 1", "UTF-8")),
        ("t.csv", b"\xff\xfef\0i\0l\0e\0\n\0\xd8", ("t.csv", "UTF-16")),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', ("t.jsonl", "line 2", "JSON")),
        ("t.jsonl", b'[\n{"a": 1}]', ("line 1", "JSON")),
        ("t.jsonl", b'{"a": 1}\n["a"]\n', ("line 2", "one JSON object")),
        ("t.jsonl", b'{"a": 1, "a": 2}\n', ("line 1", "'a'")),
        ("t.jsonl", b"[" * 100_000, ("line 1", "JSON")),
        ("t.jsonl", b'{"a": ' + b"1" * 5000 + b"}", ("line 1",)),
        ("t.jsonl", b" \n", ("t.jsonl", "empty")),
    ],
)
def test_a_fault_names_its_line(name: str, content: bytes, facts: tuple[str, ...]) -> None:
    refused(DataError, lambda: read_table(name, content), *facts)
    with pytest.raises(DataError) as caught:
        read_table(name, content)
    assert len(str(caught.value)) < 250


def test_bytes_of_any_kind_are_a_table_or_a_data_error() -> None:
    rng = random.Random(0)
    good = [_written(rng)[1] for _ in range(20)] + [b'{"a": "b", "c": [1, 2]}\n' * 3]
    for _ in range(1500):
        content = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            read_table(rng.choice(["t.csv", "t.tsv", "t.jsonl"]), bytes(content[: rng.randint(0, len(content))]))
        except DataError as error:
            tells(error, "t.")


# matching


def _random_tree(rng: random.Random) -> list[str]:
    folders = ["", "a", "a/b", "images", "images/train", "Straße/été"]
    bases = ["0.jpg", "1.JPG", "frame.2.png", "ü3.jpg", "x y.jpeg", "7.webp"]
    return sorted({posixpath.join(rng.choice(folders), rng.choice(bases)) for _ in range(rng.randint(1, 12))})


_WAYS: list[Callable[[str, str], str]] = [
    lambda name, folder: posixpath.relpath(name, folder or "."),
    lambda name, folder: name,
    lambda name, folder: "./" + name,
    lambda name, folder: name.replace("/", "\\"),
    lambda name, folder: ".\\" + posixpath.relpath(name, folder or ".").replace("/", "\\"),
    lambda name, folder: unicodedata.normalize("NFD", name),
    lambda name, folder: posixpath.splitext(name)[0],
    lambda name, folder: posixpath.splitext(name)[0] + posixpath.splitext(name)[1].swapcase(),
    lambda name, folder: "/home/me/photos/" + name,
    lambda name, folder: "C:\\Users\\me\\" + name.replace("/", "\\"),
    lambda name, folder: "file:///data/" + name,
]


@pytest.mark.parametrize("way", range(len(_WAYS)))
def test_a_picture_is_found_however_it_is_written(way: int) -> None:
    rng = random.Random(way)
    for _ in range(60):
        pictures = _random_tree(rng)
        folder = rng.choice(["", "a", "labels", "images"])
        rows = [rng.choice(pictures) for _ in range(rng.randint(1, 20))]
        written = [_WAYS[way](name, folder) for name in rows]
        # A name that lies both beside the table and under the root means the one beside it; so do equal ends of paths.
        if any(sum(posixpath.basename(other) == posixpath.basename(name) for other in pictures) > 1 for name in rows):
            continue
        cells = [{"file": text, "label": "no"} for text in written]
        table = Table(posixpath.join(folder, "t.csv"), ["file", "label"], cells, list(range(2, 2 + len(rows))), [])
        matched = match_pictures(table, pictures, _nowhere, "image")
        assert matched and (matched.column, matched.pictures) == ("file", rows), (pictures, written, folder)


def _longest_end(path: str, pictures: list[str]) -> str | tuple[str, ...] | None:
    """The slow way: the pictures that share the most last parts with a path."""
    def shared(name: str) -> int:
        pairs = zip(path.lower().split("/")[::-1], name.lower().split("/")[::-1], strict=False)
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    most = max(map(shared, pictures))
    best = tuple(name for name in pictures if shared(name) == most > 0)
    return best[0] if len(best) == 1 else best or None


def test_paths_of_another_machine_are_found_as_the_slow_way_finds_them() -> None:
    rng = random.Random(0)
    kinds = set()
    for _ in range(300):
        pictures = _random_tree(rng)
        path = "/mnt/" + posixpath.join(rng.choice(["x", "b", "train", "a/b"]), rng.choice(_random_tree(rng)))
        found = find_pictures([path], "labels/t.csv", Index(pictures), _nowhere)[0]
        assert found == _longest_end(path, pictures), (path, pictures)
        kinds.add(type(found))
    assert kinds == {str, tuple, type(None)}


def test_the_longest_end_of_a_path_decides() -> None:
    pictures = ["a/x/0.jpg", "b/x/0.jpg", "b/x/1.jpg", "0.jpg"]
    assert _pictures("file,l\n/mnt/b/x/0.jpg,0\n/mnt/a/x/0.jpg,1\n", pictures) == ["b/x/0.jpg", "a/x/0.jpg"]
    assert _pictures("file,l\n0.jpg,0\n1.jpg,1\n", pictures) == ["0.jpg", "b/x/1.jpg"]
    assert _pictures("file,l\n0.jpg,0\n", pictures, "a/x/l.csv") == ["a/x/0.jpg"]
    assert _pictures("file,l\n/me/y/1.jpg,0\n", pictures) == ["b/x/1.jpg"]


def test_two_pictures_of_one_name_are_an_error_with_line_and_both() -> None:
    refused(DataError, lambda: _match("file,l\n2.jpg,0\n0.jpg,0\n", ["a/0.jpg", "b/0.jpg", "a/2.jpg"]),
            "labels.csv", "line 3", "file", "a/0.jpg", "b/0.jpg")  # fmt: skip
    refused(DataError, lambda: _match("id,l\n0,0\n", ["a/0.jpg", "a/0.png"]), "line 2", "a/0.jpg", "a/0.png")
    assert _pictures("file,l\n0.jpg,0\n0.JPG,1\n", ["0.jpg", "0.JPG"]) == ["0.jpg", "0.JPG"]


def test_a_missing_picture_does_not_borrow_one_of_another_folder() -> None:
    pictures = ["train/0.jpg", "val/0.jpg", "val/1.jpg"]
    rows = "file,l\ntrain/0.jpg,0\ntrain/1.jpg,0\nval/1.jpg,1\n"
    assert _pictures(rows, pictures) == ["train/0.jpg", None, "val/1.jpg"]
    assert _pictures("file,l\n0.jpg,0\n1.jpg,0\n", pictures, "train/labels.csv") == ["train/0.jpg", None]
    assert _pictures("file,l\nx/0.jpg,0\ny/0.jpg,1\n", ["z/0.jpg"]) == [None, None]
    deeper = ["none/0.jpg", "none/night/1.jpg"]
    assert _pictures("file,l\n0.jpg,0\n1.jpg,0\n", deeper, "none/labels.csv") == deeper


def test_files_outside_the_root() -> None:
    there = {"../img/0.jpg", "/data/1.jpg", "../set/t.csv", "/home/set/t.csv", "notes/a.heic"}
    exists = there.__contains__
    rows = "image,l\n../img/0.jpg,0\n/data/1.jpg,1\n"
    assert _pictures(rows, [], "t.csv", exists) == ["../img/0.jpg", "/data/1.jpg"]
    # A way around that comes back to the root is a picture of the root.
    rows = "image,l\n../set/a/0.jpg,0\n/home/set/a/0.jpg,1\n"
    assert _pictures(rows, ["a/0.jpg"], "t.csv", exists) == ["a/0.jpg", "a/0.jpg"]
    rows = "image,l\na/0.jpg,0\nnotes/a.heic,1\n"
    assert _pictures(rows, ["a/0.jpg"], "t.csv", exists) == ["a/0.jpg", "notes/a.heic"]


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("id,file,label\n3,0.jpg,0\n2,1.jpg,1\n1,2.jpg,0\n0,3.jpg,1\n", "file"),  # the id is another number
        ("image,id\n9,0\n8,1\n", "id"),
        ("Image Path,photo\nx,0.jpg\ny,1.jpg\n", "photo"),
        ("Bild,label\n0.jpg,0\n1.jpg,1\n", "Bild"),
        ("label,Nummer\n0,0\n1,1\n0,2\n1,3\n", "Nummer"),  # labels are pictures' names too, but not one a picture
        ("ImageID,label\n0,a\n0,b\n1,a\n", "ImageID"),
        ("title,label\nholiday,0\nwork,1\n", None),
        ("title,label\na,0\nb,1\nc,0\n", None),
        ("id,city\n1,Rome\n100,Oslo\n101,Bonn\n102,Bern\n", None),
        ("filename,label\n98.jpg,0\n99.jpg,1\n", "filename"),  # none is here: that is told, it is no sidecar
    ],
)
def test_the_column_that_names_pictures(text: str, column: str | None) -> None:
    matched = _match(text, [f"{number}.jpg" for number in range(4)])
    assert (matched and matched.column) == column


def test_the_named_column_comes_first() -> None:
    text = "file,frame_of\n0.jpg,b/0.jpg\n1.jpg,b/1.jpg\n"
    pictures = ["0.jpg", "1.jpg", "b/0.jpg", "b/1.jpg"]
    assert _pictures(text, pictures, image_column="frame_of") == ["b/0.jpg", "b/1.jpg"]
    jsonl = "".join(json.dumps({"key": number, "label": 1}) + "\n" for number in range(2))
    assert _pictures(jsonl, pictures[:2], "m.jsonl", image_column="key") == ["0.jpg", "1.jpg"]
    assert _pictures('file,l\n"",0\n1.jpg,1\n', pictures[:2]) == [None, "1.jpg"]


def test_what_was_found_elsewhere_is_said() -> None:
    matched = _match("id,label\n0,0\n1,1\n", ["images/0.jpg", "images/1.jpg"])
    assert matched and tells(matched.notes[0], "labels.csv", "2 of 2", "'0'", "images/0.jpg")


def test_one_hot_columns() -> None:
    table = read_table("_classes.csv", b"filename, none, roadwork\n0.jpg, 1, 0\n1.jpg, 0, 1\n")
    assert one_hot_columns(table, ()) == ["none", "roadwork"]
    assert one_hot_columns(table, ["none"]) == ["roadwork"]
    assert one_hot_columns(table, ["none", "roadwork"]) is None
    assert one_hot_columns(read_table("t.csv", b"filename,a,b\n0.jpg,1,\n"), ()) is None
    assert one_hot_columns(read_table("t.csv", b"filename,a,b\n0.jpg,1,2\n"), ()) is None
    assert one_hot_columns(read_table("t.jsonl", b'{"Bild": "0.jpg", "a": true, "b": 0.0}'), ["Bild"]) == ["a", "b"]
    assert one_hot_columns(read_table("t.jsonl", b'{"Bild": "0.jpg", "a": [1]}'), ["Bild"]) is None


# the revealed inputs


@pytest.mark.shared
@pytest.mark.parametrize(
    ("case", "file", "column", "row", "first", "facts"),
    [
        ("csv_string", "metadata.csv", "file_name", {"file_name": "001.jpg", "label": "yes"}, "000.jpg", ()),
        ("csv_classname", "metadata.csv", "file_name", {"file_name": "001.jpg", "label": "roadwork"}, "000.jpg", ()),
        ("csv_labels_csv", "labels.csv", "file_name", {"file_name": "001.jpg", "label": "1"}, "000.jpg", ()),
        ("csv_semicolon_bom", "metadata.csv", "file_name", {"file_name": "001.jpg", "label": "1"}, "000.jpg",
         ("';'",)),
        ("csv_cp1252", "metadata.csv", "file_name", {"file_name": "001.jpg", "label": "1", "city": "München"},
         "000.jpg", ("Windows-1252",)),
        ("csv_paths", "train.csv", "image", {"image": "../csv_paths_img/1.jpg", "label": "1"},
         "../csv_paths_img/0.jpg", ()),
        ("kaggle", "train.csv", "id", {"id": "001", "label": "1"}, "images/000.jpg", ("images/000.jpg",)),
        ("roboflow", "valid/_classes.csv", "filename", {"none": "0", "roadwork": "1"},
         "valid/frame_032_jpg.rf.00000000000000000000000000000020.jpg", ()),
    ],
)  # fmt: skip
def test_revealed_tables(tmp_path: Path, case: str, file: str, column: str, row: dict[str, str], first: str,
                         facts: tuple[str, ...]) -> None:  # fmt: skip
    with tarfile.open(conftest.SHARED / "data" / "field_cases" / f"{case}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / case
    pictures = [path.relative_to(root).as_posix() for path in root.rglob("*.jpg")]
    table = read_table(file, (root / file).read_bytes())
    matched = match_pictures(table, pictures, lambda name: (root / name).exists(), "image")
    assert matched and matched.column == column and None not in matched.pictures
    assert row.items() <= table.rows[1].items() and matched.pictures[0] == first
    assert len(table.rows) == (8 if case == "roboflow" else 48) == len(set(matched.pictures))
    assert len(table.notes + matched.notes) == len(facts) and tells(" ".join(table.notes + matched.notes), *facts)
    if case == "roboflow":
        assert one_hot_columns(table, [column]) == ["none", "roadwork"]
