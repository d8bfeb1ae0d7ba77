"""natix-hf predict on folders, lists and tables: what it prints, what it writes, how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, png_bytes, striped_image
from facts import tells
from PIL import Image

import natix_hf
from natix_hf.bulk import work


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "photos", np.random.default_rng(2)
    (folder / "sub").mkdir(parents=True)
    for number in range(12):
        striped_image(number % 2, rng).save(folder / ("sub" if number % 3 else "") / f"{number:02}.png")
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    return folder


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.read_bytes().decode("utf-8"), newline="")))


def test_a_folder_is_printed_or_kept(command: Command, finished_run: Path, photos: Path, tmp_path: Path) -> None:
    code, out, err = command("predict", finished_run, photos, "--json")
    printed = {row["image"]: row for row in map(json.loads, out.splitlines())}
    assert code == 0 and len(printed) == 12 and tells(err.strip(), 1, ".txt")
    code, out, err = command("predict", finished_run, photos, "--out", tmp_path / "a.csv")
    assert (code, err) == (0, "") and tells(out.splitlines()[-2], "a.csv", "12 pictures")
    kept = rows_of(tmp_path / "a.csv")
    assert len(kept) == 12
    for row in kept:
        same = printed[str(photos / row["image"])]
        assert row["decision"] == same["decision"] and float(row["probability"]) == same["probability"]
    code, out, _ = command("predict", finished_run, photos, "--out", tmp_path / "a.csv")
    assert code == 0 and "already complete" in out


def test_a_failure_has_a_row_and_the_exit_code(
    command: Command, finished_run: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    for _ in range(2):  # of the table, not of the call
        code, _, err = command("predict", finished_run, photos, "--out", tmp_path / "a.csv")
        assert code == 1 and tells(err.strip(), "1 of 13", "a.csv", "error")
    [bad] = [row for row in rows_of(tmp_path / "a.csv") if row["error"]]
    assert bad["image"] == "bad.png" and tells(bad["error"], "bad.png") and not bad["decision"]


def test_only_and_copies(command: Command, finished_run: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    labels = natix_hf.load_bundle(finished_run).policy.labels
    _, out, _ = command("predict", finished_run, photos)
    wanted = [line for line in out.splitlines() if labels.yes in line.split()[1]]
    code, out, err = command("predict", finished_run, photos, "--only", "yes", "--copy-to", tmp_path / "look")
    assert code == 1 and out.splitlines() == wanted and 0 < len(wanted) < 12
    told = err.splitlines()
    assert any(tells(line, len(wanted), 13) for line in told if "left out" in line and "shown" in line)
    assert any("bad.png" in line for line in told)  # not a row that is wanted, and not hidden either
    copies = [path for path in (tmp_path / "look").rglob("*") if path.is_file()]
    assert {path.parent.name for path in copies} == {labels.yes} and len(copies) == len(wanted)
    command("predict", finished_run, photos, "--only", labels.yes, "--copy-to", tmp_path / "look")
    assert len([path for path in (tmp_path / "look").rglob("*") if path.is_file()]) == len(wanted)


def test_names_of_standard_input(
    command: Command, finished_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Path(os.fsdecode(os.fsencode(photos) + (b"/caf\xe9 1.png" if os.name != "nt" else b"/cafe 1.png")))
    odd.write_bytes(png_bytes(Image.new("RGB", (20, 20))))

    class Given:
        buffer = io.BytesIO(b"\r\n".join([os.fsencode(photos / "00.png"), b"", os.fsencode(odd), b"gone.png"]))

    monkeypatch.setattr("sys.stdin", Given)
    code, _, _ = command("predict", finished_run, "-", "--out", tmp_path / "a.csv")
    rows = rows_of(tmp_path / "a.csv")
    assert code == 1 and [bool(row["error"]) for row in rows] == [False, False, True]
    Given.buffer.seek(0)
    code, out, _ = command("predict", finished_run, "-")
    assert code == 1 and len(out.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("PHOTOS", "--restart"), ("--restart", "--out")),
        (("PHOTOS", "--json", "--out", "a.jsonl"), ("--json", "--out")),
        (("PHOTOS", "--out", "a.txt"), ("a.txt", ".csv")),
        (("PHOTOS", "--only", "maybe"), ("maybe", "abstain")),
        (("PHOTOS", "--copy-to", "PHOTOS/x"), ("--copy-to",)),
        (("PHOTOS", "nowhere", "--out", "a.csv"), ("nowhere",)),
        (("https://a.b/c.png",), ("https://a.b/c.png", "download")),
        (("PHOTOS/*.jpg",), ("*.jpg", "pattern")),
    ],
)
def test_bad_usage_is_one_line(
    arguments: tuple[str, ...], facts: tuple[str, ...], command: Command, finished_run: Path, photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(photos.parent)
    before = {path.name for path in photos.parent.iterdir()}
    given = [argument.replace("PHOTOS", str(photos)) for argument in arguments]
    code, out, err = command("predict", finished_run, *given)
    assert (code, out) == (2, "") and all(tells(err.splitlines()[-1], fact) for fact in facts)
    assert {path.name for path in photos.parent.iterdir()} == before


def test_several_processes_need_a_table(
    command: Command, finished_run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = command("predict", finished_run, photos)
    assert code == 2 and tells(err.strip(), 2, "--out")


def test_bf16_has_a_column_of_its_own(
    command: Command, finished_run: Path, photos: Path, tmp_path: Path
) -> None:
    code, _, _ = command("predict", finished_run, photos, "--bf16", "--out", tmp_path / "a.csv")
    exact = [answer.decision for answer in natix_hf.load_bundle(finished_run).predict(sorted(photos.rglob("*.png")))]
    rows = {row["image"]: row["float32_decision"] for row in rows_of(tmp_path / "a.csv")}
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.png"))]
    assert code == 0 and [rows[name] for name in names] == exact


def test_a_line_now_and_then(
    command: Command, finished_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_LINE_S", 0.0)
    words: tuple[Any, ...] = ("predict", finished_run, photos, "--batch-size", 4, "--out")
    _, _, err = command(*words, tmp_path / "a.csv")
    assert tells(err.splitlines()[0], "4 of 12", "pictures/s", "left")
    monkeypatch.undo()
    _, _, err = command(*words, tmp_path / "b.csv", "--quiet")
    assert err == ""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_an_interrupt_is_told_and_continued(finished_run: Path, photos: Path, tmp_path: Path) -> None:
    for number in range(300):
        (photos / f"x{number:03}.png").write_bytes((photos / "00.png").read_bytes())
    words = [sys.executable, "-m", "natix_hf", "predict", str(finished_run), str(photos), "--batch-size", "1"]
    words += ["--out", str(tmp_path / "a.csv")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    end = time.monotonic() + 120
    while not (tmp_path / "a.csv.parts" / "header.json").is_file() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and tells(err.strip(), "interrupted", "goes on")
    done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0 and len(rows_of(tmp_path / "a.csv")) == 312


def test_a_table_keeps_the_backend_that_began_it(
    command: Command, finished_run: Path, photos: Path, tmp_path: Path
) -> None:
    table = tmp_path / "a.csv"
    assert command("predict", finished_run, photos, "--out", table, "--backend", "torch")[0] == 0
    asked: list[str | None] = []
    real = natix_hf.load_bundle

    def load(reference: object, backend: str | None = None, **more: Any) -> Any:
        asked.append(backend)
        return real(reference, backend="torch", **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("natix_hf.bundle.load.load_bundle", load)
        assert command("predict", finished_run, photos, "--out", table, "--backend", "auto")[0] == 0
        assert command("predict", finished_run, photos, "--out", tmp_path / "b.csv", "--backend", "auto")[0] == 0
    assert asked == ["torch", "auto"]
    code, _, err = command("predict", finished_run, photos, "--out", table, "--backend", "fast")
    assert code == 2 and tells(err.strip(), "fast", "torch", "compile", "onnx", "openvino", "auto")
