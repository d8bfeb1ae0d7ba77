"""Rows of a dataset in memory: what is taken, and what is refused by name."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
from conftest import png_bytes, striped_image
from facts import tells

from natix_hf.data.plain import is_plain, rows_of
from natix_hf.errors import DataError

PICTURES = [striped_image(i % 2, np.random.default_rng(i)) for i in range(4)]
BYTES = [{"bytes": png_bytes(picture), "path": None} for picture in PICTURES]


def _dataset(labels: Any = (0, 1, 0, 1), images: Any = PICTURES, feature: Any = None, **columns: Any) -> Any:
    rows = datasets.Dataset.from_dict({"image": list(images), "label": list(labels), **columns})
    rows = rows if isinstance(rows.features["image"], datasets.Image) else rows.cast_column("image", datasets.Image())
    return rows if feature is None else rows.cast_column("label", feature)


@pytest.mark.parametrize(
    "dataset",
    [_dataset(), _dataset(images=BYTES), _dataset(feature=datasets.ClassLabel(names=["no", "yes"])),
     _dataset([False, True, False, True]), _dataset().with_format("numpy"),
     [{"image": picture, "label": i % 2} for i, picture in enumerate(PICTURES)]],
    ids=["pictures", "bytes", "named classes", "booleans", "numpy", "list"],
)  # fmt: skip
def test_one_reading_of_many_forms(dataset: Any) -> None:
    assert is_plain(dataset)
    rows = rows_of(dataset, "train")
    assert rows.labels.tolist() == [0, 1, 0, 1] and rows.labels.dtype == np.int64
    assert rows.ids == ["train/0", "train/1", "train/2", "train/3"]
    assert [picture.tobytes() for picture in rows.images()] == [picture.tobytes() for picture in PICTURES]
    assert list(rows.decoded["sha256"]) == list(rows_of(_dataset(), "other").decoded["sha256"])


def test_a_picture_that_was_written_again_is_read_again(tmp_path: Any) -> None:
    """The rows name the same files as before, so only the files tell that all that was kept of them is old."""
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    given = [{"image": path, "label": i % 2} for i, path in enumerate(paths)]
    forms = given, _dataset(images=paths), _dataset(images=paths).select([3, 2, 1, 0])
    found = []
    for pictures in (PICTURES, PICTURES, PICTURES[::-1]):
        for path, picture in zip(paths, pictures, strict=True):
            if not found or pictures is not PICTURES:
                picture.save(path)
        read = [rows_of(rows, "train") for rows in forms]
        found.append([(rows.decoded._fingerprint, rows.source._fingerprint) for rows in read])
        assert [[p.tobytes() for p in rows.images()] for rows in read[:2]] == [[p.tobytes() for p in pictures]] * 2
        assert all(len(set(rows.decoded["sha256"])) == 4 for rows in read)
    first, again, later = found
    assert first == again and not {key for pair in first for key in pair} & {key for pair in later for key in pair}


def test_other_columns_by_name_and_no_labels(tmp_path: Any) -> None:
    rows = _dataset().rename_columns({"image": "photo", "label": "answer"})
    assert rows_of(rows, "train", "photo", "answer").labels.sum() == 2
    assert not is_plain(rows) and not is_plain(_dataset().with_transform(lambda batch: batch)) and not is_plain(None)
    assert rows_of(_dataset().remove_columns("label"), "train", label_column=None).labels.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("dataset", "facts"),
    [
        (_dataset(["no", "yes", "no", "yes"]), ("'label'", "'no'", "class_encode_column('label')")),
        (_dataset([0, 1, 2, 1]), ("row 2", "label 2")),
        (_dataset([0, 1, None, 1]), ("row 2", "None")),
        (_dataset([0, 1, 2, 1], feature=datasets.ClassLabel(names=["a", "b", "c"])), ("3 classes", "a, b, c")),
        (_dataset([0, 1, -1, 1], feature=datasets.ClassLabel(names=["a", "b"])), ("row 2", "label -1")),
        (_dataset().remove_columns("label"), ("'label'", "it has image")),
        (_dataset(images=[*BYTES[:3], {"bytes": b"no picture", "path": None}]), ("train/3", "train_dataset")),
        (_dataset().select([]), ("train_dataset", "no rows")),
        ([], ("train_dataset", "no rows")),
        (datasets.Dataset.from_dict({"image": [1, 2], "label": [0, 1]}), ("'image'", "does not hold images")),
    ],
    ids=[
        "text",
        "other number",
        "null",
        "three classes",
        "unlabelled",
        "column",
        "picture",
        "empty",
        "list",
        "numbers",
    ],
)
def test_what_cannot_be_is_refused(dataset: Any, facts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(dataset, "train")
    assert tells(caught.value, *facts)
