"""Bulk answers and the Hub: data sets from there, and a bundle from its cache where the network is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import REPO, Command, png_bytes, striped_image
from facts import tells
from local_hub import LocalHub

from natix_hf.bulk.answer_all import answer_all
from natix_hf.bundle.load import load_bundle


def rows_of(table: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def picture_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {f"{n:02}.png": png_bytes(striped_image(n % 2, rng)) for n in range(11)}


def test_a_bundle_in_the_cache_answers_a_folder_without_the_network(
    published: Any, hub: LocalHub, tmp_path: Path, command: Command
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, content in picture_files().items():
        (photos / name).write_bytes(content)
    assert command("predict", REPO, photos / "00.png")[0] == 0
    hub.fail("drop", "GET", "/")
    hub.fail("drop", "HEAD", "/")
    code, out, _ = command("predict", REPO, photos, "--out", tmp_path / "t.jsonl")
    assert code == 0 and "11 pictures" in out and len(rows_of(tmp_path / "t.jsonl")) == 11


def test_a_streamed_data_set_is_read_at_one_commit_and_continued(
    _finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, files = load_bundle(_finished_run, device="cpu"), picture_files()
    asked: list[Any] = []
    head = ["a" * 40]

    def load(name: str, config: str | None, revision: str, streaming: bool) -> Any:
        asked.append((name, config, revision, streaming))
        cells = [{"bytes": content, "path": None} for content in files.values()]
        features = datasets.Features({"image": datasets.Image()})
        table = datasets.Dataset.from_dict({"image": cells}, features=features)
        short = table.select(range(4))
        return datasets.IterableDatasetDict(
            {"train": table.to_iterable_dataset(num_shards=3), "test": short.to_iterable_dataset()}
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("natix_hf.bulk.rows.hub_pictures", lambda repo, revision: None)
    monkeypatch.setattr("natix_hf.bulk.rows.hub_origin", lambda repo, kind: {"commit": head[0]})
    real, calls = type(bundle)._answers, []

    def answers(self: Any, batch: list[Any]) -> Any:
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    def call(**more: Any) -> Any:
        return answer_all(bundle, "lab/street", tmp_path / "t.jsonl", 3, tell=lambda line: None, **more)

    monkeypatch.setattr("natix_hf.bulk.work._KEEP_S", 0.0)
    monkeypatch.setattr(type(bundle), "_answers", answers)
    with pytest.raises(KeyboardInterrupt):
        call()
    head[0] = "b" * 40  # the main branch has moved
    summary = call()
    assert {revision for _, _, revision, _ in asked} == {"a" * 40} and (summary.pictures, summary.now) == (15, 9)
    rows = rows_of(tmp_path / "t.jsonl")
    assert [row["image"] for row in rows] == [f"train/{n}" for n in range(11)] + [f"test/{n}" for n in range(4)]
    monkeypatch.setattr(type(bundle), "_answers", real)
    wanted = [answer.probability for answer in bundle.predict(list(files.values()), 3)]
    assert [row["probability"] for row in rows[:11]] == wanted
    assert call().already

    other = answer_all(bundle, "lab/street", tmp_path / "u.jsonl", split="test", tell=lambda line: None)
    assert other.pictures == 4 and asked[-1] == ("lab/street", None, "b" * 40, True)


def test_pictures_of_a_data_set_are_downloaded(_finished_run: Path, hub: LocalHub, tmp_path: Path) -> None:
    hub.create("lab/street", {f"data/{name}": content for name, content in picture_files().items()}, kind="dataset")
    lines: list[str] = []
    bundle = load_bundle(_finished_run, device="cpu")
    answer_all(bundle, "lab/street", tmp_path / "t.jsonl", tell=lines.append)
    assert tells(lines[0], "lab/street", "Hub")
    assert [row["image"] for row in rows_of(tmp_path / "t.jsonl")] == [f"data/{n:02}.png" for n in range(11)]
