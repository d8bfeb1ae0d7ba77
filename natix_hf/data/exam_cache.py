"""Exam views that are asked again and again, drawn once.

An epoch's score asks about the same views as that of the epoch before. To draw one takes longer than most models take
to answer it. The validator sends JPEG files, so these very files are kept: about 10 kB a view, without any loss.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from PIL import Image

from natix_hf.data.asked import Asked, ask
from natix_hf.data.config import Exam
from natix_hf.data.rows import Rows
from natix_hf.disk import naming_cache
from natix_hf.provenance.alone import alone
from natix_hf.provenance.files import json_sha256
from natix_hf.subnet.challenge import decode_jpeg

if TYPE_CHECKING:
    from datasets import Dataset

_DRAWER = f"1, pillow {PIL.__version__}"  # part of the cache key, beside the version of the exam
ROWS_A_WORKER = 100  # with fewer rows a second process costs more time than it saves


class DrawnOnce(Asked):
    """Exam views that are read from the JPEG files in `drawn`, one row per answer in its column `jpeg`."""

    def __init__(self, asked: Asked, drawn: Dataset) -> None:
        super().__init__(
            asked.row_ids, asked.row_groups, asked.row_labels, asked.exam, asked.cells, asked.fingerprint,
            max_megapixels=asked.max_megapixels,
        )  # fmt: skip
        self.drawn = drawn.with_format("arrow")

    def pictures_of(self, answers: Sequence[int]) -> list[Image.Image]:
        """The pictures for several answers."""
        table = self.drawn[list(answers)]
        return [decode_jpeg(jpeg.as_py()) for jpeg in table["jpeg"]]

    def select(self, rows: np.ndarray) -> Asked:
        """Ask about the rows at these positions only."""
        answers = (rows[:, None] * self.views + np.arange(self.views)).ravel()
        return DrawnOnce(super().select(rows), self.drawn.select(answers))

    def picture(self, i: int) -> Image.Image:
        """The picture for answer i."""
        return self.pictures_of([i])[0]


@naming_cache("datasets")
def drawn_once(rows: Rows, exam: Exam | None) -> Asked:
    """Ask about rows, and draw their exam views now, or read them from the cache. Every rank may call it.

    Raises:
        DataError: If an image cannot be read.
    """
    asked = ask(rows, exam)
    if exam is None or len(rows) == 0:
        return asked
    from accelerate import PartialState

    with PartialState().main_process_first():  # rank 0 draws, the other ranks read its cache
        return DrawnOnce(asked, _draw(rows, exam))


def _draw(rows: Rows, exam: Exam) -> Dataset:
    from datasets import Features, Value, config

    images = rows.source.select_columns([rows.image_column])
    digests = rows.decoded["sha256"][:]  # the content of the pictures, whatever file they come from
    key = json_sha256([digests, rows.ids, rows.image_column, asdict(exam), rows.max_megapixels, _DRAWER])[:32]
    workers = min(os.cpu_count() or 1, len(rows) // ROWS_A_WORKER)
    settings = {"image_column": rows.image_column, "digests": digests, "max_megapixels": rows.max_megapixels}
    path = Path(config.HF_DATASETS_CACHE) / "natix_hf" / f"exam-{key}.arrow"
    with alone(path, "drawing the same exam views"):
        return images.map(
            _draw_rows,
            with_indices=True,
            batched=True,
            batch_size=32,
            fn_kwargs={"ids": rows.ids, "exam": exam, **settings},
            features=Features({"jpeg": Value("large_binary")}),
            remove_columns=[rows.image_column],
            cache_file_name=str(path),
            new_fingerprint=key,
            num_proc=workers if workers > 1 else None,
            desc="drawing exam views",
        )


def _draw_rows(
    batch: dict[str, list[Any]],
    indices: list[int],
    ids: list[str],
    exam: Exam,
    image_column: str,
    digests: list[str],
    max_megapixels: float,
) -> dict[str, list[bytes]]:
    row_ids, cells, of_rows = [ids[i] for i in indices], batch[image_column], [digests[i] for i in indices]
    labels = np.zeros(len(row_ids), dtype=np.int64)
    asked = Asked(row_ids, np.asarray(row_ids), labels, exam, cells, digests=of_rows, max_megapixels=max_megapixels)
    return {"jpeg": [jpeg for row in range(len(row_ids)) for jpeg in asked.jpegs_of(row)]}
