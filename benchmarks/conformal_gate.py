"""Gates of three kinds, certified alike: the margin, `correctness` and `conformal` (conformal risk training).

    python benchmarks/conformal_gate.py WORLD ... [--draws 10]             worlds: symmetric, hint, blind
    python benchmarks/conformal_gate.py --run RUN --recipe NAME --source FOLDER [--divisions 10]

Every learned gate is trained by the code of phase 3 on rows that stand for val_select, with cross-fitted confidences
there: `correctness` with the defaults, `conformal` at half of alpha with batches of 512, a learning rate of 3e-3 and
80 epochs, as docs/phase3.md says, both with three folds to save time. Ordinary risk control then certifies an FNR of
at most alpha among the accepted, delta .1, on one row of each group of other rows (`fit_risk_control` with `select`).
Coverage, FPR and FNR among the accepted are those on fresh rows. `phase 3` is the gate that phase 3 keeps of margin
and `conformal`. Differences are conformal minus the other, as mean and 95% t-interval over the draws; FPR over those
in which both are certified. Without a certificate nothing is accepted, and the coverage is 0. `uncertified` is the
same comparison on the fresh rows themselves, at the loosest cut whose corrected FNR is alpha there: what the gates
could do if nothing had to be proven.

With a run, its answers on val_select, val_calib and test are computed, pooled and divided anew by group, into parts of
the same sizes. The divisions share rows, so their intervals are too narrow. The worlds draw 1,200, 2,000 and 20,000
rows with 8 features, half of them positive, the classifier's score one of them:

symmetric   two Gaussians at -1 and 1; nothing beside the score says anything
hint        the same; a feature is 1.5 higher where the answer is wrong
blind       15% of the rows have the score of a negative whatever they are; a feature is 2 higher there

It fails if an FNR on fresh rows is above alpha more often than delta and chance allow (exact tests).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results import record
from scipy.stats import binomtest
from scipy.stats import t as student

from natix_hf import Run
from natix_hf.calibration import fit_risk_control, one_row_per_group
from natix_hf.calibration.risk_rows import losses_for
from natix_hf.data.asked import ask
from natix_hf.data.rows import load_image_data
from natix_hf.metrics import prior_weights
from natix_hf.metrics.at_fnr import figures_at_fnr
from natix_hf.metrics.threshold import select_threshold
from natix_hf.models.gate import gate_inputs
from natix_hf.recipe import load_recipe
from natix_hf.results.answers import compute_answers
from natix_hf.results.candidate import Candidate
from natix_hf.results.gate import compare_gates, verdict
from natix_hf.trainers.gate import cross_fit, gate_targets, too_few_rows, train_gate
from natix_hf.trainers.gate_config import GateConfig

WORLDS = ("symmetric", "hint", "blind")
DELTA, LEVEL = 0.1, 0.05
SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 512, "learning_rate": 3e-3, "num_train_epochs": 80}
MARGIN, CORRECTNESS, CONFORMAL, KEPT = "margin", "correctness", "conformal", "phase 3"


@dataclass(frozen=True)
class Part:
    """Rows with their features, logits, labels and groups."""

    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def take(self, rows: np.ndarray) -> Part:
        return Part(self.features[rows], self.logits[rows], self.labels[rows], self.groups[rows])


@dataclass(frozen=True)
class Outcome:
    """What one gate does on fresh rows, certified, and at the loosest cut of the fresh rows themselves."""

    coverage: float
    fpr: float
    fnr: float
    positives: int
    misses: int
    uncertified_fpr: float
    uncertified_coverage: float


def draw(world: str, n: int, rng: np.random.Generator) -> Part:
    labels = (rng.random(n) < 0.5).astype(np.int64)
    score = rng.normal(size=n) + np.where(labels == 1, 1.0, -1.0)
    features = rng.normal(size=(n, 8))
    if world == "blind":
        blind = rng.random(n) < 0.15
        score = np.where(blind, rng.normal(size=n) - 1, score)
        features[:, 0] += 2 * blind
    if world == "hint":
        features[:, 0] += 1.5 * ((score > 0) != (labels == 1))
    columns = np.column_stack([features, score]).astype(np.float32)
    return Part(columns, 2 * score, labels, np.arange(n).astype(str))


def worlds(world: str, draws: int) -> Iterator[tuple[Part, Part, Part, float]]:
    for seed in range(draws):
        rng = np.random.default_rng([seed, WORLDS.index(world)])
        select, calib, fresh = (draw(world, n, rng) for n in (1200, 2000, 20_000))
        yield select, calib, fresh, 0.0


def divisions(run: Path, recipe: str, source: str, number: int) -> Iterator[tuple[Part, Part, Part, float]]:
    decision = Run(run).results.decision
    if decision is None:
        raise SystemExit(f"{run} has no decision of phase 2: run the recipe with phases 1 and 2")
    config = load_recipe(recipe, [f"data.source={source}"]).data
    data, champion = load_image_data(config), Candidate(run / decision.champion)
    parts = []
    for role in ("val_select", "val_calib", "test"):
        table, features = compute_answers(champion, ask(data.role(role)))
        parts.append(Part(features, table.logits, table.labels, np.asarray(table.groups).astype(str)))
    pool = Part(*(np.concatenate([getattr(part, name) for part in parts]) for name in Part.__annotations__))
    sizes = np.cumsum([len(part.labels) for part in parts])
    _, group = np.unique(pool.groups, return_inverse=True)
    for seed in range(number):
        rank = np.random.default_rng(seed).permutation(group.max() + 1)[group]
        rows_before = np.append(0, np.cumsum(np.bincount(rank)))[rank]
        of = np.searchsorted(sizes, rows_before, side="right")
        select, calib, fresh = (pool.take(np.flatnonzero(of == part)) for part in range(3))
        cut = select_threshold(select.logits, select.labels, target_prior=config.target_prior).threshold
        yield select, calib, fresh, cut


def outcomes(parts: tuple[Part, Part, Part], cut: float, alpha: float, seed: int) -> tuple[dict[str, Outcome], str]:
    select = parts[0]
    inputs = [gate_inputs(part.features, part.logits, cut) for part in parts]
    wrong = ((select.logits > cut) != (select.labels == 1)).astype(np.int64)
    margins = [np.abs(part.logits - cut) for part in parts]
    found, reason = {MARGIN: certified(parts, margins, cut, alpha, seed)}, ""
    for method in (CORRECTNESS, CONFORMAL):
        config = GateConfig(n_resamples=500, folds=3)
        if method == CONFORMAL:
            config = GateConfig(method="conformal", n_resamples=500, folds=3, alpha=alpha / 2, **SETTINGS)
        reason = too_few_rows(select.labels, wrong, select.groups, config)
        if reason:
            found[method] = found[KEPT] = found[MARGIN]
            continue
        targets = gate_targets(method, select.logits, select.labels, cut)
        crossed = cross_fit(inputs[0], targets, wrong, select.groups, config)
        gate = train_gate(inputs[0], targets, config)
        confidences = [crossed, *(gate.confidence(given) for given in inputs[1:])]
        found[method] = certified(parts, confidences, cut, alpha, seed)
        if method == CONFORMAL:
            pair, weights = (margins[0], crossed), prior_weights(select.labels, None)
            wins, reason = verdict(compare_gates(*pair, wrong, select.labels, select.groups, weights, config), config)
            found[KEPT] = found[CONFORMAL if wins else MARGIN]
    return found, reason


def certified(
    parts: tuple[Part, Part, Part], confidences: list[np.ndarray], cut: float, alpha: float, seed: int
) -> Outcome:
    answers = [part.logits > cut for part in parts]
    select, calib, fresh = parts
    kept = one_row_per_group(calib.groups, seed)
    losses, eligible = losses_for("fnr", answers[1][kept].astype(np.int8), calib.labels[kept])
    seen, counted = losses_for("fnr", answers[0].astype(np.int8), select.labels)
    found = fit_risk_control(
        confidences[1][kept], losses, alpha, DELTA, eligible, select=(confidences[0], seen, counted.astype(np.float64))
    )
    accepted = confidences[2] > (np.inf if found.threshold is None else found.threshold)
    yes, no = accepted & (fresh.labels == 1), accepted & (fresh.labels == 0)
    free = figures_at_fnr(confidences[2], answers[2] != (fresh.labels == 1), fresh.labels, alpha)
    positives, misses = int(yes.sum()), int((yes & ~answers[2]).sum())
    return Outcome(
        float(accepted.mean()),
        float(answers[2][no].mean()) if no.any() else np.nan,
        misses / positives if positives else np.nan,
        positives,
        misses,
        float(free.fpr[0]),
        1 - float(free.abstained[0]),
    )


def interval(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    if values.size < 2:
        return "none"
    half = student.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    return f"{values.mean():+.3f} [{values.mean() - half:+.3f}, {values.mean() + half:+.3f}]"


def told(name: str, all_found: list[dict[str, Outcome]], kept: int, alpha: float) -> str:
    columns = {
        method: {
            field: np.array([getattr(found[method], field) for found in all_found])
            for field in Outcome.__annotations__
        }
        for method in (MARGIN, CORRECTNESS, CONFORMAL, KEPT)
    }
    said = []
    for method, of in columns.items():
        with np.errstate(invalid="ignore"):
            means = {
                field: np.nanmean(values) if np.isfinite(values).any() else np.nan for field, values in of.items()
            }
        broken = sum(above(int(m), int(p), alpha) for m, p in zip(of["misses"], of["positives"], strict=True))
        if binomtest(broken, len(all_found), DELTA + LEVEL, alternative="greater").pvalue < 0.01:
            raise SystemExit(f"{name}, {method}: the FNR is above {alpha:g} in {broken} of {len(all_found)}")
        said.append(
            f"{method}: certified in {int((of['coverage'] > 0).sum())}, coverage {means['coverage']:.3f}, FPR "
            f"{means['fpr']:.3f}, FNR {means['fnr']:.3f} (above alpha by more than chance in {broken}); uncertified "
            f"coverage {means['uncertified_coverage']:.3f}, FPR {means['uncertified_fpr']:.3f}"
        )
    for other in (MARGIN, CORRECTNESS):
        of = {field: columns[CONFORMAL][field] - columns[other][field] for field in Outcome.__annotations__}
        said.append(
            f"conformal minus {other}: coverage {interval(of['coverage'])}, FPR {interval(of['fpr'])}; uncertified "
            f"coverage {interval(of['uncertified_coverage'])}, FPR {interval(of['uncertified_fpr'])}"
        )
    return "; ".join([f"alpha {alpha:g}, phase 3 keeps conformal in {kept} of {len(all_found)}", *said])


def above(misses: int, positives: int, alpha: float) -> bool:
    return bool(positives and binomtest(misses, positives, alpha, alternative="greater").pvalue < LEVEL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", help=", ".join(WORLDS))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--run", type=Path, help="a run with phases 1 and 2")
    parser.add_argument("--recipe", default="fashion_shirt")
    parser.add_argument("--source", help="the photographs of the recipe")
    parser.add_argument("--divisions", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.05)
    arguments = parser.parse_args()
    if not {*arguments.worlds} <= {*WORLDS}:
        parser.error(f"the worlds are {', '.join(WORLDS)}")
    given = {world: worlds(world, arguments.draws) for world in arguments.worlds}
    if arguments.run:
        given[arguments.recipe] = divisions(arguments.run, arguments.recipe, arguments.source, arguments.divisions)
    for name, drawn in given.items():
        all_found, kept = [], 0
        for seed, (*parts, cut) in enumerate(drawn):
            found, reason = outcomes((parts[0], parts[1], parts[2]), cut, arguments.alpha, seed)
            kept += not reason.startswith("the margin stays")
            all_found.append(found)
            print(f"{name} {seed}: {reason}", flush=True)
            for method, of in found.items():
                print(f"    {method:11} coverage {of.coverage:.3f}, FPR {of.fpr:.3f}, FNR {of.fnr:.3f}", flush=True)
        record(
            f"conformal_gate {name}, {len(all_found)} draws"
            if name in WORLDS
            else f"conformal_gate {name}, {len(all_found)} divisions",
            told(name, all_found, kept, arguments.alpha),
        )


if __name__ == "__main__":
    main()
