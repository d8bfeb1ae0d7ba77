"""Exam views of rows: each is what the validator would send, whatever is asked beside it."""

from __future__ import annotations

import hashlib
import io
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
from natix_hf.subnet.challenge import challenge_image, challenge_jpeg


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


@pytest.mark.parametrize("generated", [False, True])
def test_the_files_that_are_sent(generated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All views of a row from one first JPEG; `picture` shows what they hold."""
    asked = views_of(["a", "b"]).asked
    asked.generated = generated
    made: list[Any] = []
    real = exam.cached_picture
    monkeypatch.setattr(exam, "cached_picture", lambda *a, **b: made.append(a) or real(*a, **b))
    found = asked.jpegs_of(1)
    assert len(made) == 1
    image = pictures(2)[1]
    assert found == [challenge_jpeg(image, i % 4, seed_of(5, i // 4, "b"), generated=generated) for i in range(8)]
    for i, content in enumerate(found):
        assert asked.picture(8 + i).tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()
    made.clear()
    asked.pictures_of(range(16))
    assert len(made) == 2


def test_a_picture_is_turned_upright_first() -> None:
    """By its orientation, as everywhere here; the official code would not turn it."""
    [image] = pictures(1)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(buffer, "PNG", exif=exif)
    labels = np.zeros(1, dtype=np.int64)
    cells = [{"bytes": buffer.getvalue(), "path": None}]
    asked = Asked(["a"], np.array(["a"]), labels, Exam(4, 5), cells)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    assert asked.jpegs_of(0)[0] == challenge_jpeg(turned, 0, seed_of(5, 0, "a"))


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
    monkeypatch.setattr(exam, "open_image", lambda *args, **given: opened.append(args[1]) or real(*args, **given))
    batches = [found["pixel_values"] for found in DataLoader(asked, batch_size=batch)]
    assert torch.equal(torch.cat(batches), wanted)
    rows = [{view // 8 for view in range(at, min(at + batch, 24))} for at in range(0, 24, batch)]
    assert len(opened) == sum(map(len, rows))


def test_a_bad_image_is_named() -> None:
    refused(DataError, lambda: views_of(["a", "?"]).asked.picture(8), "row ?")
    asked = views_of(["a"]).asked
    asked.cells = [{"bytes": png_bytes(Image.new("RGB", (65_501, 1))), "path": None}]
    refused(DataError, lambda: asked.picture(1), "row a", "65501 x 1", "JPEG")
