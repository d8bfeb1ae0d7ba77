"""`natix-hf reward`: a bundle in the subnet's exam, on labelled pictures: rates by level, and what they would pay."""

from __future__ import annotations

from typing import Any

import numpy as np

from natix_hf.bundle.load import Bundle
from natix_hf.data.config import DataConfig
from natix_hf.data.exam import ExamViews
from natix_hf.data.sources import load_source
from natix_hf.errors import DataError
from natix_hf.subnet.challenge import LEVELS
from natix_hf.subnet.exam import mark_exam


def examine(bundle: Bundle, config: DataConfig) -> dict[str, Any]:
    """Asks a bundle `config.exam_views` views of every picture of a source, drawn with `config.seed`.

    Real pictures only: the synthetic half of what the validator sends is not here. The rows are those of the source's
    test split, all of them if it has none; the label rule of `config` holds.

    Returns:
        `rows`, `positives`, `views` of all rows, and the marks of the bundle's threshold, as `mark_exam` gives them.

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
    cells = source.dataset.select(at)[config.image_column]
    views = ExamViews(cells, [source.ids[i] for i in at], bundle.preprocess, config.seed, config.exam_views)
    z = bundle.logits_of(views, label="exam")
    levels, every = np.arange(len(views)) % len(LEVELS), np.repeat(labels, config.exam_views)
    marks = mark_exam(z, every, levels, bundle.policy.threshold_logit)
    return {"rows": len(at), "positives": int(labels.sum()), "views": len(views)} | marks
