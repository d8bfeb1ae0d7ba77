"""Folders of random shape are read as they were meant, and every file is a row or is named."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import tarfile
import unicodedata
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from natix_hf.data.config import DataConfig
from natix_hf.data.reading import reading_of
from natix_hf.data.rows import load_image_data
from natix_hf.data.sources import SourceRows, load_source

TREES = 300

SPELLINGS = {"train": ["train", "training", "training_set", "train2017"],
             "validation": ["val", "valid", "validation", "dev", "val_images"],
             "test": ["test", "testing", "eval", "evaluation", "test-set"]}  # fmt: skip
ROLES = {"train": None, "validation": "val_select", "test": "test", None: None}
# Two classes, and the positive class where their names do not say which one means yes.
PAIRS: list[tuple[tuple[str, str], str | None]] = [
    (("none", "roadwork"), None), (("no", "yes"), None), (("0", "1"), None), (("negative", "positive"), None),
    (("not_cracked", "cracked"), None), (("street", "Strassenbaustelle für Fußgänger"), "1"), (("café", "bar"), "1"),
    (("control", "test"), "1"), (("no_train", "train"), None), (("[a]", "*.png"), "1"), (("~", "-rf"), "1"),
    (("a.b", "a.c"), "1"), (("FALSE", "True"), None),
]  # fmt: skip
STEMS = ["street with train 7", "test", "train", "val-[3]", "a*b?", "-rf", "dots.in.a.name", "~", "{x}", "50% #1",
         "it's", "München", "day and night", "IMG_0001", "0", "eval.test", 'say "hi"', "日本", "two\nlines", "a;b,c",
         "x&y", "::", "http:"]  # fmt: skip
ENDINGS = [".png", ".PNG", ".jpg", ".JPG", ".jpeg", ".Jpeg", ".webp", "", ".dat", ".png_large"]
DEEPER = ["2024-01-01", "night", "test", "train", "none", "yes", "a b", "images", "[1]"]


def _pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(40):
        buffer = io.BytesIO()
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image.save(buffer, format=("PNG", "JPEG", "PNG", "GIF")[i % 4])
        found.append(buffer.getvalue())
    return found


@dataclass
class Tree:
    """Files to write and links to make, and what is meant: class, split and label of each picture that is a row.

    `read` are the tables that are read. Everything else must be left out.
    """

    rng: random.Random
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    rows: dict[str, tuple[str | None, str | None, int]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    settings: dict[str, Any] = field(default_factory=dict)
    pictures: list[bytes] = field(default_factory=_pictures)

    def picture(self, folder: str, stems: list[str] = STEMS) -> str:
        """A new picture in a folder, whose name may be in either Unicode form and have any ending."""
        form: Any = self.rng.choice(["NFC", "NFD"])
        while True:
            ending, number = self.rng.choice(ENDINGS), f" {len(self.files)}"
            stem = unicodedata.normalize(form, self.rng.choice(stems))
            stem += number if not ending else self.rng.choice(["", number])  # else it could be that of a folder
            name = f"{folder}/{stem}{ending}".lstrip("/")
            if os.path.basename(name) not in (".", "") and not stem.startswith("."):
                alike = {unicodedata.normalize("NFC", other).casefold() for other in self.files}
                if unicodedata.normalize("NFC", name).casefold() not in alike:
                    break
        self.files[name] = self.rng.choice(self.pictures)
        return name


def _case(rng: random.Random, text: str) -> str:
    return rng.choice([text, text, text.upper(), text.title()])


def _spelled(rng: random.Random, name: str) -> str:
    form: Any = rng.choice(["NFC", "NFD"])
    return unicodedata.normalize(form, _case(rng, name) + rng.choice(["", "", " "]))


def _splits(rng: random.Random) -> dict[str | None, str]:
    """The splits of a tree and the folders that they stand in; {None: ""}: there are none."""
    if rng.random() < 0.4:
        return {None: ""}
    chosen = rng.choice([["train", "test"], ["train", "validation"], ["train", "validation", "test"],
                         ["train"], ["validation", "test"]])  # fmt: skip
    return {split: _case(rng, rng.choice(SPELLINGS[split])) for split in chosen}


def _given(split: str | None, splits: Any) -> str | None:
    """A source without a train split is divided like one."""
    return ROLES[split] if {"train", None} & set(splits) else None


def _class_folders(tree: Tree, many: int) -> None:
    rng = tree.rng
    names, positive = rng.choice(PAIRS)
    words = {"train", "test"} & set(names)
    splits: dict[str | None, str] = {None: ""} if words else _splits(rng)
    below = None not in splits and len(splits) > 1 and rng.random() < 0.2
    third = rng.random() < 0.3
    if third:
        how = rng.choice(["excluded", "counts"])
        tree.settings["exclude_classes" if how == "excluded" else "positive_class"] = (
            ["Unsure"] if how == "excluded" else names[1]
        )
    if positive is not None:
        tree.settings["positive_class"] = _case(rng, names[1])
    classes = {name: label for label, name in enumerate(names)} | ({"unsure": 0} if third else {})
    fixed = {name: _spelled(rng, name) for name in classes}
    for split, folder in splits.items():
        for name, label in classes.items():
            written = fixed[name] if below or None in splits else _spelled(rng, name)
            inside = "/".join(part for part in ((written, folder) if below else (folder, written)) if part)
            for _ in range(many if label or not third else max(2, many // 2)):
                deeper = "" if rng.random() < 0.7 else "/" + "/".join(rng.choices(DEEPER, k=rng.randint(1, 2)))
                kept = -1 if name == "unsure" and "exclude_classes" in tree.settings else label
                tree.rows[tree.picture(inside + deeper)] = (name, _given(split, splits), kept)
    if "test" not in splits and None not in splits and "train" in splits and not below and rng.random() < 0.4:
        folder = _case(rng, rng.choice(SPELLINGS["test"]))
        for _ in range(3):
            tree.rows[tree.picture(folder)] = (None, "test", -1)
    if rng.random() < 0.4:
        _write_table(tree, rng.choice(["metadata.csv", "metadata.jsonl", "facts.tsv"]), list(tree.rows), {})
    if None in splits and rng.random() < 0.3:
        tree.picture("")  # a picture in no class folder


def _tables(tree: Tree, many: int) -> None:
    rng = tree.rng
    no, yes = rng.choice([("no", "yes"), ("0", "1"), ("0.0", "1.0"), ("None", "Roadwork"), ("False", "True")])
    folders = rng.choice([["images"], [""], ["a", "b/c"], ["images", "images/deeper"]])
    splits = rng.choice([None, "column", "tables"])
    chosen = ["train", "validation", "test"] if splits else [None]
    plain = [stem for stem in STEMS if "/" not in stem and stem.strip() == stem]
    labels: dict[str, dict[str, Any]] = {}
    for split in chosen:
        for label in (0, 1):
            for _ in range(many):
                name = tree.picture(rng.choice(folders), plain)
                tree.rows[name] = ((no, yes)[label].removesuffix(".0"), _given(split, chosen), label)
                labels[name] = {"label": _case(rng, (no, yes)[label]) if no != "0.0" else (no, yes)[label]}
                if splits == "column":
                    labels[name]["Split"] = _case(rng, rng.choice(SPELLINGS[str(split)]))
    names = list(labels)
    rng.shuffle(names)
    if splits == "tables":
        for split in chosen:
            own = [name for name in names if tree.rows[name][1] == ROLES[split]]
            _write_table(tree, f"{rng.choice(SPELLINGS[str(split)][:3])}.csv", own, labels)
    else:
        _write_table(tree, rng.choice(["labels.csv", "metadata.csv", "x.tsv", "metadata.jsonl"]), names, labels)
    if splits is None and rng.random() < 0.5:
        tree.picture(folders[0], plain)  # a picture that the table does not name


def _roboflow(tree: Tree, many: int) -> None:
    rng = tree.rng
    splits = {split: rng.choice(["train", "valid", "test"][i : i + 1]) for i, split in enumerate(SPELLINGS)}
    for split, folder in splits.items():
        table: dict[str, dict[str, Any]] = {}
        for label in (0, 1):
            for _ in range(many):
                name = tree.picture(folder, [stem for stem in STEMS if stem.strip() == stem])
                tree.rows[name] = (("none", "roadwork")[label], ROLES[split], label)
                table[name] = {" none": 1 - label, " roadwork": label}
        _write_table(tree, f"{folder}/_classes.csv", list(table), table)


def _write_table(tree: Tree, name: str, pictures: list[str], values: dict[str, dict[str, Any]]) -> None:
    """A table of pictures, with a further column unless it is Roboflow's, as some program writes it."""
    rng, folder = tree.rng, os.path.dirname(name)
    column = rng.choice(["file_name", "filename", "image", "path"])
    rows = [{column: os.path.relpath(picture, folder or ".")} | values.get(picture, {}) for picture in pictures]
    if "_classes" not in name:
        rows = [row | {"camera": rng.choice("ab")} for row in rows]
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        file = io.StringIO(newline="")
        separator = "\t" if name.endswith(".tsv") else rng.choice(",;")
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        text = file.getvalue()
    tree.files[name] = text.encode(rng.choice(["utf-8", "utf-8-sig"]))
    tree.read.add(name)


