"""The rules that risk control could have used, and what each of them promises, keeps and answers.

    python benchmarks/selective_references.py [--trials 300] [--workers 1]

Rows are two Gaussians at -1.2 and 1.2 with |x| as confidence. A floor of confident errors is the share of labels that
are turned over, whatever the confidence. Cells: floors 0 .002 .005 .01 .02, n 300 1000 3000, alpha .02 .05 .1,
delta .1; and without a floor n 1000 and 4000. Each rule that looks at other rows (ours with `select`, the thresholds
of MAPIE and Bonferroni, MAPIE's learned order) sees the same n others. At n 300 there are three times the trials.

Mean true error among the answered rows (0 where none is answered), their mean share, and the share of calibrations
whose true error among the answered is above alpha, which delta bounds; the oracle is the largest share whose true
error is at most alpha. A rule keeps its promise if no cell speaks against it (exact binomial test, .01 over the
cells). It fails where ours breaks its promise; where ours answers less than another rule that keeps its own in every
cell, by more than .01; and where it answers less than .9 of the oracle's at n 3000, alpha .05 and .1, floors to .01.

In the cells of n 1000 and 4000 SCRC is there too, at an acceptance of .7. It answers with sets, and a set of both
labels is an abstention: what it bounds is that the true label is not in the set, of the accepted rows; how often that
is above alpha is the last column. Then the reference cell of its paper: alpha .1, acceptance .7, 5000 calibration
rows, 100 repeats. MAPIE's Learn-then-Test is there where it is installed (pip install mapie), as it is recommended:
the default correction (Bonferroni-Holm), the fixed sequence, and the fixed sequence with a learned order.
"""

from __future__ import annotations

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from results import record
from scipy.special import ndtr
from scipy.stats import binomtest
from selective_rules import (
    Floats,
    conformal_risk_control,
    exact_bonferroni,
    mapie,
    one_walk,
    scrc_i_v1,
    scrc_i_v2,
    scrc_t,
    sgr,
)

from natix_hf.calibration import fit_risk_control, make_grid

