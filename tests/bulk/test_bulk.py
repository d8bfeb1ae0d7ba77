"""Folders in, tables out: each picture once, with the answer of `predict` bit for bit, whatever ends a call early."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import random
import shutil
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import png_bytes, striped_image
from facts import tells
from PIL import Image
from pyarrow import parquet
from refusals import refused

from natix_hf.bulk import work
from natix_hf.bulk.answer_all import answer_all
from natix_hf.bulk.call import begun_backend
from natix_hf.bulk.copies import decision_folders, flat_name
from natix_hf.bulk.plan import Segment
from natix_hf.bulk.sources import names_of
from natix_hf.bulk.table import Part, require_whole
from natix_hf.bulk.work import Desk, _Left, wanted_decisions
from natix_hf.bundle.load import Bundle, load_bundle
from natix_hf.bundle.stream import BadImage
from natix_hf.calibration import Calibration
from natix_hf.errors import DataError, NatixError, UsageError, VerificationError
from natix_hf.labels import LabelNames

BATCH = 3
ODD = ["a,b.png", 'a"b.png', "a\nb.png", "a\rb.png", "=1+1.png", "+a.png", "-a.png", "@a.png", "ü 漢.png"]


@pytest.fixture(scope="module")
def bundle(_finished_run: Path) -> Bundle:
    return load_bundle(_finished_run, device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty-three pictures in three folders, beside files that are none."""
    folder = tmp_path / "photos"
    fill(folder)
    return folder


def fill(folder: Path) -> None:
    rng = np.random.default_rng(5)
    (folder / "sub" / "deep").mkdir(parents=True)
    for number in range(23):
        place = folder / ("", "sub", "sub/deep")[number % 3]
        striped_image(number % 2, rng).save(place / f"{number:02}.png")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "sub" / "loop").symlink_to(folder, target_is_directory=True)


def walked(folder: Path) -> list[Path]:
    """The pictures in the order of the table, found in another way: files first, then the folders."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        found += [Path(place, name) for name in sorted(names) if name.endswith(".png") and not name.startswith(".")]
    return found


def read(table: Path) -> list[dict[str, Any]]:
    if table.suffix == ".parquet":
        rows: list[dict[str, Any]] = parquet.read_table(table).to_pylist()
        return rows
    text = table.read_bytes().decode("utf-8")
    if table.suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line]
    kinds: dict[str, Callable[[str], Any]] = {"probability": float, "threshold": float, "accepted": "true".__eq__}
    given = csv.DictReader(io.StringIO(text, newline=""))
    return [{key: kinds.get(key, str)(value) if value else None for key, value in row.items()} for row in given]


def same_as_predict(bundle: Bundle, folder: Path, rows: list[dict[str, Any]]) -> None:
    paths = walked(folder)
    answers = bundle.predict(paths, BATCH)
    assert [row["image"] for row in rows] == [path.relative_to(folder).as_posix() for path in paths]
    for row, answer in zip(rows, answers, strict=True):
        told = {key: row[key] for key in ("probability", "label", "accepted", "decision", "threshold")}
        assert told == {key: getattr(answer, key) for key in told} and row["error"] is None


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_table_holds_what_predict_answers(ending: str, bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    table = tmp_path / f"answers.{ending}"
    summary = answer_all(bundle, photos, table, BATCH, tell=lines.append)
    same_as_predict(bundle, photos, read(table))
    assert (summary.pictures, summary.failed, summary.rows) == (23, 0, 23)
    assert sum(summary.decisions.values()) == 23 and tells(lines[0], photos, 3, ".txt", "hidden", "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == [table.name, f"{table.name}.about.json", "photos"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_any_name_is_one_cell_and_no_formula(ending: str, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ODD:
        (folder / name).write_bytes(png_bytes(Image.new("RGB", (9, 9))))
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(b"no picture")
    answer_all(bundle, folder, tmp_path / f"t.{ending}", tell=lambda line: None)
    rows = read(tmp_path / f"t.{ending}")
    names = [row["image"] for row in rows]
    assert sorted(name.removeprefix("./") for name in names) == sorted([*ODD, "caf\\xe9.png"])
    assert not any(name.startswith(("=", "+", "-", "@")) for name in names)
    [bad] = [row for row in rows if row["error"]]
    assert tells(bad["error"], "caf") and bad["decision"] is None and str(folder) not in bad["error"]


# What ends a call early.


def killed(call: Callable[[], Any], step: int) -> bool:
    """Make a call in a process that ends, without a word, at its `step`th write. True if it ended early."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking beside threads
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = step

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return real(*args, **kwargs)

        return counted

    for name in ("fsync", "replace", "unlink", "link"):
        setattr(os, name, counting(getattr(os, name)))
    try:
        call()
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_write_the_same_call_goes_on(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_KEEP_S", 0.0)  # a part for each batch

    def call(table: Path) -> Any:
        copies = tmp_path / f"{table.stem}-copies"
        return answer_all(bundle, photos, table, BATCH, copy_to=copies, tell=lambda line: None)

    whole, table = tmp_path / "whole.csv", tmp_path / "answers.csv"
    call(whole)
    draw, deaths = random.Random(0), 0
    while killed(lambda: call(table), draw.choice([1, 3, 9, 12, 20, 30])):
        deaths += 1
        assert deaths < 60 and not (table.exists() and table.read_bytes() != whole.read_bytes())
    assert deaths > 5 and table.read_bytes() == whole.read_bytes() and call(table).already
    one, other = (
        sorted((path.parent.name, path.name, path.read_bytes()) for path in folder.rglob("*") if path.is_file())
        for folder in (tmp_path / "whole-copies", tmp_path / "answers-copies")
    )
    assert one == other and len(one) == 23
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".parts") or path.name.startswith(".tmp")]


