"""Wrong labels, found from answers of models that have not seen the rows: confident learning for two classes.

Source: Northcutt, Jiang, Chuang 2021 (arXiv 1911.00068). A row counts as *confidently* of a class if its probability
of the class is at least the mean probability of the class among the rows that carry its label. Rows that are
confidently of the class that they are not labelled with are the ones to look at. What is added here is the group:
frames of one video mostly share the true label, so the answers to the others and their labels are evidence too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from natix_hf.errors import DataError
from natix_hf.metrics.arrays import Floats, Labels, as_array, as_floats, as_labels, check_lengths
from natix_hf.metrics.groups import group_weights
from natix_hf.metrics.intervals import Interval, exact_interval, has_width, why_not_resampled

_RIDGE = 1e-3  # of a coefficient of a standardised column, per row: answers that divide the labels perfectly have none
_SUREST = 0.2
_ROUNDING = 1e-12  # the mean of equal numbers may lie above each of them
# A group is one finding if more than this share of its rows is confidently of the other class.
_MOST_OF_A_GROUP = 0.5


@dataclass(frozen=True)
class NoiseEstimate:
    """The estimated noise of labels.

    Attributes:
        thresholds (`tuple[float, float]`): The mean probability of each class among the rows with its label.
        counts (`list[list[int]]`): The confident joint: rows with label i that are confidently of class j.
        joint (`list[list[float]]`): Its estimate for all rows, as shares: label i and truly j.
        rates (`dict[str, float | None]`): `missed`, P(label 0 given truly 1), `false`, P(label 1 given truly 0), and
            `all`, the share of wrong labels. They count as noise what the model cannot tell, too. `surest_yes` and
            `surest_no`: of the fifth of the rows that are answered yes, or no, most surely, the share that is labelled
            otherwise. `None` where there is no such row.
        intervals (`dict[str, Interval]`): 95% intervals of the rates, by group.
    """

    thresholds: tuple[float, float]
    counts: list[list[int]]
    joint: list[list[float]]
    rates: dict[str, float | None]
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Suspects:
    """Rows whose labels are most surely wrong.

    Attributes:
        answered (`np.ndarray` [n]): Log-odds of the label 1, from the answers to the row and to the rest of its group.
        log_odds (`np.ndarray` [n]): The same, with the labels of the rest of the group as evidence.
        margin (`np.ndarray` [n]): Log-odds of the label that the row has. The lowest are most surely wrong.
        flagged (`np.ndarray` of bool [n]): The rows to look at.
        whole_groups (`list[np.ndarray]`): The rows of each group that is suspect as a whole, all of them flagged.
        noise ([`NoiseEstimate`]): The estimated noise.
    """

    answered: Floats
    log_odds: Floats
    margin: Floats
    flagged: npt.NDArray[np.bool_]
    whole_groups: list[npt.NDArray[np.int64]]
    noise: NoiseEstimate

    @property
    def probabilities(self) -> Floats:
        """The probability of the label 1, at the prior of the labels as found."""
        return _sigmoid(self.log_odds)


def find_wrong_labels(
    logits: Any, labels: Any, groups: Any, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Suspects:
    """Find the rows whose labels are most surely wrong.

    The answers are first fitted to the labels (`log_odds_of_labels`), so that neither a sampler that balanced the
    classes in training nor an overconfident model shifts them. The flagged rows are those with the lowest margin, as
    many as the off-diagonal of their confident joint counts. A group of one label, most of whose rows are flagged, is
    flagged as a whole. The noise is estimated from the answers alone: evidence that holds the labels of the group
    would count some noise twice.

    Args:
        logits (`array-like` of shape `(n,)`): Answers of models that have not seen the row's group, label 1 over 0.
        labels (`array-like` of shape `(n,)`): 0 or 1, as found.
        groups (`array-like` of shape `(n,)`): Name of the group of each row.
        n_resamples, level, seed: Of the intervals, as for [`bootstrap_intervals`]. The answers stay as they are.

    Raises:
        [`DataError`]: an array has a wrong shape or value, or all labels are the same.
    """
    z, y = as_floats(logits, "logits"), as_labels(labels)
    names = as_array(groups, "groups")
    check_lengths(logits=z, labels=y, groups=names)
    if y.min() == y.max():
        raise DataError(f"all {y.size} labels are {y[0]}: rows of both labels are needed to tell which are wrong")
    answered, log_odds = log_odds_of_labels(z, y, names)
    margin = (2 * y - 1) * log_odds
    counts, _, _ = confident_joint(_sigmoid(log_odds), y)
    flagged = np.zeros(y.size, dtype=bool)
    flagged[np.argsort(margin, kind="stable")[: int(counts[0, 1] + counts[1, 0])]] = True
    whole = _whole_groups(flagged, y, names)
    for rows in whole:
        flagged[rows] = True
    noise = _estimate(_sigmoid(answered), y, names, n_resamples, level, seed)
    return Suspects(answered, log_odds, margin, flagged, whole, noise)


def log_odds_of_labels(logits: Floats, labels: Labels, groups: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Compute the log-odds of the label 1, from the answers alone, and from the labels of each row's group too.

    Two logistic regressions are fitted to the labels: on the answer and the mean answer of the rest of the group, and
    on these with the share of label 1 in the rest. In the second result the one that trusts a row's label less
    decides: a group that is labelled wrongly as a whole agrees with itself, and a single wrong row disagrees with its
    group. Where groups hold both labels, the rest of a group gets little weight. Rows that are groups of their own go
    by their answer alone.

    Returns:
        Two arrays, float64 [n].
    """
    _, number = np.unique(groups, return_inverse=True)
    size = np.bincount(number)[number]
    if size.max() == 1:
        alone = _fitted([logits], labels)
        return alone, alone
    rest = np.maximum(size - 1, 1)
    others = np.where(size > 1, (np.bincount(number, logits)[number] - logits) / rest, logits)
    prior = labels.mean()
    share = (np.bincount(number, labels)[number] - labels + 2 * prior) / (
        size + 1
    )  # two rows of the prior beside them
    sign = 2 * labels - 1
    answered = _fitted([logits, others], labels)
    with_labels = _fitted([logits, others, np.log(share / (1 - share))], labels)
    return answered, np.asarray(sign * np.minimum(sign * answered, sign * with_labels))


