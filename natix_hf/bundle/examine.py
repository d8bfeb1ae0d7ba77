"""The subnet's exam for a bundle, on labelled pictures: rates by level and the expected reward."""

from __future__ import annotations

import numpy as np

from natix_hf.bundle.load import Bundle
from natix_hf.data.asked import Asked
from natix_hf.data.config import DataConfig, Exam
from natix_hf.data.sources import load_source
from natix_hf.data.views import AskedViews
from natix_hf.errors import DataError
from natix_hf.subnet.marks import ExamMarks, mark_exam


def examine(bundle: Bundle, config: DataConfig) -> ExamMarks:
    """Ask a bundle about `config.exam_views` views of every picture of a source, drawn with `config.seed`.

    The rows are the source's test split, or all rows if it has none, labelled by the rule of `config`. The validator
    also sends synthetic pictures; they are not part of this exam.

    Raises:
        DataError: if the source cannot be read, or if all rows have the same class.
    """
    source = load_source(config)
    kept = np.array([row_id not in source.left_out for row_id in source.ids])
    kept &= source.official_test if source.official_test.any() else True
    at = np.flatnonzero(kept)
    labels = source.labels[at]
    if len(np.unique(labels)) < 2:
        raise DataError(f"{config.source} has rows of one class only ({len(labels)} rows): bring pictures of both")
    ids = [source.ids[i] for i in at]
    cells = source.dataset.select(at)[config.image_column]
    asked = Asked(ids, np.asarray(ids), labels, Exam(config.exam_views, config.seed), cells)
    z = bundle.logits_of(AskedViews(asked, bundle.preprocess), label="exam")
    return mark_exam(z, asked.labels, asked.levels, asked.views, bundle.policy.threshold_logit)
