"""Whatever the file was: one upright 8-bit RGB picture, or one line that names it."""

from __future__ import annotations

import importlib.util
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facts import tells
from PIL import Image, features
from refusals import refused

from natix_hf.data.images import (
    centre_square,
    describe_cell,
    open_image,
    pixel_sha256,
    shrink,
    tame_aspect,
)
from natix_hf.errors import DataError
from natix_hf.intake.formats import readable_endings, why_unknown
from natix_hf.intake.kinds import other_reason


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def noise(height: int = 6, width: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


RED, BLUE = (255, 0, 0), (0, 0, 255)
PALETTE = Image.new("P", (3, 2), 1)
PALETTE.putpalette([0, 255, 0, *RED])
GIF = encoded(
    Image.new("RGB", (3, 2), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (3, 2), BLUE)], duration=40
)


def whole(value: float, dtype: Any, **options: Any) -> bytes:
    return encoded(Image.fromarray(np.full((2, 3), value, dtype)), **options)


MODES: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "grey": (encoded(Image.new("L", (3, 2), 77)), (77,) * 3),
    "grey with alpha": (encoded(Image.new("LA", (3, 2), (77, 9))), (77,) * 3),
    "one bit": (encoded(Image.new("1", (3, 2), 1)), (255,) * 3),
    "CMYK": (encoded(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF"), RED),
    "palette": (encoded(PALETTE), RED),
    "RGBA": (encoded(Image.new("RGBA", (3, 2), (255, 0, 0, 128))), RED),
    "animated GIF, first frame": (GIF, RED),
    "16-bit grey": (whole(40_000, np.uint16), (156,) * 3), "16-bit white": (whole(65_535, np.uint16), (255,) * 3),
    # A night picture with no bright pixel is as dark as its brightest value says, not 257 times brighter.
    "16-bit, dark": (whole(200, np.uint16), (1,) * 3), "float": (whole(99.6, np.float32, format="TIFF"), (100,) * 3),
    "float to 1": (whole(0.5, np.float32, format="TIFF"), (128,) * 3),
    "float to 65,535": (whole(40_000, np.float32, format="TIFF"), (156,) * 3),
    "float below 0": (whole(-3, np.float32, format="TIFF"), (0,) * 3),
    "no number": (whole(np.nan, np.float32, format="TIFF"), (0,) * 3),
    "infinite": (whole(np.inf, np.float32, format="TIFF"), (255,) * 3),
    "16-bit PGM, dark": (b"P5 3 2 65535\n" + b"\0\xc8" * 6, (1,) * 3),
    # 12 bits in 16 are dark on purpose, unless the file says so.
    "12 bits": (whole(2048, np.uint16, format="TIFF"), (8,) * 3),
    "12 bits by MaxSampleValue": (whole(2048, np.uint16, format="TIFF", tiffinfo={281: 4095}), (128,) * 3),
    "its brightest pixel": (whole(2048, np.uint16, format="TIFF", tiffinfo={281: 2048}), (8,) * 3),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_8_bit_rgb(mode: str) -> None:
    image = open_image(MODES[mode][0])
    assert (image.mode, image.size) == ("RGB", (3, 2)) and (np.asarray(image) == np.array(MODES[mode][1])).all()
    ramp = (np.arange(256, dtype=np.uint16) * 257)[None]  # 16 bits are scaled and not clipped
    assert (np.asarray(open_image(encoded(Image.fromarray(ramp))))[0, :, 0] == np.arange(256)).all()


@pytest.mark.parametrize("kind", ["I;12", "float"])
def test_deep_grey_is_scaled_as_one_picture(kind: str) -> None:
    if kind == "float":
        content = encoded(Image.fromarray(np.array([[0.0, 0.25, 1.0, np.nan, -1.0]], np.float32)), "TIFF")
        assert np.asarray(open_image(content))[0, :, 0].tolist() == [0, 64, 255, 0, 0]
    else:  # two pixels of 12 bits in three bytes, as BitsPerSample says
        content = bytearray(encoded(Image.fromarray(np.zeros((1, 2), np.uint16)), "TIFF"))
        at = content.index(struct.pack("<HHL", 258, 3, 1)) + 8
        strip = content.index(struct.pack("<HHL", 273, 4, 1)) + 8
        struct.pack_into("<H", content, at, 12)
        struct.pack_into("<L", content, strip, len(content))
        assert np.asarray(open_image(bytes(content) + b"\xff\xf8\x00"))[0, :, 0].tolist() == [255, 128]


def test_every_kind_of_input_gives_the_same_picture(tmp_path: Path) -> None:
    pixels, file = noise(), tmp_path / "a picture.png"
    file.write_bytes(content := encoded(Image.fromarray(pixels)))
    cells = {"bytes": content, "path": None}, {"bytes": None, "path": str(file)}
    files = file, str(file), content, bytearray(content), io.BytesIO(content)
    inputs = [*files, *cells, pixels, Image.fromarray(pixels)]
    assert {open_image(value).tobytes() for value in inputs} == {pixels.tobytes()}
    assert (np.asarray(open_image(pixels[..., 0])) == pixels[..., :1]).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (10_000, 1), (1, 10_000)])
