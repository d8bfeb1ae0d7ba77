"""Decode every image of a source once, into a pixel digest and a small copy for training.

`datasets.map` stores the result as memory-mapped Arrow files in its cache, keyed by rows and settings. A second run
reads it in milliseconds. For a `save_to_disk` folder `map` would write into that folder by default. We name the cache
file ourselves, because the folder may be read-only and its content is part of a run's identity.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL

from natix_hf.data.images import describe_cell, open_image, pixel_sha256, shrink, tame_aspect
from natix_hf.errors import DataError
from natix_hf.provenance.files import json_sha256

if TYPE_CHECKING:
    from datasets import Dataset

# Part of the cache key. Raise the number when the result of decoding changes, here or in images.py.
_DECODER = f"2, pillow {PIL.__version__}"
_ROWS_A_WORKER = 1000  # with fewer rows a second process costs more time than it saves


def decode_once(
    dataset: Dataset,
    ids: list[str],
    image_column: str,
    cache_px: int,
    on_bad_image: Literal["error", "skip"] = "error",
) -> Dataset:
    """Decode every image once.

    Args:
        dataset: Rows with an undecoded image column.
        ids: Row ids, for error messages.
        image_column: Name of the image column.
        cache_px: Largest short side of a copy in px.
        on_bad_image: `error` stops at an image that cannot be read; `skip` records the problem.

    Returns:
        A dataset aligned with `dataset`. `sha256` is the digest of the original pixels. `pixels` (raw RGB bytes),
        `width` and `height` describe the copy. For an image that cannot be read these are null, and `problem` gives
        the reason. Otherwise `problem` is null.

    Raises:
        DataError: If an image cannot be read and `on_bad_image` is `error`. The message names the row.
    """
    from datasets import Features, Value, config

    kinds = {"sha256": "string", "width": "int32", "height": "int32", "pixels": "large_binary", "problem": "string"}
    features = Features({name: Value(kind) for name, kind in kinds.items()})
    # `on_bad_image` is not part of the key, because a successful pass leaves the same file under both settings.
    key = json_sha256([dataset._fingerprint, ids, image_column, cache_px, _DECODER])[:32]
    workers = min(os.cpu_count() or 1, len(dataset) // _ROWS_A_WORKER)
    decoded = dataset.select_columns([image_column]).map(
        _decode_row,
        with_indices=True,
        fn_kwargs={"ids": ids, "image_column": image_column, "cache_px": cache_px, "strict": on_bad_image == "error"},
        features=features,
        remove_columns=[image_column],
        cache_file_name=str(Path(config.HF_DATASETS_CACHE) / "natix_hf" / f"decoded-{key}.arrow"),
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


def _decode_row(
    row: dict[str, Any], index: int, ids: list[str], image_column: str, cache_px: int, strict: bool
) -> dict[str, Any]:
    try:
        image = open_image(row[image_column], name=describe_cell(row[image_column], ids[index]))
    except DataError as error:
        if strict:
            raise _bad_image(str(error)) from None
        return {"sha256": None, "width": None, "height": None, "pixels": None, "problem": str(error)}
    copy = shrink(tame_aspect(image), cache_px)
    size = {"width": copy.width, "height": copy.height}
    return {"sha256": pixel_sha256(image), **size, "pixels": copy.tobytes(), "problem": None}


def _bad_image(problem: str) -> DataError:
    return DataError(f"{problem}: repair the file, or leave such rows out with data.on_bad_image=skip")


def pixels_of(arrow_rows: Dataset, indices: list[int]) -> list[np.ndarray]:
    """Read the training copies of some rows of `decoded.with_format("arrow")`, read-only uint8 [H, W, 3] each.

    It reads many rows at once, because `datasets` takes longer to find one row than to copy its pixels.
    """
    table = arrow_rows[indices]
    sizes = zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)
    buffers = (pixels.as_buffer() for pixels in table["pixels"])
    return [
        np.frombuffer(buffer, dtype=np.uint8).reshape(*size, 3) for buffer, size in zip(buffers, sizes, strict=True)
    ]
