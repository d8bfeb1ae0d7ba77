"""The probabilities of `natix-hf plan` beside how often `fit_risk_control` succeeds on rows drawn here.

    python benchmarks/plan_truth.py [--draws 5000] [--only NAME]

Every cell is a model of answers, alpha and a number of groups: delta .1, n 300 1000 3000, alpha .02 .05 .1. Each draw
has n rows to choose the start on and n others to certify on. Drawn are rows, by code that shares nothing with the
plan's, which draws counts.

model       60 % of the rows at a mean error of .4 alpha (or the floor, if larger), the rest at .3; floors of
            confident errors 0 .002 .005 .01 .02, where below alpha
flat        methods' case: 60 % of the rows at .02, the rest at .3, alpha .05, 430 groups
gaussians   two Gaussians at -1.3 and 1.3, |x| as confidence, the floor wrong besides; 20,000 such rows are the answers
            that the plan is given, and the rows are drawn from these with replacement

It fails where the probability of a certificate, or of one that covers .95 of the planned share, is further than .03
from the frequency, or the mean coverage is further than .02.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from results import record

from natix_hf.calibration import Plan, fit_risk_control, groups_needed, groups_needed_for

ALPHAS, DELTA, SIZES, FLOORS = (0.02, 0.05, 0.1), 0.1, (300, 1000, 3000), (0.0, 0.002, 0.005, 0.01, 0.02)
SHARE, REST = 0.6, 0.3
Rows = tuple[Any, Any]


class Case(NamedTuple):
    name: str
    alpha: float
    sizes: tuple[int, ...]
    plan: Callable[[], Plan]
    rows: Callable[[np.random.Generator, int], Rows]


def model_rows(mean: float, floor: float) -> Callable[[np.random.Generator, int], Rows]:
    def draw(rng: np.random.Generator, n: int) -> Rows:
        score = rng.uniform(size=n)
        depth = (1 - score) / SHARE
        wrong_share = np.where(depth < 1, floor * (1 - depth) + (2 * mean - floor) * depth, REST)
        return score, rng.uniform(size=n) < wrong_share

    return draw


def gaussians(floor: float, n: int, rng: np.random.Generator) -> Rows:
    label = rng.uniform(size=n) < 0.5
    x = rng.normal(np.where(label, 1.3, -1.3))
    return np.abs(x), ((x > 0) != label) | (rng.uniform(size=n) < floor)


def cases() -> Iterator[Case]:
    for alpha in ALPHAS:
        for floor in (f for f in FLOORS if f < alpha):
            mean = max(0.4 * alpha, floor)
            yield Case(
                f"model, floor {floor:g}",
                alpha,
                SIZES,
                partial(groups_needed, alpha, DELTA, mean, SHARE, floor, REST, SIZES),
                model_rows(mean, floor),
            )
    yield Case(
        "flat, floor 0.02",
        0.05,
        (430,),
        partial(groups_needed, 0.05, DELTA, 0.02, SHARE, groups=(430,)),
        model_rows(0.02, 0.02),
    )
    for alpha, floor in ((0.05, 0.0), (0.05, 0.005), (0.05, 0.02), (0.1, 0.01), (0.02, 0.002)):
        confidence, wrong = gaussians(floor, 20_000, np.random.default_rng(5))

        def again(rng: np.random.Generator, n: int, c: Any = confidence, w: Any = wrong) -> Rows:
            at = rng.choice(c.size, n)
            return c[at], w[at]

        yield Case(
            f"gaussians, floor {floor:g}",
            alpha,
            SIZES,
            partial(groups_needed_for, confidence, wrong, alpha, DELTA, groups=SIZES),
            again,
        )


def frequencies(case: Case, n: int, planned: float, draws: int) -> tuple[float, float, float]:
    """Shares of draws with a certificate, and with one that covers .95 of the planned share; mean coverage."""
    rng = np.random.default_rng([n, round(1000 * case.alpha), draws])
    coverage = np.zeros(draws)
    for i in range(draws):
        (c, wrong), select = case.rows(rng, n), case.rows(rng, n)
        found = fit_risk_control(c, wrong, case.alpha, DELTA, select=select)
        coverage[i] = found.coverage or 0.0
    return float(np.mean(coverage > 0)), float(np.mean(coverage >= 0.95 * planned)), float(np.mean(coverage))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    gaps, cells, seconds = [], 0, []
    print(f"{'answers':22} alpha     n | plan: certified, reached, coverage | drawn: the same")
    for case in cases():
        if arguments.only not in case.name:
            continue
        begin = time.perf_counter()
        plan = case.plan()
        seconds.append(time.perf_counter() - begin)
        for row in plan.table:
            if row.groups not in case.sizes:
                continue
            true = frequencies(case, row.groups, plan.coverage, arguments.draws)
            said = (row.certified, row.reached, row.coverage)
            gaps.append([abs(a - b) for a, b in zip(said, true, strict=True)])
            cells += 1
            mark = "  <-" if max(gaps[-1][:2]) > 0.03 or gaps[-1][2] > 0.02 else ""
            told = " | ".join(" ".join(f"{value:6.3f}" for value in values) for values in (said, true))
            print(f"{case.name:22} {case.alpha:5g} {row.groups:5} | {told}{mark}", flush=True)
    worst = np.max(gaps, axis=0)
    if max(worst[:2]) > 0.03 or worst[2] > 0.02:
        raise SystemExit(f"a plan is too far from the truth: {worst.round(3).tolist()}")
    record(
        "plan_truth",
        f"{cells} cells of {arguments.draws:,} draws: plan and frequency differ by at most {worst[0]:.3f} in the "
        f"probability of a certificate, {worst[1]:.3f} in that of the planned coverage, {worst[2]:.3f} in the mean "
        f"coverage; a plan took {np.median(seconds):.1f} s, at most {max(seconds):.1f} s",
        packages=("numpy", "scipy"),
    )


if __name__ == "__main__":
    main()
