"""`fit_risk_control` in simulation: how often a certified threshold has a true risk above alpha, which delta bounds.

    python benchmarks/risk_validity.py [--trials 10000] [--workers 1] [--profile]

The worlds, with true risks in closed form, are those of `risk_worlds.py`; alpha .02 .05 .1, delta .05 .1. Of each
world the losses error, fnr and fpr at n 200 1000 4000; with a floor of confident errors error at n 300 1000 3000; at
the same sizes the worst error of an interval of priors (.3 to .7), in the worlds prior and useless; and there, at n
300 1000 and delta .1, the two class-wise promises. Thresholds, and where the walk begins:

select    both from as many other rows, drawn anew for every 100 calibrations: the promise holds whatever they are
fixed     thresholds from these other rows, several walks
own       thresholds from the rows themselves, several walks

From clusters one row per group is drawn; for `prior` and the loss error the rows are thinned out to half positives.
The rows of a world are drawn once for all its cells, sorted once, and tested by the functions that `fit_risk_control`
is made of. Of every 100 calibrations one is also certified by `fit_risk_control` itself, which must agree.

It fails where an exact binomial test says that a cell's share of false certificates is above delta (.01, Bonferroni
over the cells), or where certificates are rarer than .9 though easy: error, n 1000 and more, alpha .05, without a
floor and with one of .005.
"""

from __future__ import annotations

import argparse
import cProfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np
from results import record
from risk_worlds import CLUSTERS, FLOORS, INTERVAL, STEPS, TARGET, Floats, Rows, draw, true_risk
from scipy.stats import binomtest

from natix_hf.calibration import fit_classwise_risk_control, fit_risk_control
from natix_hf.calibration.classwise import ClasswiseLoss
from natix_hf.calibration.fixed_sequence import Begin, choose_begin, loosest, walk_from, walks
from natix_hf.calibration.grid import grid_of_sorted, sort_rows
from natix_hf.calibration.risk_control import select_rows
from natix_hf.calibration.risk_rows import one_row_per_group, subsample_to_prior
from natix_hf.metrics import prior_weights

ALPHAS, DELTAS, REPEATS = (0.02, 0.05, 0.1), (0.05, 0.1), 100
CLASSWISE: dict[str, ClasswiseLoss] = {"rates": "rates", "classes": "error"}


@dataclass(frozen=True)
class World:
    """A world, its number of rows or groups, and what is tried in it."""

    kind: str
    n: int
    losses: tuple[str, ...]
    modes: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    kind: str
    n: int
    loss: str
    mode: str
    alpha: float
    delta: float


@dataclass(frozen=True)
class Outcome:
    cell: Cell
    trials: int
    certified: int
    false: int

    @property
    def p_value(self) -> float:
        return float(binomtest(self.false, self.trials, self.cell.delta, alternative="greater").pvalue)


def worlds() -> list[World]:
    plain = ("error", "fnr", "fpr")
    found = [
        World(k, n, plain, ("select", "fixed")) for k in ("informative", "tied", "prior") for n in (200, 1000, 4000)
    ]
    found += [World(kind, n, plain, ("select", "fixed", "own")) for kind in STEPS for n in (200, 1000, 4000)]
    found += [World(kind, groups, plain, ("select", "fixed")) for kind, (groups, _) in CLUSTERS.items()]
    found += [World(kind, n, ("error",), ("select", "own")) for kind in FLOORS for n in (300, 1000, 3000)]
    found += [
        World(kind, n, ("interval",), ("select", "own")) for kind in ("prior", "useless") for n in (300, 1000, 3000)
    ]
    return found + [
        World(kind, n, tuple(CLASSWISE), ("select", "own")) for kind in ("prior", "useless") for n in (300, 1000)
    ]


