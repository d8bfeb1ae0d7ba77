"""What a calibration and a promise read of a model's answers: a table of a run, or answers from anywhere."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Answered(Protocol):
    """Answers to labelled rows, as [`LogitTable`] has them."""

    @property
    def logits(self) -> np.ndarray:
        """Label 1 over label 0, float64 [n]."""

    @property
    def labels(self) -> np.ndarray:
        """0 or 1, [n]."""

    @property
    def groups(self) -> np.ndarray:
        """The group of each row, [n]."""