def _clutter(tree: Tree) -> None:
    """Files that are no rows, beside the pictures and elsewhere."""
    rng, pictures = tree.rng, list(tree.rows)
    for name in rng.sample(pictures, min(4, len(pictures))):
        folder, base = os.path.split(name)
        stem, at = os.path.splitext(base)[0], f"{folder}/" if folder else ""
        for junk, content in rng.sample([
            (f"{at}{stem}.json", b'{"shapes": 1}'), (f"{at}{stem}.txt", b"a text"), (f"{at}{stem}.xml", b"<a/>"),
            (f"{at}@eaDir/{base}/SYNOPHOTO.jpg", tree.pictures[0]), (f"{at}._{base}", tree.pictures[0]),
            (f"{at}.{stem}.png", tree.pictures[0]), (f"{at}clip.MP4", b"mp4"), (f"{at}IMG_9.HEIC", b"heic"),
            (f"{at}Thumbs.db", b""), (f"{at}empty.txt", b""), (f"{at}raw.CR2", b"raw"), (f"{at}no ending", b"no"),
        ], 3):  # fmt: skip
            tree.files.setdefault(junk, content)
    for junk, content in rng.sample([
        ("README.md", b"# a set of pictures"), (".git/HEAD", b"ref"), (".DS_Store", b"\0"), ("notes.docx", b"PK"),
        ("__MACOSX/none/._0.png", b"\0"), ("logs.csv", b"time,level\n1,INFO\n2,INFO\n"), ("empty.json", b""),
        ("data.json", b'{"a": [1]}'), (".ipynb_checkpoints/0.png", tree.pictures[0]), ("model.pt", b"\x80"),
    ], rng.randint(0, 4)):  # fmt: skip
        tree.files.setdefault(junk, content)