def problem(rows: Rows, kind: str, loss: str, alpha: float, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Confidence, losses and the rows that count: None for all, or one mask for each denominator."""
    labels, wrong = rows.labels, rows.wrong(alpha)
    if loss == "error" and kind == "prior":
        kept = subsample_to_prior(labels, TARGET, int(rng.integers(1 << 32)))
        return rows.confidence[kept], wrong[kept].astype(np.int8), None
    if loss == "interval":
        masks = np.zeros((2, labels.size), dtype=np.bool_)
        for mask, prior in zip(masks, INTERVAL, strict=True):
            mask[subsample_to_prior(labels, prior, int(rng.integers(1 << 32)))] = True
        return rows.confidence, wrong.astype(np.int8), masks
    eligible = {"error": None, "fnr": labels, "fpr": ~labels}[loss]
    counted = wrong if eligible is None else wrong & eligible
    return rows.confidence, counted.astype(np.int8), None if eligible is None else eligible[None]


def others_of(rows: Rows, kind: str, loss: str, alpha: float) -> tuple[Any, Any, Any]:
    """What `select` gets: confidence, losses and weights, None or one row for each denominator."""
    labels, weights = rows.labels, None
    if loss == "interval":
        weights = np.array([prior_weights(labels, prior) for prior in INTERVAL])
    elif loss != "error" or kind == "prior":
        weights = {"error": prior_weights(labels, TARGET), "fnr": labels, "fpr": ~labels}[loss].astype(np.float64)[
            None
        ]
    return rows.confidence, rows.wrong(alpha).astype(np.int8), weights


def calibration(world: World, rng: np.random.Generator) -> Rows:
    rows = draw(world.kind, world.n, rng)
    return rows if rows.groups is None else rows.take(one_row_per_group(rows.groups, int(rng.integers(1 << 32))))


class Others:
    """Other rows, and for each loss and alpha what they say, worked out once."""

    def __init__(self, rows: Rows, kind: str) -> None:
        self.rows, self.kind = rows, kind
        self._seen: dict[tuple[str, float], Any] = {}
        self._begins: dict[Any, Begin] = {}

    def seen(self, loss: str, alpha: float) -> tuple[Any, Floats, Any]:
        """The argument `select`, its grid from strict to loose, and the counts there."""
        key = loss, alpha if self.rows.doubt is not None else 0.0
        if key not in self._seen:
            select = others_of(self.rows, self.kind, loss, alpha)
            found = select_rows(select, 1 if select[2] is None else len(select[2]))
            grid = grid_of_sorted(found.confidence)[::-1]
            self._seen[key] = select, grid, found.counts(found.cuts(grid))
        return cast(tuple[Any, Floats, Any], self._seen[key])

    def begin(self, loss: str, alpha: float, delta: float, tests: Any) -> Begin:
        totals = tuple(test.total for test in tests)
        key = loss, alpha, delta, totals
        if key not in self._begins:
            self._begins[key] = choose_begin(totals, alpha, delta, self.seen(loss, alpha)[2])
        return self._begins[key]


def certify(
    world: World, rows: Rows, others: Others, rng: np.random.Generator, check: bool
) -> Iterator[tuple[Cell, float]]:
    """The threshold of each cell of the world for these rows, nan where there is none."""
    # Where the answers do not depend on alpha, one sorting serves all alphas.
    shared = [ALPHAS] if rows.doubt is None else [(alpha,) for alpha in ALPHAS]
    for loss, alphas in product(world.losses, shared):
        confidence, losses, eligible = problem(rows, world.kind, loss, alphas[0], rng)
        ordered = sort_rows(confidence, losses, None if eligible is None else list(eligible))
        select, grid, _ = others.seen(loss, alphas[0])
        tests, cuts = ordered.counts(ordered.cuts(grid)), ordered.own_cuts()
        own = ordered.counts(cuts) if "own" in world.modes else []
        for alpha, delta, mode in product(alphas, DELTAS, world.modes):
            if mode == "select":
                walk = walk_from(tests, others.begin(loss, alpha, delta, tests), alpha, delta)
            else:
                walk = loosest(walks(own if mode == "own" else tests, alpha, delta))
            threshold = np.nan
            if walk.passed:
                threshold = ordered.threshold(int(cuts[walk.last])) if mode == "own" else float(grid[walk.last])
            if check:
                given = {"select": {"select": select}, "fixed": {"grid": grid}, "own": {}}[mode]
                found = fit_risk_control(confidence, losses, alpha, delta, eligible, **given).threshold
                if not np.array_equal(threshold, np.nan if found is None else found, equal_nan=True):
                    raise SystemExit(f"{world} {loss} {mode}: {threshold} here, {found} by fit_risk_control")
            yield Cell(world.kind, world.n, loss, mode, alpha, delta), threshold


def certify_classwise(world: World, rows: Rows, others: Rows) -> Iterator[tuple[Cell, tuple[float, float]]]:
    """The thresholds of the answers 1 and 0, nan where there is none."""
    for alpha, loss, mode in product(ALPHAS, world.losses, world.modes):
        select = (others.confidence, others.answers(alpha), others.labels) if mode == "select" else None
        both = fit_classwise_risk_control(
            rows.confidence, rows.answers(alpha), rows.labels, alpha, DELTAS[-1], CLASSWISE[loss], select=select
        )
        parts = [np.nan if part.threshold is None else part.threshold for part in (both.positive, both.negative)]
        yield Cell(world.kind, world.n, loss, mode, alpha, DELTAS[-1]), (parts[0], parts[1])


def simulate(task: tuple[World, int, int]) -> list[Outcome]:
    world, trials, seed = task
    rng = np.random.default_rng(seed)
    found: dict[Cell, list[Any]] = {}
    classwise = set(world.losses) <= set(CLASSWISE)
    for trial in range(trials):
        if trial % REPEATS == 0:
            others = Others(draw(world.kind, world.n, rng), world.kind)
        rows = calibration(world, rng)
        tried: Iterator[tuple[Cell, Any]] = (
            certify_classwise(world, rows, others.rows)
            if classwise
            else certify(world, rows, others, rng, trial % REPEATS == 0)
        )
        for cell, threshold in tried:
            found.setdefault(cell, []).append(threshold)
    outcomes = []
    for cell, thresholds in found.items():
        columns = np.array(thresholds).reshape(trials, -1).T
        risk = true_risk(cell.kind, cell.loss, cell.alpha, *columns)
        certified = ~np.isnan(columns).all(axis=0)
        outcomes.append(Outcome(cell, trials, int(certified.sum()), int((certified & (risk > cell.alpha)).sum())))
    return outcomes


def rows_for_groups(trials: int, alpha: float = 0.1, delta: float = 0.1) -> float:
    """Share of false certificates where each row of a group counts."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(trials):
        rows = draw("120x6", 120, rng)
        select = others_of(draw("120x6", 120, rng), "120x6", "error", alpha)
        false += fit_risk_control(rows.confidence, rows.wrong(alpha), alpha, delta, select=select).feasible
    return false / trials


def is_easy(cell: Cell) -> bool:
    easy = cell.kind in ("informative", "floor 0.0", "floor 0.005") and cell.n >= 1000
    return easy and (cell.loss, cell.alpha) == ("error", 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000, help="calibrations a cell")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="one process, and where its time goes; no record")
    arguments = parser.parse_args()
    tasks = [(world, arguments.trials, i) for i, world in enumerate(worlds())]
    if arguments.profile:
        profile = cProfile.Profile()
        for task in tasks:
            begin = time.perf_counter()
            profile.runcall(simulate, task)
            print(f"{time.perf_counter() - begin:7.2f} s  {task[0]}", flush=True)
        profile.print_stats("tottime")
        return
    begin = time.perf_counter()
    # The slow ones first, so that no worker is left alone with one at the end.
    tasks.sort(key=lambda task: -task[0].n)
    with ProcessPoolExecutor(arguments.workers) as pool:
        outcomes = [outcome for found in pool.map(simulate, tasks) for outcome in found]
    outcomes.sort(key=lambda o: (o.cell.kind, o.cell.loss, o.cell.mode, o.cell.n, o.cell.alpha, o.cell.delta))
    print(f"{'rows':13} {'loss':8} {'mode':6} {'n':>5} alpha delta  certified  false certificates")
    for o in outcomes:
        c = o.cell
        print(
            f"{c.kind:13} {c.loss:8} {c.mode:6} {c.n:5} {c.alpha:5} {c.delta:5} "
            f"{o.certified / o.trials:10.4f} {o.false / o.trials:10.4f}"
        )
    broken = [o for o in outcomes if o.p_value * len(outcomes) < 0.01]
    rarest = min(o.certified / o.trials for o in outcomes if is_easy(o.cell))
    as_rows = rows_for_groups(max(arguments.trials // 10, 1))
    worst = {
        (mode, delta): max(o.false / o.trials for o in outcomes if (o.cell.mode, o.cell.delta) == (mode, delta))
        for mode, delta in product(("select", "fixed", "own"), DELTAS)
    }
    if broken or rarest < 0.9:
        raise SystemExit(f"the promise does not hold, or certificates are rare ({rarest:.3f}): {broken}")
    record(
        "risk_validity",
        f"{len(outcomes)} cells of {arguments.trials:,} calibrations: largest share of false certificates "
        + ", ".join(f"{share:.4f} ({mode}) where {delta:g} is promised" for (mode, delta), share in worst.items())
        + f", none above it by an exact test at .01 with Bonferroni; certified where easy in {rarest:.3f} of them; "
        f"rows in place of groups (120x6, error, alpha .1, delta .1) {as_rows:.3f} "
        f"({time.perf_counter() - begin:.0f} s, {arguments.workers} processes)",
        packages=("numpy", "scipy"),
    )


if __name__ == "__main__":
    main()
