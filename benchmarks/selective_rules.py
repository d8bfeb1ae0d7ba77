"""Rules that answer or abstain, small, to compare risk control with: each takes rows and returns its threshold.

What is sure and what is not: conformal risk control (arXiv 2208.02814), SGR (Geifman and El-Yaniv 2017, algorithm 1)
and the rule of SCRC-T (arXiv 2512.12844) are as published, but for its index ceil((m + 1) alpha) - 1, off by one for
0/1 losses; here it is (losses + 1) / (m + 1) <= alpha. The formulas of SCRC-I are **reconstructions, not verified**
against the paper: v1 is one that meets its reference cell, v2 a uniform bound that fits its description.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from natix_hf.calibration.binomial import binomial_cdf, needed_without_error, smallest_accepted, upper_bound
from natix_hf.calibration.grid import make_grid

Floats = npt.NDArray[np.float64]
MAPIE_THRESHOLDS, BONFERRONI_THRESHOLDS = 100, 20


def counts(confidence: Floats, losses: npt.NDArray[Any], thresholds: Floats) -> tuple[Any, Any]:
    """Accepted rows (confidence > threshold) and the losses among them, for each threshold."""
    order = np.argsort(confidence)
    below = np.searchsorted(confidence[order], thresholds, side="right")
    wrong = np.append(0, np.cumsum(losses[order], dtype=np.int64))
    return confidence.size - below, wrong[-1] - wrong[below]


def one_walk(confidence: Floats, losses: npt.NDArray[Any], alpha: float, delta: float, grid: Floats) -> float | None:
    """The fixed sequence that begins at the strict end: the first threshold that could pass without an error."""
    thresholds = np.sort(grid)[::-1]
    accepted, errors = counts(confidence, losses, thresholds)
    begin = int(np.searchsorted(accepted, smallest_accepted(0, alpha, delta)))
    failed = binomial_cdf(errors[begin:], accepted[begin:], alpha) > delta
    passed = int(np.argmax(failed)) if failed.any() else failed.size
    return float(thresholds[begin + passed - 1]) if passed else None


def exact_bonferroni(
    confidence: Floats, losses: npt.NDArray[Any], alpha: float, delta: float, select: Floats
) -> float | None:
    """The loosest of 20 thresholds, quantiles of other rows, that passes the exact test at delta / 20."""
    thresholds = make_grid(select, BONFERRONI_THRESHOLDS)
    accepted, errors = counts(confidence, losses, thresholds)
    passed = np.flatnonzero(binomial_cdf(errors, accepted, alpha) <= delta / thresholds.size)
    return float(thresholds[passed[0]]) if passed.size else None


def conformal_risk_control(confidence: Floats, losses: npt.NDArray[Any], alpha: float) -> float | None:
    """Loosest acceptance threshold with (losses among the accepted + 1) / (accepted + 1) <= alpha; on average only.

    The loss of the answered rows is not monotone in the threshold, which the theorem asks for.
    """
    order = np.argsort(-confidence)
    accepted = np.arange(1, order.size + 1)
    holds = np.flatnonzero((np.cumsum(losses[order]) + 1) / (accepted + 1) <= alpha)
    return float(np.nextafter(confidence[order[holds[-1]]], -np.inf)) if holds.size else None


def sgr(confidence: Floats, losses: npt.NDArray[Any], alpha: float, delta: float) -> float | None:
    """Bisection over the sorted confidences, each of ceil(log2 n) steps with a bound at delta / steps."""
    order = np.argsort(confidence)
    ordered, wrong = confidence[order], losses[order]
    low, high, steps = 0, order.size - 1, math.ceil(math.log2(order.size))
    found = None
    for _ in range(steps):
        middle = math.ceil((low + high) / 2)
        accepted = wrong[middle:]
        if upper_bound(int(accepted.sum()), accepted.size, delta / steps) <= alpha:
            found, high = float(np.nextafter(ordered[middle], -np.inf)), middle
        else:
            low = middle
    return found


@dataclass(frozen=True)
class Mapie:
    """MAPIE's `BinaryClassificationController` over 100 thresholds of other rows, tried from strict to loose.

    Its risk is `precision` at 1 - alpha of labels that say whether the answer is right: a positive prediction then is
    an accepted row. `split_fixed_sequence` learns its order once, on the rows that ours chooses its start on.
    """

    method: str
    alpha: float
    delta: float
    scale: float  # it takes probabilities
    thresholds: Floats
    learned: Any = None

    def threshold(self, confidence: Floats, losses: npt.NDArray[Any]) -> float | None:
        accepted, _ = counts(confidence, losses, self.thresholds)
        # Its Holm procedure stops at a threshold that accepts no row, for want of a p-value. The fixed sequence begins
        # at the first threshold that could pass without an error, as one walk does.
        least = needed_without_error(self.alpha, self.delta) if self.method == "fixed_sequence" else 1
        thresholds = self.thresholds[accepted >= least]
        if not thresholds.size:
            return None
        controller = self.learned or self.controller(thresholds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a risk that is not monotone, and of no threshold
            found = controller.calibrate((confidence / self.scale)[:, None], 1 - losses).best_predict_param
        return None if found is None else float(found) * self.scale

    def controller(self, thresholds: Floats) -> Any:
        controller: Callable[..., Any] = import_module("mapie.risk_control").BinaryClassificationController
        return controller(
            lambda x: np.column_stack([1 - x[:, 0], x[:, 0]]),
            risk="precision",
            target_level=1 - self.alpha,
            confidence_level=1 - self.delta,
            list_predict_params=thresholds / self.scale,
            fwer_method=self.method,
        )


def mapie(
    method: str, select: tuple[Floats, npt.NDArray[Any]], alpha: float, delta: float, check: bool = False
) -> Mapie:
    """MAPIE's rule with the thresholds, and for the split method the order, of other rows (confidence and losses).

    Its own way to the order takes 0.3 s, so the order is found here from its p-values; `check` compares the two.
    """
    confidence, losses = select
    thresholds = np.maximum(make_grid(confidence, MAPIE_THRESHOLDS)[::-1], 0.0)
    # Room above the other rows: a probability may not exceed 1.
    rule = Mapie(method, alpha, delta, 2 * float(confidence.max()) + 1.0, thresholds)
    if method != "split_fixed_sequence":
        return rule
    scaled, right = (confidence / rule.scale)[:, None], 1 - losses
    pilot, learned = replace(rule, method="bonferroni").controller(thresholds), rule.controller(thresholds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no threshold, and of all answers alike
        p_values = pilot.calibrate(scaled, right).p_values[:, 0]
    nearest = np.abs(p_values - np.logspace(-25, 0, 1000)[:, None]).argmin(axis=1)
    order = thresholds[list(dict.fromkeys(nearest.tolist()))] / rule.scale
    if check:
        learned.learn_fixed_sequence_order(scaled, right, binary=True)
        if not np.array_equal(learned._learned_fixed_sequence.astype(np.float64), order):
            raise SystemExit("the order that MAPIE learns is not the one that is found here from its p-values")
    learned._learned_fixed_sequence = order
    return replace(rule, learned=learned)


def smallest_set_threshold(true_scores: Floats, level: float) -> float:
    """Cut of the score of the true label: the share of rows below it, (losses + 1) / (m + 1), is at most `level`."""
    allowed = math.floor(level * (true_scores.size + 1)) - 1
    return float(np.sort(true_scores)[allowed]) if allowed >= 0 else -math.inf


def scrc_t(confidence: Floats, scores: Floats, test: Floats, alpha: float, xi: float) -> tuple[float, float]:
    """Acceptance cut from calibration and test rows together, then the cut of the scores on the accepted."""
    pooled = np.sort(np.append(confidence, test))
    cut = float(pooled[math.floor((1 - xi) * pooled.size)])
    return cut, smallest_set_threshold(scores[confidence >= cut], alpha)


def scrc_i_v1(confidence: Floats, scores: Floats, alpha: float, xi: float, delta: float) -> tuple[float, float]:
    """Reconstruction: alpha shrunk by 1 - 2 slack, with the slack of the empirical distribution of all rows."""
    cut = float(np.quantile(confidence, 1 - xi))
    slack = math.sqrt(math.log(2 / delta) / (2 * confidence.size))
    return cut, smallest_set_threshold(scores[confidence >= cut], alpha * (1 - 2 * slack))


def scrc_i_v2(confidence: Floats, scores: Floats, alpha: float, xi: float, delta: float) -> tuple[float, float]:
    """Reconstruction: uniform bounds, above of P(loss, accepted) and below of P(accepted), at delta / 2 each."""
    n, cut = confidence.size, float(np.quantile(confidence, 1 - xi))
    slack = math.sqrt(math.log(4 / delta) / (2 * n))
    accepted = confidence >= cut
    most = (alpha * (accepted.mean() - slack) - slack) * n
    ordered = np.sort(scores[accepted])
    return cut, float(ordered[math.floor(most)]) if most >= 0 else -math.inf
