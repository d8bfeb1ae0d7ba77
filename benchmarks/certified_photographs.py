"""How often the error of answers to real photographs is certified, and whether the promise is kept on test.

    natix-hf run fashion_shirt data.source=FOLDER phase1.seed=0
    python benchmarks/certified_photographs.py RUN [--source FOLDER] [--divisions 20] [--plot FILE]

The stored answers of a run on val_select and val_calib are pooled and divided anew, by group and with a seed, into
parts of the same sizes. On the first part the decision threshold is fitted, and it is the `select` of risk control;
one row of each group of the second part certifies an error of .05 and of .1, delta .1. Before: one walk from the
strictest threshold that could pass without an error, as risk control used to be. After: `fit_risk_control` with
`select`, and without. Of each: the divisions with a certificate, and with one of a coverage of .1 or more; the mean
coverage (0 without); the error on test, and how many divisions an exact test at .05 calls above the promise.

The divisions share one test split and its luck, so the same is done with that split in the pool, and drawn anew as
well. With `--source` two classifiers on bare pixels are fitted to the recipe's train rows too: they are wrong more
often among the answers that they are most confident of. The epochs of the run were chosen on its val_select, which
flatters before and after alike. It fails where less is certified after than before (coverage by over .01), and where
errors on a test part that is drawn anew are above the promise more often than delta and chance allow (exact test at
.01).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from results import record
from scipy.stats import binomtest
from selective_rules import one_walk

from natix_hf import Run
from natix_hf.calibration import fit_risk_control, one_row_per_group, subsample_to_prior
from natix_hf.calibration.grid import make_grid
from natix_hf.data.rows import Rows, load_image_data
from natix_hf.metrics import prior_weights
from natix_hf.metrics.threshold import select_threshold
from natix_hf.recipe import load_recipe
from natix_hf.results.candidate import Candidate
from natix_hf.results.logits import read_logits
from natix_hf.runs.graph import PHASES

ALPHAS, DELTA = (0.05, 0.1), 0.1
BEFORE, AFTER, WITHOUT = "before, one walk", "after, select", "after, no select"
OFFICIAL, DRAWN = "test as it is", "test drawn anew"
LEVEL, WIDE = 0.05, 0.1


@dataclass(frozen=True)
class Answers:
    """Logits, labels and groups of val_select, val_calib and test, in this order, and the sizes of the three."""

    logits: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    sizes: tuple[int, int, int]
    prior: float | None


@dataclass(frozen=True)
class Certified:
    """The outcome of one division: coverage on its calibration rows and on test, and accepted and wrong test rows."""

    coverage: float
    test_coverage: float
    accepted: int
    wrong: int

    @property
    def test_risk(self) -> float:
        return self.wrong / self.accepted if self.accepted else 0.0

    def broken(self, alpha: float) -> bool:
        """The error on test is above alpha by more than chance."""
        return bool(
            self.accepted and binomtest(self.wrong, self.accepted, alpha, alternative="greater").pvalue < LEVEL
        )


def answers_of(run: Path) -> Answers:
    decision = Run(run).results.decision
    if decision is None:
        raise SystemExit(f"{run} has no decision of phase 2: run the recipe with phases 1, 2, 5 and 6")
    sha256 = decision.candidate_sha256
    select = decision.val_select(run / PHASES[2].folder, Candidate(run / decision.champion))
    calib, test = (
        read_logits(run / PHASES[number].folder / "logits" / f"{role}.parquet", sha256, decision.exam)
        for number, role in ((5, "val_calib"), (6, "test"))
    )
    return pooled(
        [select.logits, calib.logits, test.logits],
        [select.labels, calib.labels, test.labels],
        [select.groups, calib.groups, test.groups],
        decision.target_prior,
    )


def pooled(
    logits: list[np.ndarray], labels: list[np.ndarray], groups: list[np.ndarray], prior: float | None
) -> Answers:
    sizes = len(labels[0]), len(labels[1]), len(labels[2])
    return Answers(np.concatenate(logits), np.concatenate(labels), np.concatenate(groups), sizes, prior)


def pixels(rows: Rows) -> np.ndarray:
    """Grey values, 28 x 28 to a row."""
    return (
        np.stack([np.asarray(image.convert("L").resize((28, 28))) for image in rows.images()]).reshape(len(rows), -1)
        / 255
    )


def answers_of_pixels(source: str) -> dict[str, Answers]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    config = load_recipe("fashion_shirt", [f"data.source={source}"]).data
    data = load_image_data(config)
    rows = {role: data.role(role) for role in ("train", "val_select", "val_calib", "test")}
    inputs = {role: pixels(of_role) for role, of_role in rows.items()}
    models = {
        "pixels, perceptron": MLPClassifier((128,), early_stopping=True, random_state=0),
        "pixels, logistic": LogisticRegression(C=0.01, max_iter=1000),
    }
    found = {}
    for name, model in models.items():
        model.fit(inputs["train"], rows["train"].labels)
        yes = {role: np.clip(model.predict_proba(inputs[role])[:, 1], 1e-9, 1 - 1e-9) for role in inputs}
        parts = rows["val_select"], rows["val_calib"], rows["test"]
        found[name] = pooled(
            [np.log(yes[part.role] / (1 - yes[part.role])) for part in parts],
            [part.labels for part in parts],
            [part.groups for part in parts],
            config.target_prior,
        )
    return found


def divide(answers: Answers, seed: int, test: str) -> list[np.ndarray]:
    """Positions of three parts that share no group, with as many rows as val_select, val_calib and test, or a group's
    rest more. The test split stays the third part, or is drawn like the others."""
    pool = sum(answers.sizes) if test == DRAWN else sum(answers.sizes[:2])
    _, group = np.unique(answers.groups[:pool], return_inverse=True)
    rank = np.random.default_rng(seed).permutation(group.max() + 1)[group]
    rows_before = np.append(0, np.cumsum(np.bincount(rank)))[rank]
    part = np.searchsorted(np.cumsum(answers.sizes), rows_before, side="right")
    whole = np.append(part, np.full(len(answers.labels) - pool, 2))
    return [np.flatnonzero(whole == number) for number in range(3)]


def certify(answers: Answers, seed: int, alpha: float, test: str) -> dict[str, Certified]:
    """What each rule certifies on one division."""
    select, calib, tested = divide(answers, seed, test)
    z, y = answers.logits, answers.labels
    threshold = select_threshold(z[select], y[select], target_prior=answers.prior).threshold
    confidence, losses = np.abs(z - threshold), ((z > threshold) != y).astype(np.int8)
    kept = calib[one_row_per_group(answers.groups[calib], seed)]
    if answers.prior is not None:
        kept = kept[subsample_to_prior(y[kept], answers.prior, seed)]
    others = confidence[select], losses[select], prior_weights(y[select], answers.prior)
    mine, grid = (confidence[kept], losses[kept]), make_grid(others[0])
    cuts = {
        BEFORE: one_walk(*mine, alpha, DELTA, grid),
        AFTER: fit_risk_control(*mine, alpha, DELTA, select=others).threshold,
        WITHOUT: fit_risk_control(*mine, alpha, DELTA, grid=grid).threshold,
    }
    found = {}
    for name, cut in cuts.items():
        accepted = confidence > (np.inf if cut is None else cut)
        on_test = accepted[tested]
        found[name] = Certified(
            float(accepted[kept].mean()),
            float(on_test.mean()),
            int(on_test.sum()),
            int((on_test & (losses[tested] == 1)).sum()),
        )
    return found


def told(divisions: list[Certified], alpha: float) -> str:
    certified = [one for one in divisions if one.coverage]
    covered = float(np.mean([one.coverage for one in divisions]))
    if not certified:
        return f"certified in none of {len(divisions)}"
    risks = [one.test_risk for one in certified]
    above = sum(one.broken(alpha) for one in certified)
    wide = sum(one.coverage >= WIDE for one in divisions)
    return (
        f"certified in {len(certified)} of {len(divisions)} ({wide} at a coverage of {WIDE:g} or more), coverage "
        f"{covered:.3f}, on test {np.mean([one.test_coverage for one in certified]):.3f} at an error of "
        f"{np.mean(risks):.4f} (largest {max(risks):.4f}, above the promise by more than chance in {above})"
    )


def plot(path: Path, name: str, found: dict[tuple[str, float], dict[str, list[Certified]]]) -> None:
    """Coverage and error on test of each division, before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found), 6), dpi=80, layout="constrained")
    panels = figure.subplots(2, len(found), squeeze=False)
    for column, ((test, alpha), rules) in enumerate(found.items()):
        above, below = panels[0][column], panels[1][column]
        for (rule, divisions), marker in zip(rules.items(), "ox+", strict=True):
            numbers = np.arange(1, len(divisions) + 1)
            above.plot(numbers, [one.coverage for one in divisions], marker, label=rule)
            risks = [one.test_risk if one.accepted else np.nan for one in divisions]
            below.plot(numbers, risks, marker)
        below.axhline(alpha, color="k", lw=1)
        above.set(title=f"{name}, {test}, alpha {alpha:g}", ylim=(0, 1))
        above.title.set_fontsize(9)
        below.set(xlabel="division", ylim=(0, 2 * alpha))
    panels[0][0].set_ylabel("coverage of the calibration rows")
    panels[1][0].set_ylabel("error on test (line: the promise)")
    panels[0][0].legend(fontsize=8)
    figure.savefig(path.with_name(f"{path.stem}_{name.replace(', ', '_')}{path.suffix}"))


