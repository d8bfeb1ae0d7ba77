"""The rules that risk control could have used, small, and what each of them promises and keeps.

    python benchmarks/selective_references.py [--trials 300]

Six cells of two Gaussians at -1.2 and 1.2 with |x| as confidence: n 1000 and 4000, alpha .02, .05 and .1, delta .1,
and acceptance .7 where a rule asks for one. A table for each: mean true error among the answered rows (0 where none is
answered), their mean share, and the share of calibrations whose true error among the answered is above alpha, which
delta bounds. SCRC answers with sets, and a set of both labels is an abstention: what it bounds is that the true label
is not in the set, of the accepted rows; how often that is above alpha is the last column. A rule keeps its promise if
no cell speaks against it (exact binomial test, .01); ours stands beside the one of them that answers most.
Then the reference cell of the SCRC paper: alpha .1, acceptance .7, 5000 calibration rows, 100 repeats.

MAPIE's Learn-then-Test is there where it is installed (pip install mapie), with its default correction (Bonferroni)
and with the fixed sequence, both over 100 of the thresholds that ours walks through.

What is sure and what is not: conformal risk control (arXiv 2208.02814), SGR (Geifman and El-Yaniv 2017, algorithm 1)
and the rule of SCRC-T (arXiv 2512.12844) are as published, but for its index ceil((m + 1) alpha) - 1, off by one for
0/1 losses; here it is (losses + 1) / (m + 1) <= alpha. The formulas of SCRC-I are **reconstructions, not verified**
against the paper: v1 is one that meets the reference cell, v2 a uniform bound that fits its description.
"""

from __future__ import annotations

import argparse
import math
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from results import record
from scipy.special import ndtr
from scipy.stats import binomtest

from natix_hf.calibration import fit_risk_control, make_grid
from natix_hf.calibration.binomial import upper_bound

Floats = npt.NDArray[np.float64]
MU = 1.2
OURS = "exact (ours)"


def conformal_risk_control(confidence: Floats, losses: Floats, alpha: float) -> float | None:
    """Loosest acceptance threshold with (losses among the accepted + 1) / (accepted + 1) <= alpha; on average only.

    The loss of the answered rows is not monotone in the threshold, which the theorem asks for.
    """
    order = np.argsort(-confidence)
    accepted = np.arange(1, order.size + 1)
    holds = np.flatnonzero((np.cumsum(losses[order]) + 1) / (accepted + 1) <= alpha)
    return float(np.nextafter(confidence[order[holds[-1]]], -np.inf)) if holds.size else None


def sgr(confidence: Floats, losses: Floats, alpha: float, delta: float) -> float | None:
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


def mapie_ltt(
    confidence: Floats, losses: Floats, grid: Floats, alpha: float, delta: float, correction: str
) -> float | None:
    """MAPIE's threshold of `grid` (ascending), tried from strict to loose.

    Its risk is `precision` at 1 - alpha of labels that say whether the answer is right: a positive prediction then is
    an accepted row. The fixed sequence starts at the first threshold that could certify without an error, as ours.
    """
    scale = max(float(confidence.max()), float(grid.max())) + 1.0  # it takes probabilities
    strict_first = np.maximum(grid[::-1], 0.0)
    if correction == "fixed_sequence":
        accepted = confidence.size - np.searchsorted(np.sort(confidence), strict_first, side="right")
        strict_first = strict_first[(1 - alpha) ** accepted <= delta]
    if not strict_first.size:
        return None
    controller: Any = import_module("mapie.risk_control").BinaryClassificationController(
        lambda x: np.column_stack([1 - x[:, 0], x[:, 0]]),
        risk="precision",
        target_level=1 - alpha,
        confidence_level=1 - delta,
        list_predict_params=strict_first / scale,
        fwer_method=correction,
    )
    found = controller.calibrate((confidence / scale)[:, None], 1 - losses).best_predict_param
    return None if found is None else float(found) * scale


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


def tails(t: float) -> tuple[float, float]:
    """Of all rows, the wrong and the right ones with |x| > t."""
    return float(ndtr(-t - MU)), float(ndtr(MU - t))