def _links(tree: Tree, outside: Path) -> None:
    """Links: broken ones, one to itself, one back to the root, and one to a picture or folder outside."""
    rng, pictures = tree.rng, [name for name in tree.rows if "/" in name and tree.rows[name][2] >= 0]
    if not pictures:
        return
    folder = os.path.dirname(rng.choice(pictures))
    for name, target in rng.sample([(f"{folder}/gone.png", "nowhere"), ("loop", "loop"),
                                    (f"{folder}/up", os.path.relpath(".", folder))], 2):  # fmt: skip
        tree.links.setdefault(name, target)
    if not tree.read:  # a table would not name it
        like = tree.rows[rng.choice(pictures)]
        folder = os.path.dirname(next(name for name, meant in tree.rows.items() if meant == like and "/" in name))
        tree.links[f"{folder}/a link.png"] = str(outside / "one.png")
        tree.links[f"{folder}/linked"] = str(outside / "folder")
        tree.rows[f"{folder}/a link.png"] = tree.rows[f"{folder}/linked/two.PNG"] = like


def _tree(seed: int, outside: Path, many: int = 2, links: bool = True) -> Tree:
    rng = random.Random(seed)
    tree = Tree(rng)
    rng.choices([_class_folders, _tables, _roboflow], [6, 3, 1])[0](tree, many)
    _clutter(tree)
    if links and rng.random() < 0.4:
        _links(tree, outside)
    return tree


def _write(tree: Tree, folder: Path, shuffled: int = 0) -> Path:
    names = [*tree.files, *tree.links]
    random.Random(shuffled).shuffle(names)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in tree.files:
            path.write_bytes(tree.files[name])
        else:
            path.symlink_to(tree.links[name])
    (folder / "an empty folder").mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf_datasets")


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "folder").mkdir()
    for name, content in zip(("one.png", "folder/two.PNG"), _pictures()[-2:], strict=True):
        (folder / name).write_bytes(content)
    return folder


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _check(rows: SourceRows, tree: Tree, every: set[str], prefix: str = "") -> None:
    """Rows are what was meant, and each file is a row, a table that was read, or left out, and only one of these."""
    ids = [name.removeprefix(prefix) for name in rows.ids]
    assert set(ids) == set(tree.rows) and len(set(ids)) == len(ids)
    found = {name: (_alike(cls), role, label) for name, cls, role, label in
             zip(ids, rows.classes, rows.given, rows.labels.tolist(), strict=True)}  # fmt: skip
    meant = {name: (_alike(cls or "(no label)"), role, label) for name, (cls, role, label) in tree.rows.items()}
    assert found == meant
    left_out = {name.removeprefix(prefix) for name in rows.files.left_out}
    assert rows.files.found == rows.files.used + len(left_out) == len(every)
    assert rows.files.used == len(ids) + len(tree.read)
    assert left_out.isdisjoint(ids) and left_out.isdisjoint(tree.read) and {*ids, *tree.read} | left_out == every
    assert all(rows.files.left_out.values())


def _every(tree: Tree) -> set[str]:
    linked = {f"{name}/two.PNG" for name, target in tree.links.items() if target.endswith("/folder")}
    return {*tree.files, *tree.links, *linked} - {name for name in tree.links if f"{name}/two.PNG" in linked}