def test_extreme_shapes_are_read_and_tamed(width: int, height: int) -> None:
    image = open_image(encoded(Image.new("RGB", (width, height), RED)))
    assert image.size == (width, height)
    assert tame_aspect(image).size == (1, 1)


WHOLE_PNG, WHOLE_JPEG = encoded(Image.fromarray(noise(64, 64))), encoded(Image.fromarray(noise(64, 64)), "JPEG")


NO_IMAGES: dict[str, Any] = {
    "no bytes": b"", "text": b"not an image", "half a PNG": WHOLE_PNG[: len(WHOLE_PNG) // 2],
    "half a JPEG": WHOLE_JPEG[: len(WHOLE_JPEG) // 2], "missing file": "/no/such/file.png",
    "a folder": Path(__file__).parent, "not an image file": Path(__file__), "null cell": None, "device": os.devnull,
    "an impossible path": "a\0b", "a path too long": "a" * 5000, "a drawing": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\n", "HEIC": b"\0\0\0\x18ftypheic" + bytes(99),
    "empty cell": {"bytes": None, "path": None}, "no cell": {}, "float array": noise().astype(np.float64),
    "4-d array": np.zeros((2, 2, 2, 2), np.uint8), "no pixels": np.zeros((0, 4, 3), np.uint8), "a number": 3,
}  # fmt: skip


@pytest.mark.parametrize("case", NO_IMAGES)
def test_what_is_no_image_is_one_line_with_its_name(case: str) -> None:
    refused(DataError, lambda: open_image(NO_IMAGES[case], describe_cell(None, "train/7")), "row train/7")


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


LIBRARY_ERRORS = [
    struct.error("unpack"), KeyError(7), IndexError(), OverflowError("big"), ZeroDivisionError(), EOFError(),
    RuntimeError("codec"), MemoryError(), RecursionError(), UserWarning("Corrupt EXIF data"), AssertionError(),
    ValueError("a\nb\x1b"), OSError(5, "x" * 9000), Image.DecompressionBombError("bomb"), NotImplementedError(),
    UnicodeDecodeError("a", b"", 0, 1, ""),
]  # fmt: skip


@pytest.mark.parametrize("error", LIBRARY_ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_of_a_library_is_the_picture_s(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    for place in ("natix_hf.data.images.open_within", "PIL.ImageFile.ImageFile.load"):
        with monkeypatch.context() as patch:
            patch.setattr(place, failing)
            with pytest.raises(DataError) as caught:
                open_image(WHOLE_PNG, "a\nname.png")
            message = str(caught.value)
            assert tells(message, "a?name.png") and message.isprintable() and len(message) < 300


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("natix_hf.data.images.open_within", interrupted)
    with pytest.raises(error):
        open_image(WHOLE_PNG)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.jpg")
    refused(DataError, lambda: open_image(pipe, str(pipe)), str(pipe), "no regular file")


def test_the_endings_are_those_of_pictures_that_can_be_read() -> None:
    endings = readable_endings()
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".mpo", ".ppm", ".qoi"} <= endings
    assert not endings & {".eps", ".ps", ".pdf", ".wmf", ".emf", ".iim", ".mpg", ".h5", ".fits", ".txt", ".json"}
    assert all(ending.startswith(".") and ending == ending.lower() for ending in endings)
    assert (".heic" in endings) == (importlib.util.find_spec("pillow_heif") is not None)
    assert (".avif" in endings) == ("avif" in features.get_supported())


def test_what_to_install_for_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natix_hf.intake.formats.readable_formats", lambda: ("JPEG",))
    tells(why_unknown(b"\0\0\0\x1cftypavif"), "AVIF", "pillow>=11.3")
    tells(other_reason("a.avif"), ".avif", "pillow>=11.3")


@pytest.mark.parametrize(
    ("side", "size"), [(108, (240, 135)), (136, (480, 270)), (300, (960, 540)), (541, (1920, 1080))]
)
def test_a_jpeg_is_decoded_no_larger_than_needed(side: int, size: tuple[int, int]) -> None:
    ramp = np.add.outer(np.arange(1080), np.arange(1920))[..., None] * [0.08, 0.05, 0.03]
    picture = Image.fromarray(ramp.astype(np.uint8))
    content, whole_side = encoded(picture, "JPEG", quality=95, exif=oriented(6)), min(side, 1080)
    image, full = open_image(content, at_least=side), open_image(content)
    assert image.size == size[::-1] and full.size == (1080, 1920), "a phone's portrait"
    difference = np.asarray(shrink(image, whole_side), int) - np.asarray(shrink(full, whole_side), int)
    assert abs(difference).max() <= 3
    png = encoded(picture.resize((192, 108)))
    assert open_image(png, at_least=10).tobytes() == open_image(png).tobytes()


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
    # Only extreme shapes are cut to it of themselves.
    assert tame_aspect(Image.new("RGB", (40, 10))).size == (40, 10)
    assert tame_aspect(Image.new("RGB", (41, 10))).size == (10, 10)


def test_a_cell_is_named_by_row_and_file() -> None:
    name = describe_cell({"path": "/home/somebody/a.jpg"}, "train/3")
    assert tells(name, "train/3", "a.jpg") and "somebody" not in name and "train/3" in describe_cell({}, "train/3")