def outcome(cut: float, score_cut: float) -> tuple[float, float, float]:
    """True error among the answered, their share, and the risk of the sets {label: score >= score_cut}."""
    wrong, right = tails(max(cut, 0.0))
    if score_cut <= 0:  # both labels, always
        return 0.0, 0.0, 0.0
    single = max(cut, abs(math.log(score_cut / (1 - score_cut))) / (2 * MU))
    wrong_single, right_single = tails(single)
    missed = wrong_single if score_cut <= 0.5 else wrong + right - right_single  # above .5 some sets are empty
    answered = wrong_single + right_single
    return wrong_single / answered, answered, missed / (wrong + right)


def draw(rng: np.random.Generator, n: int) -> tuple[Floats, Floats, Floats]:
    """Confidence, losses and the score of the true label."""
    signed = rng.normal(size=n) + MU  # x, turned so that the true label is positive
    return np.abs(signed), (signed <= 0).astype(np.float64), 1 / (1 + np.exp(-2 * MU * signed))


def compare(n: int, alpha: float, trials: int, delta: float = 0.1, xi: float = 0.7) -> dict[str, tuple[bool, float]]:
    """Of each rule: whether the promise may hold, and the mean share that is answered."""
    rng = np.random.default_rng(n)
    other = draw(rng, 2000)[0]
    grid, coarse = make_grid(other), make_grid(other, 100)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(trials):
        confidence, losses, scores = draw(rng, n)
        single = {
            OURS: fit_risk_control(confidence, losses, alpha, delta, grid=grid).threshold,
            "conformal risk control": conformal_risk_control(confidence, losses, alpha),
            "SGR": sgr(confidence, losses, alpha, delta),
        }
        if find_spec("mapie") is not None:
            for correction in ("bonferroni", "fixed_sequence"):
                found_by = mapie_ltt(confidence, losses, coarse, alpha, delta, correction)
                single[f"MAPIE ({correction})"] = found_by
        sets = {
            "SCRC-T": scrc_t(confidence, scores, draw(rng, n)[0], alpha, xi),
            "SCRC-I v1 (not verified)": scrc_i_v1(confidence, scores, alpha, xi, delta),
            "SCRC-I v2 (not verified)": scrc_i_v2(confidence, scores, alpha, xi, delta),
        }
        for name, threshold in single.items():
            found.setdefault(name, []).append((0.0, 0.0, 0.0) if threshold is None else outcome(threshold, 0.5))
        for name, (cut, score_cut) in sets.items():
            found.setdefault(name, []).append(outcome(cut, score_cut))
    print(f"n {n}, alpha {alpha}, delta {delta}\n{'':26} error  answered  error > alpha  set risk > alpha")
    summary = {}
    for name, rows in found.items():
        error, answered, risk = np.array(rows).T
        above, sets_above = error > alpha, (risk > alpha).mean()
        print(f"{name:26} {error.mean():.4f} {answered.mean():9.4f} {above.mean():14.4f} {sets_above:17.4f}")
        holds = binomtest(int(above.sum()), trials, delta, alternative="greater").pvalue >= 0.01
        summary[name] = (holds, float(answered.mean()))
    return summary


def reference_cell() -> str:
    risks = []
    for delta in (0.01, 0.05, 0.1):
        rng = np.random.default_rng(0)
        calibrations = [draw(rng, 5000) for _ in range(100)]
        cuts = [scrc_i_v1(confidence, scores, 0.1, 0.7, delta) for confidence, _, scores in calibrations]
        risks.append(f"{np.mean([outcome(*cut)[2] for cut in cuts]):.4f}")
    return f"SCRC-I v1 (not verified) on the paper's cell {'/'.join(risks)}, published .0954/.0960/.0964"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    trials = parser.parse_args().trials
    cells = {(n, alpha): compare(n, alpha, trials) for n, alpha in product((1000, 4000), (0.02, 0.05, 0.1))}
    valid = [name for name in next(iter(cells.values())) if all(cell[name][0] for cell in cells.values())]
    if OURS not in valid:
        raise SystemExit("ours breaks its promise")
    lines = []
    for (n, alpha), cell in cells.items():
        most = max((name for name in valid if name != OURS), key=lambda name: cell[name][1])
        lines.append(f"n {n}, alpha {alpha}: {cell[OURS][1]:.3f} ({most} {cell[most][1]:.3f})")
    record(
        "selective_references",
        f"valid in all cells: {', '.join(valid)}; mean share answered by ours, and by the best other valid rule: "
        f"{'; '.join(lines)}; {reference_cell()}",
        packages=("numpy", "scipy"),
    )


if __name__ == "__main__":
    main()