def check(name: str, alpha: float, test: str, rules: dict[str, list[Certified]]) -> None:
    certified, covered = (
        {rule: float(np.mean([value(one) for one in divisions])) for rule, divisions in rules.items()}
        for value in (_is_certified, _coverage)
    )
    if certified[AFTER] < certified[BEFORE] or covered[AFTER] < covered[BEFORE] - 0.01:
        raise SystemExit(f"{name}, alpha {alpha:g}: less is certified after than before: {certified}, {covered}")
    for rule in (AFTER, WITHOUT) if test == DRAWN else ():
        above = sum(one.broken(alpha) for one in rules[rule])
        if binomtest(above, len(rules[rule]), DELTA + LEVEL, alternative="greater").pvalue < 0.01:
            raise SystemExit(f"{name}, alpha {alpha:g}, {rule}: the promise is broken in {above} divisions")


def _is_certified(one: Certified) -> bool:
    return one.coverage > 0


def _coverage(one: Certified) -> float:
    return one.coverage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--source", help="the photographs of fashion_shirt, for the pixel classifiers")
    parser.add_argument("--divisions", type=int, default=20)
    parser.add_argument("--plot", type=Path, help="a PNG; one for each classifier, with its name")
    arguments = parser.parse_args()
    of = {arguments.run.parent.name: answers_of(arguments.run)}
    if arguments.source:
        of |= answers_of_pixels(arguments.source)
    for name, answers in of.items():
        found: dict[tuple[str, float], dict[str, list[Certified]]] = {}
        for test, alpha in product((OFFICIAL, DRAWN), ALPHAS):
            rules = found[test, alpha] = {BEFORE: [], AFTER: [], WITHOUT: []}
            for seed in range(arguments.divisions):
                for rule, outcome in certify(answers, seed, alpha, test).items():
                    rules[rule].append(outcome)
            for rule, divisions in rules.items():
                print(f"{name}, {test}, alpha {alpha:g}, {rule}: {told(divisions, alpha)}")
                print("    " + " ".join(f"{one.coverage:.3f}/{one.test_risk:.3f}" for one in divisions))
        if arguments.plot:
            plot(arguments.plot, name, found)
        for (test, alpha), rules in found.items():
            check(name, alpha, test, rules)
        for test in (OFFICIAL, DRAWN):
            parts = [(alpha, rule, found[test, alpha][rule]) for alpha in ALPHAS for rule in (BEFORE, AFTER, WITHOUT)]
            record(
                f"certified_photographs {name}, {test}, {arguments.divisions} divisions",
                "; ".join(f"alpha {alpha:g}, {rule}: {told(divisions, alpha)}" for alpha, rule, divisions in parts),
                packages=("numpy", "scipy"),
            )


if __name__ == "__main__":
    main()
