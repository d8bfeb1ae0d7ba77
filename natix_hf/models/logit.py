"""The one number that every threshold is compared with. numpy alone."""

from __future__ import annotations

import numpy as np


def logit_difference(logits: np.ndarray) -> np.ndarray:
    """Return z, the logit of label 1 minus that of label 0, which every threshold is compared with.

    Args:
        logits (`np.ndarray` of shape `(n, 2)`): Any float type.

    Returns:
        `np.ndarray` of float64, of shape `(n,)`.
    """
    return logits[:, 1].astype(np.float64) - logits[:, 0].astype(np.float64)
