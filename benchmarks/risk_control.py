"""`fit_risk_control` against one `np.argsort`, and against MAPIE's Learn-then-Test where it is installed.

    python benchmarks/risk_control.py [--largest 7]

n = 10^3 to 10^7 rows of two Gaussians, alpha .05, delta .1, the rows' own thresholds; the two alternate in rounds,
medians. It fails where n = 10^7 takes more than 4 sorts. At 10^5 MAPIE's `BinaryClassificationController` gets 100
thresholds from strict to loose in a fixed sequence, ours the same ones. Its risk is `precision` at 1 - alpha, of
labels that say whether the answer is right: a positive prediction then is an accepted row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from measure import median_ratio
from results import record
from selective_references import mapie_ltt

from natix_hf.calibration import fit_risk_control, make_grid

ALPHA, DELTA, ROUNDS, MOST_SORTS = 0.05, 0.1, 5, 4.0


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def draw(n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(n)
    x = rng.normal(size=n) + 1.2
    return np.abs(x), (x <= 0).astype(np.int8)


def measure(n: int) -> dict[str, float]:
    confidence, losses = draw(n)
    times: dict[str, list[float]] = {"ours": [], "argsort": []}
    fit_risk_control(confidence, losses, ALPHA, DELTA)  # the first call touches fresh memory
    for _ in range(ROUNDS):
        times["argsort"].append(timed(lambda: np.argsort(confidence))[0])
        took, found = timed(lambda: fit_risk_control(confidence, losses, ALPHA, DELTA))
        times["ours"].append(took)
    return {name: median(took) for name, took in times.items()} | {
        "sorts": median_ratio(times["ours"], times["argsort"]),
        "coverage": found.coverage or 0.0,
    }


def against_mapie(n: int = 10**5) -> None:
    if find_spec("mapie") is None:
        print("MAPIE is not installed: no comparison with it (pip install mapie)")
        return
    confidence, losses = draw(n)
    # Without the strictest two: MAPIE starts at the first threshold, and a few accepted rows certify nothing.
    grid = make_grid(draw(n // 10)[0], 102)[:-2]
    times: dict[str, list[float]] = {"ours": [], "mapie": []}
    for _ in range(ROUNDS):
        took, theirs = timed(lambda: mapie_ltt(confidence, losses, grid, ALPHA, DELTA, "fixed_sequence"))
        times["mapie"].append(took)
        took, ours = timed(lambda: fit_risk_control(confidence, losses, ALPHA, DELTA, grid=grid))
        times["ours"].append(took)
    theirs_covers = 0.0 if theirs is None else (confidence >= theirs).mean()
    faster = median_ratio(times["mapie"], times["ours"])
    took_ours, took_mapie = (median(times[side]) * 1000 for side in ("ours", "mapie"))
    record(
        "risk_control against MAPIE n=10^5, 100 thresholds",
        f"{faster:.1f} times faster (ours {took_ours:.3g} ms, coverage {ours.coverage or 0:.4f}; MAPIE "
        f"{version('mapie')} {took_mapie:.3g} ms, coverage {theirs_covers:.4f})",
        packages=("numpy", "scipy"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=7, help="power of ten of the largest n")
    for power in range(3, parser.parse_args().largest + 1):
        found = measure(10**power)
        if power == 7 and found["sorts"] > MOST_SORTS:
            raise SystemExit(f"n=10^7 takes {found['sorts']:.2f} sorts, more than {MOST_SORTS:g}")
        record(
            f"risk_control n=10^{power}",
            f"{found['ours'] * 1000:.3g} ms, {found['sorts']:.2f} times one np.argsort "
            f"(coverage {found['coverage']:.4f})",
            packages=("numpy", "scipy"),
        )
    against_mapie()


if __name__ == "__main__":
    main()
