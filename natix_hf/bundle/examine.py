"""The subnet's exam for a bundle, on labelled pictures: rates by level and the expected reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from natix_hf.bundle.load import Bundle
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.data.asked import Asked
from natix_hf.data.config import DataConfig, Exam
from natix_hf.data.decode import decode_once
from natix_hf.data.own_keys import known_keys
from natix_hf.data.sources import SourceRows, load_source
from natix_hf.data.synthetic_half import GeneratedRows, load_generated
from natix_hf.data.views import AskedViews
from natix_hf.errors import DataError
from natix_hf.provenance.files import read_json
from natix_hf.subnet.marks import ExamAnswers, ExamMarks, LevelRates, mark_exam, mark_slice


@dataclass(frozen=True)
class ExamRows:
    """The pictures of an exam, how many rows of each class became label 0 and label 1, what the user should hear, the
    columns to slice by, and the generated pictures of the other half."""

    asked: Asked
    classes: tuple[dict[str, int], dict[str, int]]
    notes: list[str]
    columns: dict[str, list[str]] = field(default_factory=dict)
    generated: GeneratedRows | None = None


@dataclass(frozen=True)
class Examined:
    """The marks of a bundle; the rates by column and value, and the number of rows of each value with too few."""

    marks: ExamMarks
    slices: dict[str, dict[str, LevelRates]]
    left_out: dict[str, dict[str, int]]


def data_keys(bundle: Bundle) -> dict[str, Any]:
    """The keys of `data` by which the labels of a bundle's own data were read. Older bundles have none."""
    path = bundle.folder / BUNDLE_MANIFEST
    manifest = read_json(path) if path.is_file() else {}
    lineage = manifest.get("lineage") if isinstance(manifest, dict) else None
    return known_keys(lineage.get("data")) if isinstance(lineage, dict) else {}


def exam_rows(config: DataConfig, if_known: Collection[str] = ()) -> ExamRows:
    """The rows of a source's test split, or all rows if it has none, labelled by `config`.

    Args:
        config: Names the columns to slice by, and with `synthetic_half` the other half of the exam.
        if_known: Keys that count only for classes that there are, as in `load_source`.

    Raises:
        DataError: if a source cannot be read, or if all rows have the same class.
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
    groups = np.asarray([f"row:{source.ids[i]}" if (g := source.groups[i]) is None else f"group:{g}" for i in at])
    exam, most = Exam(config.exam_views, config.seed), config.max_megapixels
    asked = Asked(ids, groups, labels, exam, cells, max_megapixels=most)
    columns = {name: [str(values[i]) for i in at] for name, values in source.columns.items()}
    generated = load_generated(config, _digests(config, source)) if config.synthetic_half is not None else None
    notes = [*source.notes, *(generated.notes if generated is not None else [])]
    return ExamRows(asked, (zero, one), notes, columns, generated)


def _digests(config: DataConfig, source: SourceRows) -> dict[str, str]:
    """Where each real picture stands, by the digest of its pixels."""
    decoded = decode_once(
        source.images, source.ids, config.image_column, config.cache_px, config.on_bad_image, "raw",
        config.max_megapixels,
    )  # fmt: skip
    return {digest: f"row {i}" for digest, i in zip(decoded["sha256"], source.ids, strict=True) if digest is not None}


def examine(bundle: Bundle, config: DataConfig) -> ExamMarks:
    """Ask a bundle about `config.exam_views` views of every picture of a source, drawn with `config.seed`.

    The validator also sends generated pictures. They are part of this exam if `config.synthetic_half` names some.

    Raises:
        DataError: as in `exam_rows`.
    """
    return take_exam(bundle, exam_rows(config)).marks


def take_exam(bundle: Bundle, rows: ExamRows) -> Examined:
    """Ask a bundle about the pictures of an exam."""
    cut = bundle.policy.threshold_logit
    real = _answers(bundle, rows.asked, "exam")
    synthetic = _answers(bundle, rows.generated.asked, "generated") if rows.generated is not None else None
    by_column = {name: mark_slice(real, cut, values) for name, values in rows.columns.items()}
    return Examined(
        mark_exam(real, cut, synthetic),
        {name: found for name, (found, _) in by_column.items()},
        {name: small for name, (_, small) in by_column.items()},
    )


def _answers(bundle: Bundle, asked: Asked, label: str) -> ExamAnswers:
    z = bundle.logits_of(AskedViews(asked, bundle.preprocess), label=label)
    return ExamAnswers(z, asked.labels, asked.levels, asked.groups, asked.views)
