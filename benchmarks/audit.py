"""Labels flipped in real photographs: how many an audit finds, beside cleanlab on the same answers.

    python3 -m venv cleanlab_env && cleanlab_env/bin/pip install cleanlab
    python benchmarks/audit.py --cleanlab cleanlab_env/bin/python [--seeds 5] [--only QUESTION]

Questions: the road-work sign, and the signs 00 to 08 (speed limits), of ../shared/data/gtsrb_roadwork, and the shirt
of ../shared/data/fashion_shirt. Of train and val_select, as the recipes divide them, 3% and 10% of the labels are
flipped: random rows, or (signs) random whole tracks. Five folds by group, stratified by label, give out-of-fold
answers of a logistic regression: weak ones on the features of the packaged backbone, which has never seen a sign, and
strong ones on gradient histograms and colours. All figures are means over the seeds, which draw flips and folds.

*Flagged*: precision and recall of the rows that `find_wrong_labels` flags. *At its count*: for each filter of
`find_label_issues`, its precision, and ours for as many rows from the top of our ranking. It fails where the mean of
ours over the kinds of noise is lower by over .005, for any question, answers and filter; the rows of RESULTS.md tell
the smallest lead of each noise.

*After review*: a person looks at the flagged rows, relabels those whose label was flipped and keeps the others. The
MCC on the official test split of the same classifier fitted to train and val_select before, after, after every flagged
row is relabelled without looking, and with the true labels; the threshold is fitted to its out-of-fold answers.

*Estimated noise*: the share of wrong labels by confident learning, and what the surest fifth of the answers says.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from audit_answers import FOLDS, Question, fitted, out_of_fold, questions
from audit_cleanlab import FILTERS
from results import record

from natix_hf.metrics import compute_metrics, select_threshold
from natix_hf.metrics.label_noise import Suspects, find_wrong_labels

SLACK = 0.005


@dataclass(frozen=True)
class Cell:
    """One question with one kind of answers, noise and seed."""

    question: Question
    share: float
    kind: str
    seed: int
    labels: np.ndarray
    logits: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.family}, seed {self.seed}"

    @property
    def family(self) -> str:
        noise = "no noise" if not self.share else f"{self.share:.0%} {self.kind}"
        return f"{self.question.name}, {self.question.answers}, {noise}"

    @property
    def flipped(self) -> np.ndarray:
        return np.asarray(self.labels != self.question.labels)


def plant(question: Question, share: float, kind: str, seed: int) -> np.ndarray:
    """The labels with so many flipped: of random rows, or of random groups until as many rows are flipped."""
    dice, noisy = np.random.default_rng([seed, 7]), question.labels.copy()
    wanted = round(share * len(noisy))
    if kind == "rows":
        chosen = dice.permutation(len(noisy))[:wanted]
    else:
        _, group = np.unique(question.groups, return_inverse=True)
        order = dice.permutation(group.max() + 1)
        before = np.cumsum(np.bincount(group)[order]) - np.bincount(group)[order]
        chosen = np.flatnonzero(np.isin(group, order[before < wanted]))
    noisy[chosen] = 1 - noisy[chosen]
    return noisy


def cells(question: Question, seeds: int) -> Iterator[Cell]:
    kinds = ("rows", "groups") if len(np.unique(question.groups)) < len(question.groups) else ("rows",)
    for share, kind in [(0.0, "rows"), *((share, kind) for share in (0.03, 0.1) for kind in kinds)]:
        for seed in range(seeds if share else 1):
            labels = plant(question, share, kind, seed)
            yield Cell(question, share, kind, seed, labels, out_of_fold(question, labels, seed))


def told_by_cleanlab(python: str, found: list[Cell]) -> tuple[dict[str, np.ndarray], str]:
    """The ranked rows of every cell and filter, and the version."""
    from scipy.special import expit

    with tempfile.TemporaryDirectory() as folder:
        answers, issues = Path(folder) / "answers.npz", Path(folder) / "issues.npz"
        given: dict[str, Any] = {f"{cell.name}/p": expit(cell.logits) for cell in found}
        given |= {f"{cell.name}/labels": cell.labels for cell in found}
        np.savez(answers, **given)
        script = Path(__file__).with_name("audit_cleanlab.py")
        subprocess.run([python, str(script), str(answers), str(issues)], check=True)
        with np.load(issues) as content:
            return {name: content[name] for name in content.files}, str(content["version"])


def precision_and_recall(flagged: np.ndarray, flipped: np.ndarray) -> tuple[float, float]:
    hits = float((flagged & flipped).sum())
    return hits / max(flagged.sum(), 1), hits / max(flipped.sum(), 1)


def among(rows: np.ndarray, count: int) -> np.ndarray:
    chosen = np.zeros(count, dtype=bool)
    chosen[rows] = True
    return chosen


def mcc_after(cell: Cell, suspects: Suspects) -> dict[str, float]:
    """MCC on test before and after a review, after blind relabelling, and with the true labels."""
    question, noisy, flagged = cell.question, cell.labels, suspects.flagged
    reviewed = np.where(flagged & cell.flipped, question.labels, noisy)
    found = {}
    for name, labels in {
        "before": noisy,
        "after": reviewed,
        "blind": np.where(flagged, 1 - noisy, noisy),
        "true": question.labels,
    }.items():
        logits = cell.logits if name == "before" else out_of_fold(question, labels, cell.seed)
        threshold = select_threshold(logits, labels).threshold
        z = fitted(question.features, labels, question.test_features)
        found[name] = compute_metrics(1 / (1 + np.exp(-(z - threshold))), question.test_labels)["mcc"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cleanlab", metavar="PYTHON", help="an interpreter that has cleanlab")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="one question: roadwork, speed limit or shirt")
    given = parser.parse_args()
    for question in questions(given.only):
        found = list(cells(question, given.seeds))
        peer, version = told_by_cleanlab(given.cleanlab, found) if given.cleanlab else ({}, "")
        figures: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for cell in found:
            suspects = find_wrong_labels(cell.logits, cell.labels, question.groups, n_resamples=1)
            of = figures[cell.family]
            noise = suspects.noise.rates
            of["estimated"].append((noise["all"], noise["surest_no"], noise["surest_yes"]))
            of["flagged"].append((int(suspects.flagged.sum()), *precision_and_recall(suspects.flagged, cell.flipped)))
            if not cell.share:
                continue
            for name, value in mcc_after(cell, suspects).items():
                of[name].append(value)
            ranking = np.argsort(suspects.margin, kind="stable")
            for rule in FILTERS if peer else ():
                theirs = peer[f"{cell.name}/{rule}"]
                precision, recall = precision_and_recall(among(theirs, len(ranking)), cell.flipped)
                ours, _ = precision_and_recall(among(ranking[: len(theirs)], len(ranking)), cell.flipped)
                of[rule].append((len(theirs), precision, recall, ours))
        noisy = [of for of in figures.values() if of["before"]]
        failed = []
        for rule in FILTERS if peer else ():
            _, theirs, _, ours = np.mean([np.mean(of[rule], axis=0) for of in noisy], axis=0)
            if ours < theirs - SLACK:
                failed.append(f"{question.name}, {question.answers}, {rule}: {theirs:.3f}, ours {ours:.3f}")
        for family, of in figures.items():
            record(f"audit {family}", told(of, version), packages=("numpy", "scipy", "scikit-learn"))
        if failed:
            raise SystemExit("cleanlab is more precise at its count: " + "; ".join(failed))


def told(of: dict[str, list[Any]], version: str) -> str:
    count, precision, recall = np.mean(of["flagged"], axis=0)
    estimated, no, yes = np.mean(of["estimated"], axis=0)
    parts = [f"{count:.0f} flagged"]
    if of["before"]:
        parts[0] += f", precision {precision:.3f}, recall {recall:.3f}"
        scored = {rule: np.mean(of[rule], axis=0) for rule in FILTERS if of[rule]}
        if scored:
            best = max(scored, key=lambda rule: _f1(*scored[rule][1:3]))
            number, theirs, recalled, ours = scored[best]
            worst = min(scored, key=lambda rule: scored[rule][3] - scored[rule][1])
            gap = scored[worst][3] - scored[worst][1]
            parts.append(
                f"cleanlab {version}, its best filter {best}: {number:.0f} flagged, precision {theirs:.3f}, recall "
                f"{recalled:.3f}, ours at its count {ours:.3f}; smallest lead at a filter's count {gap:+.3f} ({worst})"
            )
        mcc = {name: float(np.mean(of[name])) for name in ("before", "after", "blind", "true")}
        parts.append(
            f"test MCC {mcc['before']:.3f} before, {mcc['after']:.3f} after review, {mcc['blind']:.3f} relabelled "
            f"blindly, {mcc['true']:.3f} with the true labels"
        )
    parts.append(f"noise estimated {estimated:.3f}, of the surest no {no:.3f}, of the surest yes {yes:.3f}")
    return "; ".join(parts) + f" ({FOLDS} folds, {len(of['flagged'])} seed{'s' if len(of['flagged']) > 1 else ''})"


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / max(precision + recall, 1e-12)


if __name__ == "__main__":
    main()