def confident_joint(
    probabilities: Floats, labels: Labels, weights: Floats | None = None
) -> tuple[Floats, tuple[float, float], npt.NDArray[np.int64]]:
    """Count rows by their label and by the class that they are confidently of (Northcutt et al. 2021, equation 1).

    Args:
        probabilities: Probability of the label 1, float64 [n].
        labels: 0 or 1, int64 [n].
        weights: Weight of each row, float64 [n]. `None`: 1.

    Returns:
        Counts, float64 [2, 2] as [label, class]; the thresholds of both classes; the class that each row is
        confidently of, int64 [n], -1 for none. A row that is above both thresholds is of the more probable class.
    """
    w = np.ones(labels.size) if weights is None else weights
    positive = labels == 1
    no, yes = _mean(1 - probabilities, w * ~positive), _mean(probabilities, w * positive)
    above = np.stack([1 - probabilities >= no - _ROUNDING, probabilities >= yes - _ROUNDING])
    confident = np.where(above.all(axis=0), probabilities >= 0.5, above[1]).astype(np.int64)
    confident[~above.any(axis=0)] = -1
    known = confident >= 0
    cells = np.bincount(2 * labels[known] + confident[known], w[known], minlength=4).astype(np.float64)
    return cells.reshape(2, 2), (no, yes), confident


