"""Decode every image of a source once, into a pixel digest and a small copy for training.

`datasets.map` stores the result as memory-mapped Arrow files in its cache, keyed by rows and settings. A second run
reads it in milliseconds. For a `save_to_disk` folder `map` would write into that folder by default. We name the cache
file ourselves, because the folder may be read-only and its content is part of a run's identity.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL
from PIL import Image

from natix_hf.data.images import describe_cell, open_image, pixel_sha256, shrink, tame_aspect
from natix_hf.data.near_duplicates import thumbprint
from natix_hf.data.pixel_budget import MOST_MEGAPIXELS
from natix_hf.data.space import require_space
from natix_hf.errors import DataError
from natix_hf.provenance.alone import alone
from natix_hf.provenance.files import json_sha256

if TYPE_CHECKING:
    from datasets import Dataset

# Part of the cache key. Raise the number when the result of decoding changes, here or in images.py.
_DECODER = f"5, pillow {PIL.__version__}"
ROWS_A_WORKER = 1000  # with fewer rows a second process costs more time than it saves
# benchmarks/decode_cache.py compares it with other formats. Colour at half size would blur an orange cone.
_JPEG: dict[str, Any] = {"quality": 95, "subsampling": "4:4:4"}
# The column of a cache that holds the copies, by `data.cache`.
_COLUMNS = {"raw": "pixels", "jpeg": "jpeg"}


def decoded_columns(cache: Literal["raw", "jpeg"] = "raw") -> dict[str, str]:
    """The columns of the result of `decode_once`, with the type of each."""
    sizes = {"width": "int32", "height": "int32"}
    return {"sha256": "string", "thumbprint": "binary", **sizes, _COLUMNS[cache]: "large_binary", "problem": "string"}


def decode_once(
    dataset: Dataset,
    ids: list[str],
    image_column: str,
    cache_px: int,
    on_bad_image: Literal["error", "skip"] = "error",
    cache: Literal["raw", "jpeg"] = "raw",
    max_megapixels: float = MOST_MEGAPIXELS,
) -> Dataset:
    """Decode every image once.

    Args:
        dataset: Rows with an undecoded image column.
        ids: Row ids, for error messages.
        image_column: Name of the image column.
        cache_px: Largest short side of a copy in px.
        on_bad_image: `error` stops at an image that cannot be read; `skip` records the problem.
        cache: How the copies are stored: `raw` keeps their pixels, `jpeg` compresses them.
        max_megapixels: The budget of an image (`open_image`).

    Returns:
        A dataset aligned with `dataset`. `sha256` is the digest of the original pixels, and
        `thumbprint` serves the search for near-duplicates. `pixels` (raw RGB bytes) or
        `jpeg`, `width` and `height` describe the copy. For an image that cannot be read these are null, and `problem`
        gives the reason. Otherwise `problem` is null.

    Raises:
        DataError: If an image cannot be read and `on_bad_image` is `error`. The message names the row.
    """
    from datasets import Features, Value, config

    features = Features({name: Value(kind) for name, kind in decoded_columns(cache).items()})
    # `on_bad_image` is not part of the key, because a successful pass leaves the same file under both settings.
    key = json_sha256([dataset._fingerprint, ids, image_column, cache_px, cache, max_megapixels, _DECODER])[:32]
    workers = min(os.cpu_count() or 1, len(dataset) // ROWS_A_WORKER)
    settings = {"image_column": image_column, "cache_px": cache_px, "cache": cache, "strict": on_bad_image == "error"}
    settings |= {"max_megapixels": max_megapixels}
    path = Path(config.HF_DATASETS_CACHE) / "natix_hf" / f"decoded-{key}.arrow"
    with alone(path, "decoding the same images"):
        require_space(dataset, image_column, cache_px, cache, path)
        decoded = dataset.select_columns([image_column]).map(
            decode_row,
            with_indices=True,
            fn_kwargs={"ids": ids, **settings},
            features=features,
            remove_columns=[image_column],
            cache_file_name=str(path),
            new_fingerprint=key,
            num_proc=workers if workers > 1 else None,
            writer_batch_size=200,
            desc="decoding images",
        )
    if on_bad_image == "error":  # the cached file may come from a run with `skip`
        for problem in decoded["problem"]:
            if problem is not None:
                raise _bad_image(problem)
    return decoded


def decode_row(
    row: dict[str, Any],
    index: int,
    ids: list[str],
    image_column: str,
    cache_px: int,
    cache: Literal["raw", "jpeg"],
    strict: bool,
    max_megapixels: float,
) -> dict[str, Any]:
    columns = decoded_columns(cache)
    try:
        name = describe_cell(row[image_column], ids[index])
        image = open_image(row[image_column], name, max_megapixels=max_megapixels)
    except DataError as error:
        if strict:
            raise _bad_image(str(error)) from None
        return dict.fromkeys(columns) | {"problem": str(error)}
    copy = shrink(tame_aspect(image), cache_px)
    stored = copy.tobytes() if cache == "raw" else as_jpeg(copy)
    values = (pixel_sha256(image), thumbprint(copy), copy.width, copy.height, stored, None)
    return dict(zip(columns, values, strict=True))


def as_jpeg(image: Image.Image) -> bytes:
    """Compress a copy as `data.cache: jpeg` does."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **_JPEG)
    return buffer.getvalue()


def _bad_image(problem: str) -> DataError:
    return DataError(f"{problem}: repair the file, or leave such rows out with data.on_bad_image=skip")


def pixels_of(arrow_rows: Dataset, indices: list[int]) -> list[np.ndarray]:
    """Read the training copies of some rows of `decoded.with_format("arrow")`, read-only uint8 [H, W, 3] each.

    It reads many rows at once, because `datasets` takes longer to find one row than to copy its pixels.
    """
    table = arrow_rows[indices]
    if "jpeg" in table.column_names:
        return [np.asarray(Image.open(io.BytesIO(jpeg.as_buffer()))) for jpeg in table["jpeg"]]
    sizes = zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)
    buffers = (pixels.as_buffer() for pixels in table["pixels"])
    return [
        np.frombuffer(buffer, dtype=np.uint8).reshape(*size, 3) for buffer, size in zip(buffers, sizes, strict=True)
    ]
