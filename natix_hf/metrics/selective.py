"""Selective prediction: how the risk falls as less confident answers are rejected."""

from __future__ import annotations

from typing import Any

import numpy as np

from natix_hf.metrics.arrays import Floats, as_floats, as_labels, as_weights, check_lengths


def _curve(confidence: Any, losses: Any, sample_weight: Any | None) -> tuple[Floats, Floats, Floats]:
    """The distinct confidences, falling, and at each one the shares of rows accepted, and accepted with a loss."""
    c, loss, w = as_floats(confidence, "confidence"), as_labels(losses, "losses"), as_weights(sample_weight)
    check_lengths(confidence=c, losses=loss, sample_weight=w)
    if w is not None:
        # A row without weight counts as absent: its confidence would add a point, perhaps one at coverage 0.
        w = w / w.max()
        counted = w > 0
        c, loss, w = c[counted], loss[counted], w[counted]
    order = np.argsort(c)[::-1]
    c = c[order]
    last = np.append(np.flatnonzero(c[1:] != c[:-1]), c.size - 1)
    if w is None:
        accepted, lost = last + 1, np.cumsum(loss[order], dtype=np.int64)[last]
        return c[last], accepted / c.size, lost / c.size
    w = w[order]
    accepted, lost = np.cumsum(w), np.cumsum(w * loss[order])
    return c[last], accepted[last] / accepted[-1], lost[last] / accepted[-1]


def risk_coverage(confidence: Any, losses: Any, sample_weight: Any | None = None) -> tuple[Floats, Floats, Floats]:
    """Compute the risk-coverage curve: at each threshold, the share of accepted rows and their mean loss.

    A row is accepted iff `confidence >= threshold`. The thresholds are the distinct confidences, so tied rows are
    accepted together or not at all. O(n log n) time, O(n) memory.

    Args:
        confidence (`array-like` of shape `(n,)`): Any finite numbers; larger means more trust in the answer.
        losses (`array-like` of shape `(n,)`): 1 if the answer is wrong, else 0.
        sample_weight (`array-like` of shape `(n,)`, *optional*): Weight of each row; 0 counts as absent.

    Returns:
        `tuple` of three `np.ndarray` of float64, with one value per distinct confidence: coverage (rising to 1), risk
        (among the accepted rows, in [0, 1]) and thresholds (falling).

    Raises:
        [`DataError`]: an array has a wrong shape or value.

    Example:
        >>> coverage, risk, thresholds = risk_coverage([0.9, 0.8, 0.8, 0.6], [0, 1, 0, 1])
        >>> coverage.tolist(), risk.round(3).tolist(), thresholds.tolist()
        ([0.25, 0.75, 1.0], [0.0, 0.333, 0.5], [0.9, 0.8, 0.6])
    """
    thresholds, coverage, lost = _curve(confidence, losses, sample_weight)
    return coverage, lost / coverage, thresholds


def aurc(confidence: Any, losses: Any, sample_weight: Any | None = None) -> float:
    """Compute the area under the risk-coverage curve (Geifman et al. 2019, arXiv:1805.08206). Lower is better.

    As in the paper, it is a sum: the mean over the rows of the risk among all rows at least as confident. Tied rows
    are accepted together. It grows with the error rate as well as with a bad order, and the first few rows weigh most.

    Args:
        confidence, losses, sample_weight: As for [`risk_coverage`].

    Returns:
        `float`: in [0, 1]; the error rate if all confidences are equal.

    Raises:
        [`DataError`]: an array has a wrong shape or value.

    Example:
        Risks 0, 1/2, 1/3 and 1/2 at the four rows:

        >>> round(aurc([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1]), 4)
        0.3333
    """
    _, coverage, lost = _curve(confidence, losses, sample_weight)
    return float(np.diff(coverage, prepend=0) @ (lost / coverage))


def augrc(confidence: Any, losses: Any, sample_weight: Any | None = None) -> float:
    """Compute the area under the generalised risk-coverage curve (Traub et al. 2024, arXiv:2407.01032).

    Lower is better. The generalised risk is P(error and accepted). Its points are joined by lines from (0, 0) on: this
    is the mean over all orders of tied rows. In closed form it is `e² / 2 + e (1 - e) (1 - AUROC)`, where e is the
    error rate and AUROC is that of the confidence for right answers. Unlike [`aurc`], it weighs all pairs of rows
    equally.

    Args:
        confidence, losses, sample_weight: As for [`risk_coverage`].

    Returns:
        `float`: in [0, 1/2]; half the error rate if all confidences are equal.

    Raises:
        [`DataError`]: an array has a wrong shape or value.

    Example:
        >>> augrc([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1])
        0.1875
    """
    _, coverage, lost = _curve(confidence, losses, sample_weight)
    return float(np.trapezoid(np.append(0, lost), np.append(0, coverage)))
