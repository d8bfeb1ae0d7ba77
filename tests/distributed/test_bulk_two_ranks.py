"""A table of answers on two gloo ranks: the bits of one process, and what one began two end."""

from __future__ import annotations

from pathlib import Path

import bulk_rank
import numpy as np
import pytest
import torch
from conftest import striped_image
from facts import tells
from ranks import launch

from natix_hf.bulk import work
from natix_hf.bulk.answer_all import answer_all
from natix_hf.bundle.load import Bundle, load_bundle

pytestmark = pytest.mark.xdist_group("ranks")  # which are forked from one process


class Stopped(Exception):
    pass


def test_two_ranks_write_the_table_of_one(
    _finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for number in range(40):
        striped_image(number % 2, rng).save(photos / f"{number:02}.png")
    (photos / "20.png").write_bytes(b"no picture")
    torch.set_num_threads(1)
    bundle = load_bundle(_finished_run, device="cpu")
    whole, table = tmp_path / "whole.csv", tmp_path / "table.csv"
    answer_all(bundle, photos, whole, 3, tell=lambda line: None)

    def two_ranks(*arguments: object) -> str:
        words = ["predict", str(_finished_run), str(photos), "--batch-size", "3", *map(str, arguments)]
        done = launch("cpu_2proc.yaml", Path(bulk_rank.__file__), tmp_path, *words)
        assert done.returncode == 1, done.stderr[-3000:]  # one picture cannot be read
        return done.stdout + done.stderr

    told = two_ranks("--out", table)
    assert table.read_bytes() == whole.read_bytes()
    assert tells(next(line for line in told.splitlines() if line.startswith("table ")), 40)
    assert tells(next(line for line in told.splitlines() if line.startswith("now")), 40)

    # begun by one process, ended by two
    real, batches = Bundle._answers, []

    def answers(self: Bundle, batch: list[object]) -> object:
        batches.append(len(batch))
        if len(batches) == 6:
            raise Stopped
        return real(self, batch)  # type: ignore[arg-type]

    other = tmp_path / "other.csv"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(work, "_KEEP_S", 0.0)
        patch.setattr(Bundle, "_answers", answers)
        answer_all(bundle, photos, other, 3, tell=lambda line: None)
    told = two_ranks("--out", other)
    assert other.read_bytes() == whole.read_bytes()
    assert tells(next(line for line in told.splitlines() if line.startswith("now")), 25)
