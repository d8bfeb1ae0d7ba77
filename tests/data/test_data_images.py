"""Whatever the file was: one upright 8-bit RGB picture, or one line that names it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from natix_hf.data.images import centre_square, describe_cell, open_image, pixel_sha256, shrink, tame_aspect, to_rgb
from natix_hf.errors import DataError


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def noise(height: int = 6, width: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


RED, BLUE = (255, 0, 0), (0, 0, 255)
PALETTE = Image.new("P", (3, 2), 1)
PALETTE.putpalette([0, 255, 0, *RED])
GIF = encoded(
    Image.new("RGB", (3, 2), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (3, 2), BLUE)], duration=40
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encoded(Image.new("L", (3, 2), 77)), (77, 77, 77), id="grey"),
        pytest.param(encoded(Image.new("LA", (3, 2), (77, 9))), (77, 77, 77), id="grey with alpha"),
        pytest.param(encoded(Image.new("1", (3, 2), 1)), (255, 255, 255), id="one bit"),
        pytest.param(encoded(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF"), RED, id="CMYK"),
        pytest.param(encoded(PALETTE), RED, id="palette"),
        pytest.param(encoded(Image.new("RGBA", (3, 2), (255, 0, 0, 128))), RED, id="RGBA"),
        pytest.param(GIF, RED, id="animated GIF, first frame"),
        pytest.param(encoded(Image.fromarray(np.full((2, 3), 40_000, np.uint16))), (156,) * 3, id="16-bit grey"),
        pytest.param(encoded(Image.fromarray(np.full((2, 3), 65_535, np.uint16))), (255,) * 3, id="16-bit white"),
        # A night picture with no bright pixel is as dark as its brightest value says, not 257 times brighter.
        pytest.param(encoded(Image.fromarray(np.full((2, 3), 200, np.uint16))), (1,) * 3, id="16-bit, dark"),
        pytest.param(encoded(Image.fromarray(np.full((2, 3), 99.6, np.float32)), "TIFF"), (100,) * 3, id="float grey"),
    ],
)
def test_every_mode_becomes_8_bit_rgb(data: bytes, expected: tuple[int, int, int]) -> None:
    image = open_image(data)
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert (np.asarray(image) == np.array(expected)).all()


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257)[None]
    assert (np.asarray(open_image(encoded(Image.fromarray(ramp))))[0, :, 0] == np.arange(256)).all()


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_rotation_is_undone_once(orientation: int, upright: Any) -> None:
    pixels = noise()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(Image.fromarray(pixels), exif=exif))
    assert (np.asarray(image) == upright(pixels)).all()
    assert to_rgb(image).tobytes() == image.tobytes(), "predict brings an opened image to RGB a second time"


def test_every_kind_of_input_gives_the_same_picture(tmp_path: Path) -> None:
    pixels = noise()
    file = tmp_path / "a picture.png"
    file.write_bytes(encoded(Image.fromarray(pixels)))
    inputs = [
        file,
        str(file),
        file.read_bytes(),
        {"bytes": file.read_bytes(), "path": None},
        {"bytes": None, "path": str(file)},
        pixels,
        Image.fromarray(pixels),
    ]
    assert {open_image(value).tobytes() for value in inputs} == {pixels.tobytes()}
    grey = noise()[..., 0]
    assert (np.asarray(open_image(grey)) == grey[..., None]).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (10_000, 1), (1, 10_000)])
def test_extreme_shapes_are_read_and_tamed(width: int, height: int) -> None:
    image = open_image(encoded(Image.new("RGB", (width, height), RED)))
    assert image.size == (width, height)
    assert tame_aspect(image).size == (1, 1)


WHOLE_PNG, WHOLE_JPEG = encoded(Image.fromarray(noise(64, 64))), encoded(Image.fromarray(noise(64, 64)), "JPEG")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"", id="no bytes"),
        pytest.param(b"not an image", id="text"),
        pytest.param(WHOLE_PNG[: len(WHOLE_PNG) // 2], id="half a PNG"),
        pytest.param(WHOLE_JPEG[: len(WHOLE_JPEG) // 2], id="half a JPEG"),
        pytest.param("/no/such/file.png", id="missing file"),
        pytest.param(Path(__file__).parent, id="a folder"),
        pytest.param(Path(__file__), id="not an image file"),
        pytest.param(None, id="null cell"),
        pytest.param({"bytes": None, "path": None}, id="empty cell"),
        pytest.param({}, id="no cell"),
        pytest.param(noise().astype(np.float64), id="float array"),
        pytest.param(np.zeros((2, 2, 2, 2), np.uint8), id="4-d array"),
        pytest.param(np.zeros((0, 4, 3), np.uint8), id="no pixels"),
        pytest.param(3, id="a number"),
    ],
)
def test_what_is_no_image_is_one_line_with_its_name(value: Any) -> None:
    with pytest.raises(DataError, match="the image of row train/7") as caught:
        open_image(value, describe_cell(None, "train/7"))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # a damaged header may claim any size
def test_damaged_bytes_never_give_another_error() -> None:
    """Bytes changed anywhere: PIL's plugins may raise all sorts of things, or read it after all."""
    rng = np.random.default_rng(5)
    for whole in (WHOLE_PNG, WHOLE_JPEG, GIF, encoded(Image.fromarray(noise()), "BMP")):
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[rng.integers(len(damaged))] = rng.integers(256)
            try:
                open_image(bytes(damaged))
            except DataError as error:
                assert "\n" not in str(error)


def test_the_digest_is_of_the_picture_not_of_the_file() -> None:
    pixels = noise()
    picture = pixel_sha256(open_image(encoded(Image.fromarray(pixels))))
    assert pixel_sha256(open_image(encoded(Image.fromarray(pixels), "BMP"))) == picture
    changed = pixels.copy()
    changed[3, 4, 2] ^= 1
    assert pixel_sha256(open_image(encoded(Image.fromarray(changed)))) != picture
    # The same bytes in another shape: 9 x 6 and 6 x 9, and a flat picture that is its own transpose but for the shape.
    assert pixel_sha256(Image.fromarray(pixels.reshape(9, 6, 3))) != picture
    assert pixel_sha256(Image.new("RGB", (2, 8), RED)) != pixel_sha256(Image.new("RGB", (8, 2), RED))


@pytest.mark.parametrize(("size", "expected"), [((40, 20), (20, 10)), ((9, 30), (9, 30)), ((10, 10), (10, 10))])
def test_shrink_bounds_the_short_side_and_never_enlarges(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = Image.fromarray(noise(size[1], size[0]))
    small = shrink(image, 10)
    assert small.size == expected
    assert (small is image) == (size == expected)


@pytest.mark.parametrize(("width", "height"), [(9, 6), (6, 9), (7, 7)])
def test_centre_square_is_the_middle(width: int, height: int) -> None:
    pixels = noise(height, width)
    side, left, top = min(width, height), (width - 6) // 2 if width > height else 0, 1 if height > width else 0
    expected = pixels[top : top + side, left : left + side]
    assert (np.asarray(centre_square(Image.fromarray(pixels))) == expected).all()


def test_only_extreme_shapes_are_cut() -> None:
    assert tame_aspect(Image.new("RGB", (40, 10))).size == (40, 10)
    assert tame_aspect(Image.new("RGB", (41, 10))).size == (10, 10)


def test_a_cell_is_named_by_row_and_file() -> None:
    assert describe_cell({"path": "/home/somebody/a.jpg"}, "train/3") == "the image of row train/3 (a.jpg)"
    assert describe_cell({"bytes": b""}, "train/3") == "the image of row train/3"
