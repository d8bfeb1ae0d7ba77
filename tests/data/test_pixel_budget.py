"""What a picture costs is found before it is decoded, and a larger JPEG is read smaller, with a warning."""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facts import tells
from PIL import Image

from natix_hf.data.decode import decode_once
from natix_hf.data.images import open_image
from natix_hf.errors import DataError
from natix_hf.intake.columns import undecoded


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
JUST = 40 * 60 / 1e6  # its megapixels


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA"])
def test_a_budget_is_an_exact_border(form: str) -> None:
    content = encoded(NOISE, form)
    most = next(most for most in np.arange(1, 40) * JUST if not _refused(content, float(most)))
    assert most <= 3 * JUST  # the slow formats cost a multiple, none of these more
    assert open_image(content, max_megapixels=float(most)).size == NOISE.size
    assert _refused(content, JUST * 0.999)


def _refused(content: bytes, most: float) -> bool:
    try:
        open_image(content, "a.png", max_megapixels=most)
    except DataError as error:
        return tells(error, "a.png", "60 x 40", "data.max_megapixels")
    return False


def test_a_larger_jpeg_is_read_smaller_and_says_so() -> None:
    small = Image.fromarray(np.random.default_rng(1).integers(0, 255, (96, 128, 3), dtype=np.uint8)).resize((640, 480))
    content = encoded(small, "JPEG", quality=90)
    exact = open_image(content)
    with pytest.warns(UserWarning, match="640 x 480 px"):
        half = open_image(content, max_megapixels=0.11)
    assert half.size == (320, 240)
    error = np.asarray(half, float) - np.asarray(exact.resize(half.size, Image.Resampling.BOX), float)
    assert np.abs(error).mean() < 6  # the same picture
    with pytest.raises(DataError, match="max_megapixels"):
        open_image(content, max_megapixels=0.01)


@pytest.mark.filterwarnings("ignore:a JPEG of")
def test_a_jpeg_that_is_read_smaller_may_be_wanted_smaller_still() -> None:
    content = encoded(NOISE.resize((640, 480)), "JPEG")
    small = open_image(content, at_least=64, max_megapixels=0.11)
    exact = open_image(content).resize(small.size, Image.Resampling.BOX)
    assert min(small.size) >= 64 and np.abs(np.asarray(small, float) - np.asarray(exact, float)).mean() < 8


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tile_of_either_byte_order_is_measured(order: str) -> None:
    def tiff(side: int) -> bytes:
        tags = [(256, 9), (257, 9), (258, 8), (262, 1), (277, 1), (322, side), (323, side), (324, 8), (325, 256)]
        entries = b"".join(struct.pack(f"{order}HHLL", tag, 4, 1, value) for tag, value in tags)
        head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8)
        return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + bytes(300)

    for side, fact in ((16, None), (65_536, "65536 x 65536")):
        try:
            open_image(tiff(side), "a.tif")
        except DataError as error:
            assert (fact is None) == ("65536" not in str(error)) and tells(error, fact or "a.tif")
        else:
            assert fact is None


def test_pillow_s_own_limit_is_neither_asked_nor_changed() -> None:
    before, content = Image.MAX_IMAGE_PIXELS, encoded(NOISE, "PNG")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        assert open_image(content).size == NOISE.size
        assert Image.MAX_IMAGE_PIXELS == 10
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xc5\xd0\xd3\xc6" + bytes(40)])
def test_eps_is_named_whatever_the_file_is_called(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(start)
    with pytest.raises(DataError) as caught:
        open_image(tmp_path / "a.jpg", "a.jpg")
    assert tells(caught.value, "a.jpg", "EPS", "is not read")


def test_a_picture_that_pillow_only_opened_is_checked_too() -> None:
    drawing = Image.open(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"))
    large = Image.open(io.BytesIO(encoded(NOISE, "PNG")))
    for image, fact in ((drawing, "EPS"), (large, "60 x 40")):
        with pytest.raises(DataError, match=fact):
            open_image(image, max_megapixels=JUST / 2)


def test_a_file_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    content = encoded(NOISE, "BMP")
    (tmp_path / "a.bmp").write_bytes(content)
    os.truncate(tmp_path / "a.bmp", 10**12)  # sparse: it has no more bytes on the disk
    for value in (tmp_path / "a.bmp", io.BytesIO(content * 4)):
        with pytest.raises(DataError, match="a file of"):
            open_image(value, max_megapixels=0.003)


def test_a_run_reads_what_its_budget_allows() -> None:
    import datasets

    pictures = {"a.png": Image.new("RGB", NOISE.size, (9, 99, 9)), "b.png": Image.new("RGB", (6, 4))}
    cells = [{"bytes": encoded(picture, "PNG"), "path": name} for name, picture in pictures.items()]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    table = undecoded(datasets.Dataset.from_dict({"image": cells}, features=features), "image", "it")
    problems = [
        decode_once(table, ["a", "b"], "image", 8, "skip", max_megapixels=most)["problem"]
        for most in (JUST / 2, 2 * JUST)
    ]
    assert problems[1] == [None, None]
    assert problems[0][1] is None and tells(problems[0][0], "a.png", "60 x 40", "data.max_megapixels")
