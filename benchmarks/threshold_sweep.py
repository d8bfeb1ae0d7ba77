"""`select_threshold`, exact, against scikit-learn's MCC on a grid of 5000 thresholds, and against one `np.argsort`.

    python benchmarks/threshold_sweep.py [--largest 7]

n = 10^3 to 10^7 scores in float64, 18 % positive. The grid's time is that of 50 of its points, spread over the range
of the scores, times 100: all 5000 would take hours. The three alternate in rounds; medians. scikit-learn checks the
outcome: its MCC at our threshold must be ours, no grid point may be above it, and at n = 1000 no midpoint at all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from results import record
from sklearn.metrics import matthews_corrcoef
from timing import median_ratio

from natix_hf.metrics import select_threshold

GRID, TIMED, ROUNDS = 5000, 50, 5


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def measure(n: int) -> dict[str, float]:
    rng = np.random.default_rng(n)
    labels = (rng.random(n) < 0.18).astype(np.int64)
    scores = rng.normal(size=n) + 1.5 * labels

    def mcc_at(threshold: float) -> float:
        return float(matthews_corrcoef(labels, scores > threshold))

    grid = rng.permutation(np.linspace(scores.min(), scores.max(), TIMED + 2)[1:-1])
    times: dict[str, list[float]] = {"ours": [], "argsort": [], "grid": []}
    best_of_grid = -1.0
    select_threshold(scores, labels)  # the first call touches fresh memory
    for points in np.array_split(grid, ROUNDS):
        took, _ = timed(lambda: np.argsort(scores))
        times["argsort"].append(took)
        took, ours = timed(lambda: select_threshold(scores, labels))
        times["ours"].append(took)
        took, values = timed(lambda points=points: [mcc_at(t) for t in points])  # type: ignore[misc]
        times["grid"].append(took / len(points) * GRID)
        best_of_grid = max(best_of_grid, *values)
    if abs(mcc_at(ours.threshold) - ours.value) > 1e-9 or best_of_grid > ours.value + 1e-9:
        raise SystemExit(f"n {n}: {ours} is not what scikit-learn finds, {mcc_at(ours.threshold)}, {best_of_grid}")
    if n <= 1000:
        ordered = np.unique(scores)
        exhaustive = max(mcc_at(t) for t in (ordered[1:] + ordered[:-1]) / 2)
        if abs(exhaustive - ours.value) > 1e-9:
            raise SystemExit(f"n {n}: the best of all midpoints is {exhaustive}, ours {ours.value}")
    return {name: median(took) for name, took in times.items()} | {
        "faster": median_ratio(times["grid"], times["ours"]),
        "sorts": median_ratio(times["ours"], times["argsort"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=7, help="power of ten of the largest n")
    for power in range(3, parser.parse_args().largest + 1):
        found = measure(10**power)
        record(
            f"threshold_sweep n=10^{power}",
            f"{found['faster']:,.0f} times faster than scikit-learn's MCC on {GRID} points "
            f"(ours, exact, {found['ours'] * 1000:.3g} ms; grid {found['grid']:.3g} s, {TIMED} points timed); "
            f"{found['sorts']:.2f} times one np.argsort",
            packages=("numpy", "scikit-learn"),
        )


if __name__ == "__main__":
    main()
