"""Exam views of rows: each is what the validator would send, whatever is asked beside it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from conftest import png_bytes, striped_image
from PIL import Image
from refusals import refused
from torch.utils.data import DataLoader

from natix_hf.data import asked as exam
from natix_hf.data.asked import Asked
from natix_hf.data.config import Exam
from natix_hf.data.views import AskedViews
from natix_hf.errors import DataError
from natix_hf.subnet.challenge import challenge_image


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy())


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [striped_image(i % 2, rng, (90, 60)) for i in range(count)]


def views_of(ids: list[str], seed: int = 5, views: int = 8) -> AskedViews:
    stored = {name: png_bytes(image) for name, image in zip("abc", pictures(3), strict=True)} | {"?": b"no image"}
    cells = [{"bytes": stored[row_id], "path": None} for row_id in ids]
    asked = Asked(ids, np.array(ids), np.zeros(len(ids), dtype=np.int64), Exam(views, seed), cells)
    return AskedViews(asked, to_tensor)


def seed_of(seed: int, turn: int, row_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{turn}/{row_id}".encode()).digest()[:8], "big")


def test_every_view_is_that_row_at_that_level() -> None:
    asked = views_of(["a", "b", "c"])
    assert len(asked) == 24
    for row, (name, image) in enumerate(zip("abc", pictures(3), strict=True)):
        for i in range(8):
            wanted = challenge_image(image, i % 4, seed_of(5, i // 4, name))
            assert asked.asked.picture(8 * row + i).tobytes() == wanted.tobytes()
            assert torch.equal(asked[8 * row + i]["pixel_values"], to_tensor(wanted))


def test_a_view_hangs_on_its_own_row_alone() -> None:
    whole, part = views_of(["a", "b", "c"]), views_of(["c", "b"])
    assert whole.asked.picture(8 * 2 + 3).tobytes() == part.asked.picture(3).tobytes()
    assert whole.asked.picture(8 + 5).tobytes() == part.asked.picture(8 + 5).tobytes()
    assert whole.asked.picture(1).tobytes() != views_of(["a"], seed=6).asked.picture(1).tobytes()
    assert whole.asked.picture(1).tobytes() != whole.asked.picture(5).tobytes()  # level 1 again: another draw
    assert whole.asked.picture(1).tobytes() == views_of(["a"], views=4).asked.picture(1).tobytes()


@pytest.mark.parametrize("batch", [3, 24])
def test_batches_cut_rows_anywhere(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = views_of(["a", "b", "c"])
    wanted = torch.stack([asked[view]["pixel_values"] for view in range(24)])
    opened: list[Any] = []
    real = exam.open_image
    monkeypatch.setattr(exam, "open_image", lambda cell, name: opened.append(name) or real(cell, name))
    batches = [found["pixel_values"] for found in DataLoader(asked, batch_size=batch)]
    assert torch.equal(torch.cat(batches), wanted)
    rows = [{view // 8 for view in range(at, min(at + batch, 24))} for at in range(0, 24, batch)]
    assert len(opened) == sum(map(len, rows))


def test_a_bad_image_is_named() -> None:
    refused(DataError, lambda: views_of(["a", "?"]).asked.picture(8), "row ?")