@pytest.mark.parametrize("seed", range(0, TREES, 20))
def test_a_folder_is_read_as_it_was_meant(seed: int, outside: Path, tmp_path: Path) -> None:
    for number in range(seed, seed + 20):
        tree = _tree(number, outside)
        config = DataConfig(source=str(_write(tree, tmp_path / str(number))), **tree.settings)
        try:
            _check(load_source(config), tree, _every(tree))
        except Exception as error:
            raise AssertionError(f"tree {number}: {tree.settings} {sorted(tree.rows.items())}: {error}") from error


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_read_as_the_folder_in_it(kind: str, outside: Path, tmp_path: Path) -> None:
    """With one folder around everything, two, or none."""
    for number in range(400, 430):
        tree = _tree(number, outside, links=False)
        folder = _write(tree, tmp_path / str(number))
        wrapper = tree.rng.choice(["", "photos/", "repo-main/data/"])
        if wrapper and not _is_plain(tree):
            wrapper = ""
        names = sorted(tree.files, key=lambda name: tree.rng.random())
        path = tmp_path / f"{number}.{kind}"
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name in names:
                    archive.write(folder / name, f"{wrapper}{name}")
        else:
            with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as packed:
                for name in names:
                    packed.add(folder / name, f"{wrapper}{name}")
        try:
            rows = load_source(DataConfig(source=str(path), **tree.settings))
            _check(rows, tree, set(tree.files), f"{path.name}/{wrapper}")
            as_folder = load_source(DataConfig(source=str(folder), **tree.settings))
            content = {name.removeprefix(f"{path.name}/{wrapper}"): cell["bytes"]
                       for name, cell in zip(rows.ids, rows.images["image"], strict=True)}  # fmt: skip
            assert content == {name: tree.files[name] for name in as_folder.ids}
        except Exception as error:
            raise AssertionError(f"tree {number} in {wrapper!r}: {tree.settings} {sorted(tree.rows)}") from error


def _is_plain(tree: Tree) -> bool:
    """True if it can be seen that the folder around everything is no class: splits or plain classes lie in it."""
    tops = {_alike(name.split("/")[0]) for name in tree.rows if "/" in name}
    plain = {"none", "roadwork"}, {"no", "yes"}, {"0", "1"}, {"negative", "positive"}, {"false", "true"}
    return tops in plain and "exclude_classes" not in tree.settings


@pytest.mark.parametrize("seed", [500, 501, 502, 503, 504, 505])
def test_the_order_of_writing_and_a_second_reading_change_nothing(seed: int, outside: Path, tmp_path: Path) -> None:
    tree = _tree(seed, outside, many=14)
    for name in tree.files:  # no two pictures are equal, so that no row is dropped for another one
        if name in tree.rows:
            buffer = io.BytesIO()
            pixels = np.frombuffer(tree.rng.randbytes(8 * 8 * 3), dtype=np.uint8).reshape(8, 8, 3)
            Image.fromarray(pixels).save(buffer, format="PNG")
            tree.files[name] = buffer.getvalue()
    config = DataConfig(source=str(_write(tree, tmp_path / "a")), **tree.settings)
    data = load_image_data(config)
    reading = reading_of(data)
    files = reading["files"]
    names = [entry["file"] for entry in files["left_out"]]
    assert files["found"] == files["used"] + len(names) == len(_every(tree)) and len(set(names)) == len(names)
    assert reading["rows"] == sum(split["0"] + split["1"] for split in reading["splits"].values())
    kept = {name: meant for name, meant in tree.rows.items() if meant[2] >= 0}
    assert reading["rows"] == files["used"] - len(tree.read) == len(kept)
    for role, split in reading["splits"].items():
        own = [label for _, given, label in kept.values() if given == role]
        assert not own or (split["0"], split["1"], split["from"]) == (own.count(0), own.count(1), "the source")
    before = _cached()
    again = load_image_data(config)
    assert reading_of(again) == reading and _cached() == before
    assert again.decoded._fingerprint == data.decoded._fingerprint
    other = load_image_data(DataConfig(source=str(_write(tree, tmp_path / "b", shuffled=1)), **tree.settings))
    assert (other.splits.ids, other.splits.roles) == (data.splits.ids, data.splits.roles)
    told = json.dumps(reading_of(other)).replace(str(tmp_path / "b"), str(tmp_path / "a"))
    assert json.loads(told) == reading
    shutil.copy2(tmp_path / "a" / next(iter(kept)), tmp_path / "a" / next(name for name in reversed(kept)))
    changed = load_image_data(config)
    assert changed.decoded._fingerprint != data.decoded._fingerprint  # a picture that was replaced is read anew


def _cached() -> dict[str, int]:
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "natix_hf"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("decoded-*")}