class Stopped(BaseException):
    """What ends a call in this process."""


def stop_after(bundle: Bundle, batches: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the bundle answer so many batches and then raise. Returns a list that fills with their sizes."""
    real, sizes = type(bundle)._answers, []

    def answers(self: Bundle, batch: list[Any]) -> Any:
        if len(sizes) == batches:
            raise Stopped
        sizes.append(len(batch))
        return real(self, batch)

    monkeypatch.setattr(work, "_KEEP_S", 0.0)
    monkeypatch.setattr(type(bundle), "_answers", answers)
    return sizes


def interrupted(bundle: Bundle, call: Callable[[], Any], batches: int = 4) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_after(bundle, batches, patch)
        call()


def test_one_name_in_two_places_is_two_files(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process makes several calls, from several folders, and a link leads elsewhere meanwhile."""
    places = [tmp_path / "one" / "photos", tmp_path / "two" / "photos"]
    for number, place in enumerate(places):
        place.mkdir(parents=True)
        striped_image(number, np.random.default_rng(number)).save(place / "a.png")
    wanted = [bundle.predict(place / "a.png")[0].probability for place in places]
    link, found = tmp_path / "now", []
    for number, place in enumerate(places):
        monkeypatch.chdir(place.parent)
        answer_all(bundle, "photos", "t.jsonl", tell=lambda line: None)
        link.unlink(missing_ok=True)
        link.symlink_to(place, target_is_directory=True)
        answer_all(bundle, link, tmp_path / f"{number}.jsonl", tell=lambda line: None)
        found.append([read(table)[0]["probability"] for table in (Path("t.jsonl"), tmp_path / f"{number}.jsonl")])
    assert found == [[each, each] for each in wanted] and wanted[0] != wanted[1]


def test_what_was_answered_is_not_answered_again(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call() -> Any:
        return answer_all(bundle, photos, tmp_path / "t.csv", BATCH, tell=lambda line: None)

    assert begun_backend(tmp_path / "t.csv") is None
    interrupted(bundle, call)
    assert begun_backend(tmp_path / "t.csv") == bundle.backend
    sizes = stop_after(bundle, 99, monkeypatch)
    summary = call()
    assert sizes == [3, 3, 3, 2] and (summary.pictures, summary.now) == (23, 11)
    same_as_predict(bundle, photos, read(tmp_path / "t.csv"))


def test_pictures_that_come_change_and_go_between_two_calls(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    def call() -> Any:
        return answer_all(bundle, photos, tmp_path / "t.csv", BATCH, tell=lines.append)

    interrupted(bundle, call)
    first = walked(photos)
    shutil.copy(first[5], photos / "10-new.png")
    first[1].write_bytes(b"no picture any more")
    first[2].unlink()
    first[-1].unlink()
    lines.clear()
    summary = call()
    assert tells(lines[-1], "9 were answered before", "1 are new", "1 have changed", "2 are gone")
    rows = {row["image"]: row for row in read(tmp_path / "t.csv")}
    assert len(rows) == summary.pictures == 24 and list(rows)[-1] == "10-new.png"
    names = [path.relative_to(photos).as_posix() for path in first]
    assert rows[names[1]]["error"] and rows[names[-1]]["error"] and summary.failed == 3
    assert rows["10-new.png"]["probability"] == pytest.approx(rows[names[5]]["probability"], abs=1e-6)
    assert call().already and call().pictures == 24  # nothing has changed since


def test_a_name_seen_from_another_folder_is_another_picture(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.txt").write_text("".join(f"{path.name}\n" for path in walked(photos)), encoding="utf-8")

    def call() -> Any:
        return answer_all(bundle, tmp_path / "names.txt", tmp_path / "t.csv", BATCH, tell=lambda line: None)

    monkeypatch.chdir(photos)
    interrupted(bundle, call, 1)
    monkeypatch.chdir(photos / "sub")
    refused(UsageError, call, "list", "folder", "--restart")
    monkeypatch.chdir(photos)
    assert call().pictures == 23
    monkeypatch.chdir(photos / "sub")
    refused(UsageError, call, "list", "folder", "--restart")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("header.json", b"{"),
        ("header.json", b"null"),
        ("header.json", b'{"schema": 0}'),
        ("pictures.sqlite", b""),
        ("pictures.sqlite", b"SQLite format 3\0" + b"x" * 5000),
        ("pictures.sqlite", None),
    ],
    ids=["cut off", "null", "another schema", "empty", "no pages", "missing"],
)
def test_a_damaged_beginning_is_told_and_begun_anew(
    name: str, content: bytes | None, bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    """A picture has come, so that a list that is made anew has other places than the answers."""

    def call(restart: bool = False) -> Any:
        return answer_all(bundle, photos, tmp_path / "t.csv", BATCH, restart=restart, tell=lambda line: None)

    interrupted(bundle, call)
    shutil.copy(photos / "00.png", photos / "00-new.png")
    damaged = tmp_path / "t.csv.parts" / name
    damaged.unlink()
    if content is not None:
        damaged.write_bytes(content)
    refused(UsageError, call, "t.csv.parts", "--restart")
    begun_backend(tmp_path / "t.csv")
    call(restart=True)
    same_as_predict(bundle, photos, read(tmp_path / "t.csv"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_on_a_full_disk_the_same_call_goes_on(code: int, bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    def call() -> Any:
        return answer_all(bundle, photos, tmp_path / "t.jsonl", BATCH, tell=lambda line: None)

    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(code, os.strerror(code))
        real(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "_KEEP_S", 0.0)
        patch.setattr(os, "fsync", full)
        refused(NatixError, call, os.strerror(code), "the same command goes on")
    assert not (tmp_path / "t.jsonl").exists()
    call()
    same_as_predict(bundle, photos, read(tmp_path / "t.jsonl"))


def test_a_damaged_part_is_answered_again(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    def call() -> Any:
        return answer_all(bundle, photos, tmp_path / "t.csv", BATCH, tell=lambda line: None)

    interrupted(bundle, call)
    parts = sorted((tmp_path / "t.csv.parts").glob("part-*"))
    parts[1].write_bytes(parts[1].read_bytes().replace(b"true", b"tru3"))
    parts[2].write_bytes(b"")
    call()
    same_as_predict(bundle, photos, read(tmp_path / "t.csv"))


# What another call is told.


def test_another_question_is_refused_and_nothing_is_overwritten(
    bundle: Bundle, photos: Path, tmp_path: Path, _finished_run: Path
) -> None:
    table, names = tmp_path / "t.csv", tmp_path / "names.txt"
    names.write_text("".join(f"{path}\n" for path in walked(photos)), encoding="utf-8")

    def call(sources: Any = photos, batch_size: int = BATCH, **more: Any) -> Any:
        return answer_all(bundle, sources, table, batch_size, tell=lambda line: None, **more)

    def others() -> None:
        refused(UsageError, lambda: call(batch_size=4), "batch", "3", "4", "--restart")
        refused(UsageError, lambda: call(only="abstain"), "--only", "--restart")
        refused(UsageError, lambda: call(photos / "sub"), "sources", "sub")
        refused(UsageError, lambda: call(copy_to=tmp_path / "x"), "--copy-to")

    interrupted(bundle, call)
    others()
    call()
    stamp = table.stat().st_mtime_ns
    others()
    assert call().already and call().pictures == 23 and table.stat().st_mtime_ns == stamp
    shutil.copy(photos / "00.png", photos / "99.png")
    refused(UsageError, call, "23", "24", "--restart")
    assert call(restart=True).pictures == 24
    table.write_text("mine\n", encoding="utf-8")
    refused(UsageError, call, table, "changed")
    refused(UsageError, lambda: call(restart=True), table, "changed")
    (tmp_path / "t.csv.about.json").unlink()
    refused(UsageError, lambda: call(restart=True), table, "about")
    assert table.read_text(encoding="utf-8") == "mine\n"

    table = tmp_path / "listed.csv"
    interrupted(bundle, lambda: call(names), 1)
    names.write_text(f"{photos}/02.png\n", encoding="utf-8")
    refused(UsageError, lambda: call(names), "list")
    call(names, restart=True)
    assert [row["image"] for row in read(table)] == [f"{photos}/02.png"]


def test_what_cannot_be_answered_is_refused_before_work(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    empty, csv_file = tmp_path / "empty", tmp_path / "a.csv"
    empty.mkdir()
    csv_file.write_text("image\n", encoding="utf-8")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    parquet.write_table(pa.table({"one": [b"a"], "two": [b"b"], "three": [1]}), tmp_path / "two.parquet")

    def call(sources: Any = photos, out: str = "t.csv", **more: Any) -> Callable[[], Any]:
        return lambda: answer_all(bundle, sources, tmp_path / out, tell=lambda line: None, **more)

    refused(UsageError, call("https://a.b/c.jpg"), "https://a.b/c.jpg", "URL", "download")
    refused(UsageError, call(tmp_path / "nowhere"), "nowhere")
    refused(UsageError, call(empty), empty, "no pictures")
    refused(UsageError, call(csv_file), csv_file, ".txt")
    refused(DataError, call(tmp_path / "bad.parquet"), "bad.parquet")
    refused(UsageError, call(tmp_path / "two.parquet"), "one and two", "--image-column")
    refused(UsageError, call(tmp_path / "two.parquet", image_column="three"), "three")
    refused(UsageError, call([]), "sources")
    refused(UsageError, call(out="t.xlsx"), "t.xlsx", ".csv", ".jsonl", ".parquet")
    refused(UsageError, call(out="empty"), "empty")
    refused(UsageError, call(only="maybe"), "maybe", "abstain")
    refused(UsageError, call(""), "empty")
    refused(UsageError, call([photos, ""]), "empty")
    refused(UsageError, call(out=f"{'x' * 230}.csv"), "--out", "too long", 220)
    for place in ("t.csv", "t.csv.parts", "t.csv.parts/sorted", "t.csv.about.json"):
        refused(UsageError, call(copy_to=tmp_path / place), "--copy-to", place, "the table")
        refused(UsageError, call(explain=tmp_path / place), "--explain", place, "the table")
    for blocked in (csv_file, csv_file / "sorted"):
        refused(UsageError, call(copy_to=blocked), "--copy-to", blocked, "no folder")
        refused(UsageError, call(explain=blocked), "--explain", blocked, "no folder")
    refused(UsageError, call(copy_to=photos / "sorted"), "--copy-to", photos)
    refused(UsageError, call(photos / "**" / "*.png", copy_to=photos), "--copy-to", photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("natix_hf.models.explain.ARCHITECTURES", {})
        patch.setattr("natix_hf.models.explain.architecture_of", lambda name: None)
        refused(UsageError, call(explain=tmp_path / "x"), "cannot be explained")
    left = {"empty", "a.csv", "bad.parquet", "two.parquet", "photos"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_two_calls_at_once_are_refused(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    from natix_hf.provenance.owner import owning

    (tmp_path / "t.csv.parts").mkdir()
    with owning(tmp_path / "t.csv.parts"):
        refused(UsageError, lambda: answer_all(bundle, photos, tmp_path / "t.csv"), "at work", "t.csv")


# Where pictures come from.


def test_lists_patterns_and_tables_give_the_same_answers(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    paths = walked(photos)
    names, archive, tar = tmp_path / "names.txt", tmp_path / "a.zip", tmp_path / "a.tar.gz"
    names.write_text("\n".join(map(str, [*paths, paths[0]])), encoding="utf-8")
    cells = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    (tmp_path / "tables").mkdir()
    table = pa.table({"id": range(23), "image": cells})
    parquet.write_table(table, tmp_path / "tables" / "a.parquet", row_group_size=4)
    parquet.write_table(pa.table({"photo": [cell["bytes"] for cell in cells]}), tmp_path / "b.parquet")
    saved = Dataset.from_dict({"image": cells}, features=Features({"image": ImageFeature()}))
    DatasetDict({"one": saved, "two": saved.select([0])}).save_to_disk(str(tmp_path / "saved"))
    with zipfile.ZipFile(archive, "w") as zipped, tarfile.open(tar, "w:gz") as tarred:
        for path in paths:
            zipped.write(path, path.relative_to(photos).as_posix())
            tarred.add(path, path.relative_to(photos).as_posix())
        zipped.writestr("notes.txt", "no picture")

    def answers(sources: Any, **more: Any) -> tuple[list[str], list[Any]]:
        table = tmp_path / "one.csv"
        interrupted(bundle, lambda: answer_all(bundle, sources, table, BATCH, tell=lambda line: None, **more), 2)
        answer_all(bundle, sources, table, BATCH, tell=lambda line: None, **more)
        rows = read(table)
        for path in tmp_path.glob("one.csv*"):
            path.unlink()
        return [row["image"] for row in rows], [row["probability"] for row in rows]

    relative = [path.relative_to(photos).as_posix() for path in paths]
    places, wanted = answers(photos)
    assert places == relative
    assert answers(f"{photos}/**/*.png") == ([str(path) for path in paths], wanted)
    assert answers(names) == ([str(path) for path in paths], wanted)
    assert answers([photos, names, photos / "sub"])[1] == wanted  # each file once
    assert answers(tmp_path / "tables") == ([f"a.parquet/{n}" for n in range(23)], wanted)
    assert answers(tmp_path / "b.parquet") == ([f"b.parquet/{n}" for n in range(23)], wanted)
    assert answers(tmp_path / "saved", split="one") == ([f"one/{n}" for n in range(23)], wanted)
    assert answers(tmp_path / "saved")[0][-2:] == ["one/22", "two/0"]
    assert answers(archive) == (relative, wanted)
    assert answers(tar) == (relative, wanted)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_names_of_a_list(mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(mark + b"a b.png\r\n\r\n   \n c.png \ncaf\xe9.png\n\xe2\x80\xa8.png")
    names = ["a b.png", " c.png ", os.fsdecode(b"caf\xe9.png"), "\u2028.png"]
    assert list(names_of(str(path))) == names
    path.write_text("a b.png\r\n\u6f22.png\n", encoding="utf-16", newline="")
    assert list(names_of(str(path))) == ["a b.png", "\u6f22.png"]


# What is left beside the table.


def test_only_and_copies(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    table, copies = tmp_path / "t.csv", tmp_path / "look"
    answers = {path: bundle.predict(path)[0].decision for path in walked(photos) if path.name != "bad.png"}
    labels = bundle.policy.labels
    taken = copies / labels.yes / flat_name("00.png")
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"mine")
    lines: list[str] = []
    summary = answer_all(bundle, photos, table, BATCH, only=["yes"], copy_to=copies, tell=lines.append)
    positive = [path for path, decision in answers.items() if decision == labels.yes]
    wanted = sorted(path.relative_to(photos).as_posix() for path in positive)
    assert sorted(row["image"] for row in read(table)) == wanted and 0 < len(wanted) < 23
    assert (summary.pictures, summary.rows, summary.failed) == (24, len(wanted), 1)
    assert any("bad.png" in line for line in lines)  # it has no row, and is told
    assert taken.read_bytes() == b"mine" and summary.copied == len(wanted)
    there = sorted(path.read_bytes() for path in copies.rglob("*.png") if path != taken)
    assert there == sorted((photos / name).read_bytes() for name in wanted)


def test_the_folder_of_a_decision_is_a_plain_name() -> None:
    for no, yes in (("../..", "/etc"), ("con", "a/b"), ("..", "a."), ("Yes?", "no:"), ("a\\b", ".x"), ("no", "=x")):
        names = list(decision_folders(LabelNames(no, yes)).values())
        assert names == ["no", "yes", "abstain"], names
    plain = decision_folders(LabelNames("speed limit", "Straßenbau"))
    assert list(plain.values())[:2] == ["speed limit", "Straßenbau"]


def test_a_flat_name_fits_every_file_system() -> None:
    rng = random.Random(1)
    signs = "ab./\\:*?\"<>|\n\0 ü漢"
    for _ in range(2000):
        name = flat_name("".join(rng.choice(signs) for _ in range(rng.randint(1, 300))))
        assert name and len(name.encode()) <= 200 and not set(name) & set('/\\:*?"<>|\n\0') and name not in (".", "..")


def test_words_for_decisions() -> None:
    names = LabelNames("None", "Roadwork")
    assert wanted_decisions([], names) is None
    assert wanted_decisions(["YES", "none", "abstain"], names) == {"Roadwork", "None", "abstain"}
    refused(UsageError, lambda: wanted_decisions(["no"], LabelNames("dog", "No")), "no", "dog")


def test_heatmaps(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    summary = answer_all(
        bundle, photos, tmp_path / "t.csv", BATCH, only="no", explain=tmp_path / "why", tell=lambda line: None
    )
    names = {flat_name(row["image"]) + ".png" for row in read(tmp_path / "t.csv")}
    assert {path.name for path in (tmp_path / "why").iterdir()} == names and summary.explained == len(names) > 0
    row = read(tmp_path / "t.csv")[0]["image"]
    made = np.asarray(Image.open(tmp_path / "why" / f"{flat_name(row)}.png"))
    np.testing.assert_array_equal(made, np.asarray(bundle.explain(photos / row).picture()))


# The parts of the work.


def test_every_place_is_left_to_one_process() -> None:
    """Against a slow reference: sets of places, for random parts, sizes and numbers of processes."""
    rng = random.Random(3)
    for _ in range(200):
        batch, world = rng.choice([1, 3, 32]), rng.choice([1, 2, 3])
        count = rng.randint(0, 5000)
        cuts = sorted(rng.sample(range(0, count + 1), min(count, 2 * rng.randint(0, 4))))
        cuts = sorted({cut // batch * batch for cut in cuts})
        spans = list(zip(cuts[::2], cuts[1::2], strict=False))
        parts = [Part(Path(), 7, start, stop, Counter(), 0, False) for start, stop in spans]
        covered = {place for start, stop in spans for place in range(start, stop)}
        seen: list[int] = []
        for rank in range(world):
            desk = Desk(Path(), (), "csv", rank, world)
            left = _Left(Segment(7, count, None), parts, desk, batch)
            runs = list(left._runs(count))
            assert all(start % batch == 0 and (stop % batch == 0 or stop == count) for start, stop in runs)
            own = [place for start, stop in runs for place in range(start, stop)]
            assert own == sorted(own) and left.count == len(own)
            seen += own
        assert sorted(seen) == sorted(set(range(count)) - covered)


def test_a_gap_between_parts_is_seen(tmp_path: Path) -> None:
    def parts(*spans: tuple[int, int]) -> list[Part]:
        return [Part(Path(), 1, start, stop, Counter(), 0, False) for start, stop in spans]

    require_whole(parts((0, 3), (3, 7)), 1, 7, tmp_path)
    require_whole([], 1, 0, tmp_path)
    for given in (parts(), parts((0, 3)), parts((3, 7)), parts((0, 3), (4, 7)), parts((0, 4), (3, 7))):
        refused(VerificationError, lambda given=given: require_whole(given, 1, 7, tmp_path), tmp_path)
    refused(VerificationError, lambda: require_whole(parts((0, 3)), 1, None, tmp_path), tmp_path)


@pytest.mark.parametrize("calibration", ["as it is", "none"])
def test_an_answer_that_is_no_number_fails(
    calibration: str, bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its batch are answered, and their bits are the same."""
    if calibration == "none":
        monkeypatch.setattr(bundle, "policy", replace(bundle.policy, calibration=Calibration("none")))
    summary = answer_all(bundle, photos, tmp_path / "whole.jsonl", BATCH, tell=lambda line: None)
    wanted, real, passes = read(tmp_path / "whole.jsonl"), bundle._inference.answer, []

    def broken(pixels: Any) -> Any:
        logits, features = real(pixels)
        passes.append(len(logits))
        logits[0] = (float("nan"), float("inf"), float("-inf"))[len(passes) % 3]
        return logits, features

    monkeypatch.setattr(bundle._inference, "answer", broken)
    summary = answer_all(bundle, photos, tmp_path / "t.jsonl", BATCH, tell=lambda line: None)
    rows = read(tmp_path / "t.jsonl")
    assert summary.failed == len(passes) == 8 and len(rows) == 23
    for place, (row, whole) in enumerate(zip(rows, wanted, strict=True)):
        if place % BATCH:
            assert row == whole
        else:
            assert tells(row["error"], row["image"], "no number") and row["probability"] is row["decision"] is None
    refused(DataError, lambda: bundle.predict([photos / "00.png"]), "image 0", "no number")
    [pair] = bundle.stream_beside(bundle, [photos / "00.png"])
    assert all(tells(each.problem, each.name, "image 0") for each in pair if isinstance(each, BadImage))
