"""A bundle in the subnet's exam, on labelled pictures: rates by level, and what they would pay."""

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
    """Asks a bundle `config.exam_views` views of every picture of a source, drawn with `config.seed`.

    Real pictures only: the synthetic half of what the validator sends is not here. The rows are those of the source's
    test split, or all of them if it has none; the label rule of `config` holds.

    Raises:
        DataError: the source cannot be read, or all its rows are of one class.
    """
    source = load_source(config)
    kept = np.array([row_id not in source.left_out for row_id in source.ids])
    kept &= source.official_test if source.official_test.any() else True
    at = np.flatnonzero(kept)
    labels = source.labels[at]
    if len(np.unique(labels)) < 2:
        raise DataError(f"{config.source} has rows of one class only where both are needed: {len(labels)} to be asked")
    ids = [source.ids[i] for i in at]
    cells = source.dataset.select(at)[config.image_column]
    asked = Asked(ids, np.asarray(ids), labels, Exam(config.exam_views, config.seed), cells)
    z = bundle.logits_of(AskedViews(asked, bundle.preprocess), label="exam")
    return mark_exam(z, asked.labels, asked.levels, asked.views, bundle.policy.threshold_logit)
