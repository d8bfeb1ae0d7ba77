"""Worlds in which the true risk of every acceptance threshold is known in closed form, for `risk_validity.py`.

informative    two Gaussians at -1.2 and 1.2, |x| as confidence; tied: the same, |x| rounded down to quarters
floor X        the same, with a share X of the labels turned over, whatever the confidence
prior          80% positives where half is the target, cut off-centre
useless        the confidence says nothing, and the risk is 1.02 alpha everywhere: each certificate is a false one
non_monotone   uniform confidence, risk 1.2 alpha in its top tenth, 0.9 alpha down to .5, 1.3 alpha below
noisy_top      uniform confidence, risk 3 alpha in its top twentieth, 0.4 alpha down to .4, 3 alpha below: the risk of
               what is accepted is above alpha at the strict end, below it from .783 to .285, and above it again
20x30, 120x6   clusters of alike rows, all right or all wrong (risk 1.02 alpha)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MU, TARGET, INTERVAL, OVER = 1.2, 0.5, (0.3, 0.7), 1.02
FLOORS = {f"floor {share}": share for share in (0.0, 0.002, 0.005, 0.01, 0.02)}
# Risk in multiples of alpha, and the confidence above which it holds.
STEPS = {
    "useless": ((0.0, OVER),),
    "non_monotone": ((0.9, 1.2), (0.5, 0.9), (0.0, 1.3)),
    "noisy_top": ((0.95, 3.0), (0.4, 0.4), (0.0, 3.0)),
}
CLUSTERS = {"20x30": (20, 30), "120x6": (120, 6)}


@dataclass(frozen=True)
class Rows:
    """Rows by rising confidence. Where `doubt` is given the answers depend on alpha: wrong where it is below."""

    confidence: Floats
    labels: Bools
    decisions: Bools | None = None
    doubt: Floats | None = None
    groups: npt.NDArray[np.int64] | None = None

    def wrong(self, alpha: float) -> Bools:
        if self.doubt is not None:
            return self.doubt < alpha
        assert self.decisions is not None
        return self.decisions ^ self.labels

    def answers(self, alpha: float) -> Bools:
        return self.labels ^ self.wrong(alpha)

    def take(self, kept: npt.NDArray[np.int64]) -> Rows:
        """Some of the rows; `kept` must leave the confidence rising."""
        columns = (self.confidence, self.labels, self.decisions, self.doubt, self.groups)
        return Rows(*(None if column is None else column[kept] for column in columns))  # type: ignore[arg-type]


def draw(kind: str, n: int, rng: np.random.Generator) -> Rows:
    """`n` rows, or all rows of `n` clusters."""
    if kind in CLUSTERS:
        size = CLUSTERS[kind][1]
        groups = np.repeat(np.arange(n), size)
        confidence = rng.random(n)[groups] + 0.05 * rng.random(groups.size)
        rows = Rows(confidence, (rng.random(n) < 0.5)[groups], None, (rng.random(n) / OVER)[groups], groups)
    elif kind in STEPS:
        confidence = rng.random(n)
        above, risks = np.array(STEPS[kind]).T
        risk = risks[np.argmax(confidence[:, None] >= above, axis=1)] if above.size > 1 else risks
        rows = Rows(confidence, rng.random(n) < 0.5, None, rng.random(n) / risk)
    else:
        labels = rng.random(n) < positives(kind)
        x = rng.normal(size=n) + np.where(labels, MU, -MU) - cut(kind)
        confidence = np.floor(np.abs(x) * 4) / 4 if kind == "tied" else np.abs(x)
        if kind in FLOORS:
            labels = labels ^ (rng.random(n) < FLOORS[kind])
        rows = Rows(confidence, labels, x > 0)
    return rows.take(np.argsort(rows.confidence, kind="stable"))


def positives(kind: str) -> float:
    return 0.8 if kind == "prior" else 0.5


def cut(kind: str) -> float:
    return -0.3 if kind == "prior" else 0.0


def true_risk(kind: str, loss: str, alpha: float, of_one: Floats, of_zero: Floats | None = None) -> Floats:
    """Risk among the accepted at each pair of thresholds, for the answers 1 and 0; the larger one, where there are
    two. A threshold that is nan accepts nothing of its answer, whose risk then counts as 0."""
    if kind == "useless" and loss == "rates" and of_zero is not None:
        one, zero = (1 - np.maximum(threshold, 0.0) for threshold in (of_one, of_zero))
        risk, larger, smaller = OVER * alpha, np.fmax(one, zero), np.fmin(one, zero)
        rates: Floats = risk * larger / (risk * larger + (1 - risk) * smaller)
        return rates
    if kind in CLUSTERS or kind == "useless":
        return np.where(np.isnan(of_one if of_zero is None else np.fmax(of_one, of_zero)), 0.0, OVER * alpha)
    if kind in STEPS:
        return _risk_of_steps(kind, alpha, of_one)
    fn, tp, fp, tn = _shares(kind, of_one, of_one if of_zero is None else of_zero)
    with np.errstate(invalid="ignore"):
        fnr, fpr = fn / (fn + tp), fp / (fp + tn)
        if loss in ("fnr", "fpr", "rates"):
            return {"fnr": fnr, "fpr": fpr, "rates": np.fmax(fnr, fpr)}[loss]
        if loss == "classes":
            p = positives(kind)
            of_positive, of_negative = fp * (1 - p) / (fp * (1 - p) + tp * p), fn * p / (fn * p + tn * (1 - p))
            return np.nan_to_num(np.fmax(of_positive, of_negative))
        ends = INTERVAL if loss == "interval" else (TARGET,)
        risk = np.max([(p * fn + (1 - p) * fp) / (p * (fn + tp) + (1 - p) * (fp + tn)) for p in ends], axis=0)
    floor = FLOORS.get(kind, 0.0)
    found: Floats = floor + (1 - 2 * floor) * risk
    return found


def _shares(kind: str, of_one: Floats, of_zero: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Of the positives those answered 0 and 1 and accepted, of the negatives those answered 1 and 0."""

    def reach(threshold: Floats) -> Floats:
        rounded = np.where(threshold >= 0, (np.floor(threshold * 4) + 1) / 4, threshold)
        return np.maximum(rounded if kind == "tied" else threshold, 0.0)

    c, one, zero = cut(kind), reach(of_one), reach(of_zero)
    return ndtr(c - zero - MU), ndtr(MU - c - one), ndtr(-c - one - MU), ndtr(c - zero + MU)


def _risk_of_steps(kind: str, alpha: float, threshold: Floats) -> Floats:
    """Above all confidences nothing is accepted; no threshold lies there."""
    t, top, area = np.maximum(threshold, 0.0), 1.0, np.zeros(threshold.size)
    for above, risk in STEPS[kind]:
        area += risk * np.maximum(top - np.maximum(above, t), 0.0)
        top = above
    found: Floats = alpha * area / (1 - t)
    return found