def estimated_joint(counts: Floats, of_label: Floats) -> Floats:
    """Scale the confident joint to the rows of each label (equation 2), so that it sums to 1, float64 [2, 2]."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1e-12), np.eye(2))
    return np.asarray(shares * of_label[:, None] / of_label.sum())


def noise_rates(joint: Floats) -> dict[str, float]:
    """The rates of [`NoiseEstimate`], from the estimated joint. NaN where no row is confidently of the class."""
    with np.errstate(invalid="ignore", divide="ignore"):
        missed, false = joint[0, 1] / joint[:, 1].sum(), joint[1, 0] / joint[:, 0].sum()
    return {"missed": float(missed), "false": float(false), "all": float(joint[0, 1] + joint[1, 0])}


def _estimate(
    p: Floats,
    y: Labels,
    groups: npt.NDArray[Any],
    n_resamples: int,
    level: float,
    seed: int,
) -> NoiseEstimate:
    counts, thresholds, confident = confident_joint(p, y)
    of_label = np.bincount(y, minlength=2).astype(np.float64)
    joint = estimated_joint(counts, of_label)
    rates = noise_rates(joint)
    resampled: dict[str, list[float]] = {name: [] for name in rates}
    for drawn in group_weights(groups, y, n_resamples, seed):
        for row in drawn:
            weights = row.astype(np.float64)
            of_some = np.bincount(y, weights, minlength=2).astype(np.float64)
            drawn_joint = estimated_joint(confident_joint(p, y, weights)[0], of_some)
            for name, value in noise_rates(drawn_joint).items():
                resampled[name].append(value)
    off = (confident >= 0) & (confident != y)
    counted = {"missed": confident == 1, "false": confident == 0, "all": confident >= 0}
    intervals = {
        name: _interval(rates[name], np.asarray(values), off, counted[name], y, groups, level)
        for name, values in resampled.items()
    }
    for name, answer in (("surest_yes", 1), ("surest_no", 0)):
        at = _surest(p, answer)
        rates[name] = float((y[at] != answer).mean()) if at.size else float("nan")
        bounds = exact_interval(y[at] != answer, groups=groups[at], level=level) if at.size else None
        intervals[name] = Interval(*bounds, exact=True) if bounds else Interval(reason="no row has this answer")
    return NoiseEstimate(
        thresholds=thresholds,
        counts=[[int(count) for count in row] for row in counts],
        joint=[[float(share) for share in row] for row in joint],
        rates={name: None if value != value else value for name, value in rates.items()},
        intervals=intervals,
    )


def _interval(
    rate: float,
    resampled: Floats,
    off: npt.NDArray[np.bool_],
    counted: npt.NDArray[np.bool_],
    y: Labels,
    groups: npt.NDArray[Any],
    level: float,
) -> Interval:
    """The percentiles of the resamples; where they say nothing, exact bounds of the share among the confident rows."""
    if rate != rate:
        return Interval(reason="no row is confidently of this class")
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    if has_width(low, high) and not why_not_resampled(y, groups, counted):
        return Interval(float(low), float(high))
    low, high = exact_interval(off & counted, counted, groups, level=level)
    if low != low:
        return Interval(reason="no row is confidently of this class")
    return Interval(min(low, rate), max(high, rate), exact=True)


def _mean(values: Floats, weights: Floats) -> float:
    """The weighted mean. Without any weight nothing reaches it."""
    total = weights.sum()
    return float(values @ weights / total) if total > 0 else float("inf")


def _surest(p: Floats, answer: int) -> npt.NDArray[np.int64]:
    """The fifth of the rows with this answer that are surest of it."""
    of_answer = np.flatnonzero((p > 0.5) == bool(answer))
    order = np.argsort(-np.abs(p[of_answer] - 0.5), kind="stable")
    return of_answer[order[: int(np.ceil(_SUREST * of_answer.size))]]


def _whole_groups(flagged: npt.NDArray[np.bool_], y: Labels, groups: npt.NDArray[Any]) -> list[npt.NDArray[np.int64]]:
    """The groups of several rows with one label of which more than half are flagged."""
    _, number = np.unique(groups, return_inverse=True)
    size, positive = np.bincount(number), np.bincount(number, y)
    share = np.bincount(number, flagged) / size
    suspect = np.flatnonzero((size > 1) & ((positive == 0) | (positive == size)) & (share > _MOST_OF_A_GROUP))
    order = np.argsort(number, kind="stable")
    begin = np.append(0, np.cumsum(size))
    return [order[begin[group] : begin[group + 1]] for group in suspect]


def _fitted(columns: list[Floats], labels: Labels) -> Floats:
    """The log-odds of a logistic regression with a small ridge, fitted to the labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = StandardScaler().fit_transform(np.column_stack(columns))
    fitted = LogisticRegression(C=1 / (_RIDGE * len(x)), solver="newton-cholesky", tol=1e-8).fit(x, labels)
    return np.asarray(fitted.decision_function(x))


def _sigmoid(x: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(x))
