"""Every image is decoded once: a digest of the original and a small copy, read back from the cache the next time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import png_bytes
from PIL import Image
from refusals import refused

from natix_hf.data import decode
from natix_hf.data.decode import decode_once, pixels_of
from natix_hf.data.images import pixel_sha256, shrink
from natix_hf.errors import DataError
from natix_hf.provenance.files import folder_fingerprint

SIZES = [(8, 8), (40, 20), (20, 40), (100, 10), (1, 1)]


@pytest.fixture(autouse=True)
def hf_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def decoded_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which rows were decoded in this test, in order."""
    seen: list[int] = []
    original = decode.decode_row

    def counting(row: dict[str, Any], index: int, **settings: Any) -> dict[str, Any]:
        seen.append(index)
        return original(row, index, **settings)

    monkeypatch.setattr(decode, "decode_row", counting)
    return seen


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def saved(folder: Path, cells: list[Any] | None = None) -> datasets.Dataset:
    """A save_to_disk folder, opened again, its images undecoded."""
    cells = [{"bytes": png_bytes(image), "path": None} for image in pictures()] if cells is None else cells
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": cells}, features=features).save_to_disk(str(folder))
    return opened(folder)


def opened(folder: Path) -> datasets.Dataset:
    return datasets.load_from_disk(str(folder)).cast_column("image", datasets.Image(decode=False))


def row_ids(count: int) -> list[str]:
    return [f"train/{i}" for i in range(count)]


def test_digest_and_copy_equal_a_direct_computation(tmp_path: Path) -> None:
    rows = decode_once(saved(tmp_path / "source"), row_ids(5), "image", 16)
    arrow = rows.with_format("arrow")
    for index, image in enumerate(pictures()):
        assert rows[index]["sha256"] == pixel_sha256(image), "of the original, not of the copy"
        copy = pixels_of(arrow, [index])[0]
        assert (copy.shape[1], copy.shape[0]) == (rows[index]["width"], rows[index]["height"])
        assert min(copy.shape[:2]) == min(16, min(image.size))
        if image.size != (100, 10):  # 10 : 1 is beyond what is resized as it is: its centre square stays
            assert (copy == np.asarray(shrink(image, 16))).all()
    assert pixels_of(arrow, [3])[0].shape == (10, 10, 3)
    assert (pixels_of(arrow, [0])[0] == np.asarray(pictures()[0])).all(), "a smaller image is kept as it is"


def test_jpeg_copies_are_near_and_small(tmp_path: Path, decoded_rows: list[int]) -> None:
    """The digest is that of the original; colour stays sharp; raw copies of the same rows are other ones."""
    y, x = np.mgrid[:90, :160]
    smooth = np.stack([x + 20 * np.sin(y / 9), y * 2 + 10, 255 - x], axis=-1).clip(0, 255).astype(np.uint8)
    smooth[30:60, 50:90] = (255, 100, 0)  # an orange cone
    source = saved(tmp_path / "source", [{"bytes": png_bytes(Image.fromarray(smooth)), "path": None}, None])
    raw, jpeg = (decode_once(source, row_ids(2), "image", 64, "skip", cache) for cache in ("raw", "jpeg"))
    assert decoded_rows == [0, 1, 0, 1]
    for name in ("sha256", "width", "height", "problem"):
        assert raw[name][:] == jpeg[name][:]
    [exact], [near] = (pixels_of(rows.with_format("arrow"), [0]) for rows in (raw, jpeg))
    assert exact.shape == near.shape == (64, 114, 3) and near.dtype == np.uint8
    error = np.abs(exact.astype(int) - near)
    assert 0 < error.mean() < 2 and error.max() < 40
    assert len(jpeg[0]["jpeg"]) < len(raw[0]["pixels"]) / 4
    assert jpeg[1]["jpeg"] is None


def test_the_second_call_reads_the_cache(
    tmp_path: Path, decoded_rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    first = decode_once(saved(source), row_ids(5), "image", 16)
    assert decoded_rows == [0, 1, 2, 3, 4]
    again = decode_once(opened(source), row_ids(5), "image", 16)
    assert decoded_rows == [0, 1, 2, 3, 4]
    assert again._fingerprint == first._fingerprint and again[:] == first[:]
    decode_once(opened(source), row_ids(5), "image", 8)
    assert len(decoded_rows) == 10, "another size is another copy"
    monkeypatch.setattr(decode, "_DECODER", "another Pillow")
    decode_once(opened(source), row_ids(5), "image", 16)
    assert len(decoded_rows) == 15, "what decodes is part of the key"


def test_the_source_folder_is_left_alone(tmp_path: Path, hf_cache: Path) -> None:
    """`map` would write into a save_to_disk folder, and with it change the recipe's hash of its source."""
    dataset = saved(tmp_path / "source")
    before = folder_fingerprint(tmp_path / "source")
    decode_once(dataset, row_ids(5), "image", 16)
    assert folder_fingerprint(tmp_path / "source") == before
    assert list(hf_cache.rglob("*.arrow"))


@pytest.mark.parametrize(
    "cell", [{"bytes": b"no image", "path": None}, {"bytes": png_bytes(pictures()[1])[:60], "path": None}, None]
)
def test_an_image_that_cannot_be_read_names_its_row(cell: Any, tmp_path: Path, hf_cache: Path) -> None:
    good = {"bytes": png_bytes(pictures()[0]), "path": None}
    dataset = saved(tmp_path / "source", [good, good, cell])
    refused(DataError, lambda: decode_once(dataset, row_ids(3), "image", 16), "train/2", "data.on_bad_image=skip")
    assert not list(hf_cache.rglob("decoded-*.arrow")), "half a cache is no cache"


def test_several_processes_decode_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = saved(tmp_path / "source")
    one = decode_once(dataset, row_ids(5), "image", 16)[:]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "other")
    monkeypatch.setattr(decode, "ROWS_A_WORKER", 2)
    monkeypatch.setattr(decode.os, "cpu_count", lambda: 2)
    assert decode_once(dataset, row_ids(5), "image", 16)[:] == one
