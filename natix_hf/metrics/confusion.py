"""Right and wrong answers, counted by class: where the errors come from, misses or false alarms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from natix_hf.metrics.arrays import as_labels, check_lengths
from natix_hf.metrics.groups import group_weights
from natix_hf.metrics.intervals import Interval, share_interval


@dataclass(frozen=True)
class Cells:
    """Answers by label and answer: label 1 answered 1 (tp) or 0 (fn), label 0 answered 1 (fp) or 0 (tn)."""

    tp: int
    fp: int
    tn: int
    fn: int

    @classmethod
    def of(cls, called: np.ndarray, positive: np.ndarray) -> Cells:
        """Count answers. Both are bool [n]."""
        pairs = (called & positive, called & ~positive, ~called & ~positive, ~called & positive)
        return cls(*(int(pair.sum()) for pair in pairs))

    @property
    def answers(self) -> int:
        return self.tp + self.fp + self.tn + self.fn

    @property
    def errors(self) -> int:
        return self.fp + self.fn


@dataclass(frozen=True)
class Confusion:
    """All answers by label and answer, and those that the policy does not accept once more, apart.

    Args:
        answers (`Cells`): Every answer, as the threshold decides it, accepted or not.
        abstained (`Cells`, *optional*): Those of them that are not accepted. None: all are, or nothing says which.
        groups (`int`): Number of groups that the answers are about.
        missed (`float`, *optional*): Share of the wrong answers that are misses (label 1, answered 0). None: no answer
            is wrong.
        interval (`Interval`): Its 95% interval from resampled groups, or exact bounds where these say nothing.
    """

    answers: Cells
    abstained: Cells | None
    groups: int
    missed: float | None
    interval: Interval

    @property
    def told_missed(self) -> str:
        """The share of misses among the wrong answers as text, such as `0.750 [0.500, 0.910]`."""
        low, high = self.interval.low, self.interval.high
        told = "no errors" if self.missed is None else f"{self.missed:.3f}"
        return told if low is None or high is None else f"{told} [{low:.3f}, {high:.3f}]"


def count_answers(
    called: Any, labels: Any, groups: Any, accepted: Any | None = None, n_resamples: int = 1000
) -> Confusion:
    """Count answers by label and answer, and estimate which share of the wrong ones are misses.

    Args:
        called (`np.ndarray` of bool, shape `(n,)`): True where the answer is yes.
        labels (`array-like` of shape `(n,)`): 0 or 1.
        groups (`array-like` of shape `(n,)`): Rows of one group are resampled together.
        accepted (`np.ndarray` of bool, shape `(n,)`, *optional*): True where the policy accepts the answer.
        n_resamples (`int`, defaults to 1000): Resamples of the group bootstrap. With 0 there is no interval.
    """
    yes, truth = np.asarray(called, dtype=bool), as_labels(labels)
    names = np.asarray(groups)
    check_lengths(called=yes, labels=truth, groups=names)
    positive = truth == 1
    wrong, missed = yes != positive, positive & ~yes
    abstained = None
    if accepted is not None:
        left = ~np.asarray(accepted, dtype=bool)
        abstained = Cells.of(yes[left], positive[left])
    share, interval = None, Interval()
    if wrong.any():
        share = float(missed.sum() / wrong.sum())
        if n_resamples:
            bounds = _resampled(missed, wrong, names, truth, n_resamples)
            interval = share_interval(bounds, missed, wrong, truth, names)
    return Confusion(Cells.of(yes, positive), abstained, len(np.unique(names)), share, interval)


def _resampled(
    missed: np.ndarray, wrong: np.ndarray, groups: np.ndarray, labels: np.ndarray, n_resamples: int
) -> tuple[float, float]:
    """The 95% interval of the share of misses among the errors of resamples. A resample without an error has none."""
    counts = np.column_stack([missed, wrong]).astype(np.int64)
    sums = np.concatenate([drawn @ counts for drawn in group_weights(groups, labels, n_resamples, 0)])
    some = sums[sums[:, 1] > 0]
    if not len(some):
        return float("nan"), float("nan")
    low, high = np.quantile(some[:, 0] / some[:, 1], [0.025, 0.975])
    return float(low), float(high)