MU, DELTA, XI = 1.2, 0.1, 0.7
OURS, WITHOUT = "exact, select (ours)", "exact, no select (ours)"
FWER = ("bonferroni_holm", "fixed_sequence", "split_fixed_sequence")
FLOORS, SIZES, ALPHAS = (0.0, 0.002, 0.005, 0.01, 0.02), (300, 1000, 3000), (0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Cell:
    n: int
    alpha: float
    floor: float
    sets: bool = False

    def __str__(self) -> str:
        return f"n {self.n}, alpha {self.alpha}, floor {self.floor}"


class Kept(NamedTuple):
    """Calibrations whose true error is above alpha, all of them, and the mean share that is answered."""

    broken: int
    trials: int
    answered: float


def tails(t: Any) -> tuple[Any, Any]:
    """Of all rows, those on the wrong and on the right side with |x| > t."""
    return ndtr(-t - MU), ndtr(MU - t)


def answers(cut: float | None, floor: float) -> tuple[float, float, float]:
    """True error among the answered, their share, and the risk of the sets, which are single labels here."""
    if cut is None:
        return 0.0, 0.0, 0.0
    wrong, right = tails(max(cut, 0.0))
    error = floor + (1 - 2 * floor) * wrong / (wrong + right)
    return float(error), float(wrong + right), float(error)


def set_answers(cut: float, score_cut: float) -> tuple[float, float, float]:
    """The same three of the sets {label: score >= score_cut}, without a floor."""
    wrong, right = tails(max(cut, 0.0))
    if score_cut <= 0:  # both labels, always
        return 0.0, 0.0, 0.0
    single = max(cut, abs(math.log(score_cut / (1 - score_cut))) / (2 * MU))
    wrong_single, right_single = tails(single)
    missed = wrong_single if score_cut <= 0.5 else wrong + right - right_single  # above .5 some sets are empty
    answered = wrong_single + right_single
    return float(wrong_single / answered), float(answered), float(missed / (wrong + right))


def oracle(alpha: float, floor: float) -> float:
    """Largest share of answers whose true error is at most alpha. The error falls as the cut rises."""
    low, high = 0.0, 12.0
    if answers(low, floor)[0] <= alpha:
        return 1.0
    if floor >= alpha:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if answers(middle, floor)[0] <= alpha else (middle, high)
    return answers(high, floor)[1]


def draw(rng: np.random.Generator, n: int, floor: float = 0.0) -> tuple[Floats, Any, Floats]:
    """Confidence, losses and, without a floor, the score of the true label."""
    signed = rng.normal(size=n) + MU  # x, turned so that the true label is positive
    losses = (signed <= 0) ^ (rng.random(n) < floor)
    return np.abs(signed), losses.astype(np.int8), 1 / (1 + np.exp(-2 * MU * signed))


def compare(task: tuple[Cell, int]) -> tuple[Cell, dict[str, Kept], str]:
    """What each rule keeps and answers in a cell, and a table of it."""
    cell, trials = task
    n, alpha, floor = cell.n, cell.alpha, cell.floor
    rng = np.random.default_rng([n, round(1000 * alpha), round(1000 * floor), cell.sets])
    methods = FWER if find_spec("mapie") else ()
    found: dict[str, list[tuple[float, float, float]]] = {}
    for trial in range(trials):
        select = draw(rng, n, floor)[:2]
        theirs = [mapie(method, select, alpha, DELTA, check=trial == 0) for method in methods]
        confidence, losses, scores = draw(rng, n, floor)
        cuts = {
            OURS: fit_risk_control(confidence, losses, alpha, DELTA, select=select).threshold,
            WITHOUT: fit_risk_control(confidence, losses, alpha, DELTA).threshold,
            "one walk": one_walk(confidence, losses, alpha, DELTA, make_grid(select[0])),
            "exact Bonferroni, 20": exact_bonferroni(confidence, losses, alpha, DELTA, select[0]),
            "SGR": sgr(confidence, losses, alpha, DELTA),
        }
        cuts |= {f"MAPIE ({rule.method})": rule.threshold(confidence, losses) for rule in theirs}
        for name, cut in cuts.items():
            found.setdefault(name, []).append(answers(cut, floor))
        if cell.sets:
            on_average = conformal_risk_control(confidence, losses, alpha)
            found.setdefault("conformal risk control", []).append(answers(on_average, floor))
            sets = {
                "SCRC-T": scrc_t(confidence, scores, draw(rng, n)[0], alpha, XI),
                "SCRC-I v1 (not verified)": scrc_i_v1(confidence, scores, alpha, XI, DELTA),
                "SCRC-I v2 (not verified)": scrc_i_v2(confidence, scores, alpha, XI, DELTA),
            }
            for name, (cut, score_cut) in sets.items():
                found.setdefault(name, []).append(set_answers(cut, score_cut))
    lines = [f"{cell}, oracle {oracle(alpha, floor):.3f}", f"{'':28} error  answered  error > alpha  set risk > alpha"]
    kept = {}
    for name, rows in found.items():
        error, answered, risk = np.array(rows).T
        above = error > alpha
        lines.append(
            f"{name:28} {error.mean():.4f} {answered.mean():9.4f} {above.mean():14.4f} {(risk > alpha).mean():17.4f}"
        )
        kept[name] = Kept(int(above.sum()), trials, float(answered.mean()))
    return cell, kept, "\n".join(lines)


def reference_cell() -> str:
    risks = []
    for delta in (0.01, 0.05, 0.1):
        rng = np.random.default_rng(0)
        calibrations = [draw(rng, 5000) for _ in range(100)]
        cuts = [scrc_i_v1(confidence, scores, 0.1, XI, delta) for confidence, _, scores in calibrations]
        risks.append(f"{np.mean([set_answers(*cut)[2] for cut in cuts]):.4f}")
    return f"SCRC-I v1 (not verified) on the paper's cell {'/'.join(risks)}, published .0954/.0960/.0964"


def rules_that_hold(cells: dict[Cell, dict[str, Kept]]) -> list[str]:
    """Rules that no cell speaks against, by an exact test at .01 with Bonferroni over the cells they were tried in."""
    holds = []
    for name in dict.fromkeys(name for kept in cells.values() for name in kept):
        tried = [kept[name] for kept in cells.values() if name in kept]
        p_values = [binomtest(k.broken, k.trials, DELTA, alternative="greater").pvalue for k in tried]
        if min(p_values) * len(tried) >= 0.01:
            holds.append(name)
    return holds


def faults(cells: dict[Cell, dict[str, Kept]], valid: list[str]) -> list[str]:
    found = [f"{name} breaks its promise" for name in (OURS, WITHOUT) if name not in valid]
    for cell, kept in cells.items():
        ours, best = kept[OURS].answered, oracle(cell.alpha, cell.floor)
        found += [
            f"{cell}: ours answers {ours:.3f}, {name} {kept[name].answered:.3f}"
            for name in valid
            if name in kept and kept[name].answered > ours + 0.01
        ]
        if cell.n == 3000 and cell.alpha >= 0.05 and cell.floor <= 0.01 and ours < 0.9 * best:
            found.append(f"{cell}: ours answers {ours:.3f}, less than .9 of the oracle's {best:.3f}")
    return found


def table(cells: dict[Cell, dict[str, Kept]], valid: list[str]) -> str:
    """Ours with and without `select`, the best of the other rules that keep their promise, and the oracle."""
    lines = ["| floor | n | alpha | ours, select | ours | best other valid rule | oracle |", "|---" * 7 + "|"]
    for cell, kept in cells.items():
        others = {name: kept[name].answered for name in valid if name in kept and name not in (OURS, WITHOUT)}
        most = max(others, key=lambda name: others[name])
        ours = [f"{kept[name].broken / kept[name].trials:.2f}, {kept[name].answered:.3f}" for name in (OURS, WITHOUT)]
        lines.append(
            f"| {cell.floor} | {cell.n} | {cell.alpha} | {ours[0]} | {ours[1]} | {others[most]:.3f} ({most}) | "
            f"{oracle(cell.alpha, cell.floor):.3f} |"
        )
    return "\n".join(lines)


def trials_in(cell: Cell, trials: int) -> int:
    """Where rows are few, whether there is a certificate at all is the toss of a coin."""
    return trials * 3 if cell.n < 1000 else trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    tasks = [Cell(n, alpha, 0.0, True) for n, alpha in product((1000, 4000), ALPHAS)]
    grid = [Cell(n, alpha, floor) for floor, n, alpha in product(FLOORS, SIZES, ALPHAS)]
    tasks += [cell for cell in grid if (cell.n, cell.floor) != (1000, 0.0)]
    cells = {}
    with ProcessPoolExecutor(arguments.workers) as pool:
        for cell, kept, of_cell in pool.map(compare, [(cell, trials_in(cell, arguments.trials)) for cell in tasks]):
            print(of_cell, flush=True)
            cells[cell] = kept
    valid = rules_that_hold(cells)
    if found := faults(cells, valid):
        raise SystemExit("\n".join(found))
    print(table(cells, valid))
    least, margins = 1.0, []
    for cell, kept in cells.items():
        others = [kept[name].answered for name in valid if name in kept and name not in (OURS, WITHOUT)]
        margins.append(kept[OURS].answered - max(others))
        if cell.n >= 3000 and cell.alpha >= 0.05 and cell.floor <= 0.01:
            least = min(least, kept[OURS].answered / oracle(cell.alpha, cell.floor))
    broken = [max(kept[name].broken / kept[name].trials for kept in cells.values()) for name in (OURS, WITHOUT)]
    record(
        "selective_references",
        f"{len(cells)} cells of {arguments.trials} calibrations (n 300: three times as many); valid in all: "
        f"{', '.join(valid)}; promises broken by ours at most {broken[0]:.3f} with select, {broken[1]:.3f} without; "
        f"ours with select answers more than the best other valid rule by {min(margins):+.3f} to {max(margins):+.3f}, "
        f"mean {np.mean(margins):+.3f}, and at least {least:.3f} of the oracle's at n >= 3000, alpha >= .05, floors "
        f"to .01; {reference_cell()} ({time.perf_counter() - begin:.0f} s, {arguments.workers} processes)",
        packages=("numpy", "scipy"),
    )


if __name__ == "__main__":
    main()
