"""The subnet's exam for a bundle, on labelled pictures: rates by level and the expected reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from natix_hf.bundle.load import Bundle
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.data.asked import Asked
from natix_hf.data.config import DataConfig, Exam
from natix_hf.data.own_keys import known_keys
from natix_hf.data.sources import load_source
from natix_hf.data.views import AskedViews
from natix_hf.errors import DataError
from natix_hf.provenance.files import read_json
from natix_hf.subnet.marks import ExamMarks, mark_exam


@dataclass(frozen=True)
class ExamRows:
    """The pictures of an exam, how many rows of each class became label 0 and label 1, and what the user should
    hear."""

    asked: Asked
    classes: tuple[dict[str, int], dict[str, int]]
    notes: list[str]


def data_keys(bundle: Bundle) -> dict[str, Any]:
    """The keys of `data` by which the labels of a bundle's own data were read. Older bundles have none."""
    path = bundle.folder / BUNDLE_MANIFEST
    manifest = read_json(path) if path.is_file() else {}
    lineage = manifest.get("lineage") if isinstance(manifest, dict) else None
    return known_keys(lineage.get("data")) if isinstance(lineage, dict) else {}


def exam_rows(config: DataConfig, if_known: Collection[str] = ()) -> ExamRows:
    """The rows of a source's test split, or all rows if it has none, labelled by `config`.

    Args:
        if_known: Keys that count only for classes that there are, as in `load_source`.

    Raises:
        DataError: if the source cannot be read, or if all rows have the same class.
    """
    source = load_source(config, if_known)
    kept = np.array([row_id not in source.left_out for row_id in source.ids])
    of_test = np.array([role == "test" for role in source.given])
    kept &= of_test if of_test.any() else True
    at = np.flatnonzero(kept)
    labels = source.labels[at]
    if len(np.unique(labels)) < 2:
        raise DataError(f"{config.source} has rows of one class only ({len(labels)} rows): bring pictures of both")
    ids = [source.ids[i] for i in at]
    cells = source.images.select(at)[config.image_column]
    counts = Counter((int(source.labels[i]), source.classes[i]) for i in at)
    zero, one = ({name: count for (of, name), count in counts.items() if of == label} for label in (0, 1))
    asked = Asked(ids, np.asarray(ids), labels, Exam(config.exam_views, config.seed), cells)
    return ExamRows(asked, (zero, one), source.notes)


def examine(bundle: Bundle, config: DataConfig) -> ExamMarks:
    """Ask a bundle about `config.exam_views` views of every picture of a source, drawn with `config.seed`.

    The validator also sends synthetic pictures; they are not part of this exam.

    Raises:
        DataError: as in `exam_rows`.
    """
    return mark(bundle, exam_rows(config))


def mark(bundle: Bundle, rows: ExamRows) -> ExamMarks:
    """Ask a bundle about the pictures of an exam."""
    asked = rows.asked
    z = bundle.logits_of(AskedViews(asked, bundle.preprocess), label="exam")
    return mark_exam(z, asked.labels, asked.levels, asked.views, bundle.policy.threshold_logit)
