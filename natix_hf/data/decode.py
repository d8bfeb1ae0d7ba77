"""The decode-once pass over a source: a pixel digest and a small training copy of every image.

`datasets.map` keeps the result as memory-mapped Arrow files in its own cache, keyed by rows and settings, so that a
second run reads it back in milliseconds. Never in the source's own folder, where `map` would put it for a
`save_to_disk` folder: that folder may be read-only, and what it holds is part of a run's identity.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL

from natix_hf.data.images import describe_cell, open_image, pixel_sha256, shrink, tame_aspect
from natix_hf.provenance.files import json_sha256

if TYPE_CHECKING:
    from datasets import Dataset

# Part of the cache's key: to be raised by whoever changes what decoding gives (here or in images.py).
_DECODER = f"1, pillow {PIL.__version__}"
_ROWS_A_WORKER = 1000  # below this a second process costs more than it saves


def decode_once(dataset: Dataset, ids: list[str], image_column: str, cache_px: int) -> Dataset:
    """Decodes every image once.

    Returns:
        A dataset aligned with `dataset`: `sha256` of the original pixels, and `pixels` (raw RGB bytes), `width`,
        `height` of the copy whose short side is at most `cache_px`.

    Raises:
        DataError: an image cannot be read; the line names its row.
    """
    from datasets import Features, Value, config

    features = Features(
        {"sha256": Value("string"), "width": Value("int32"), "height": Value("int32"), "pixels": Value("large_binary")}
    )
    key = json_sha256([dataset._fingerprint, ids, image_column, cache_px, _DECODER])[:32]
    workers = min(os.cpu_count() or 1, len(dataset) // _ROWS_A_WORKER)
    return dataset.select_columns([image_column]).map(
        _decode_row,
        with_indices=True,
        fn_kwargs={"ids": ids, "image_column": image_column, "cache_px": cache_px},
        features=features,
        remove_columns=[image_column],
        cache_file_name=str(Path(config.HF_DATASETS_CACHE) / "natix_hf" / f"decoded-{key}.arrow"),
        new_fingerprint=key,
        num_proc=workers if workers > 1 else None,
        writer_batch_size=200,
        desc="decoding images",
    )


def _decode_row(row: dict[str, Any], index: int, ids: list[str], image_column: str, cache_px: int) -> dict[str, Any]:
    image = open_image(row[image_column], name=describe_cell(row[image_column], ids[index]))
    copy = shrink(tame_aspect(image), cache_px)
    return {"sha256": pixel_sha256(image), "width": copy.width, "height": copy.height, "pixels": copy.tobytes()}


def pixels_of(arrow_rows: Dataset, index: int) -> np.ndarray:
    """The training copy of one row of `decoded.with_format("arrow")`: read-only uint8 [H, W, 3] over the map."""
    row = arrow_rows[index]
    height, width = row["height"][0].as_py(), row["width"][0].as_py()
    return np.frombuffer(row["pixels"][0].as_buffer(), dtype=np.uint8).reshape(height, width, 3)
