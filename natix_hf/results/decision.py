"""The decision of phase 2: the champion among the candidates and its decision threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from natix_hf.data.config import Exam
from natix_hf.errors import RunError
from natix_hf.metrics import compute_metrics, metric_intervals, paired_difference, prior_weights, select_threshold
from natix_hf.metrics.config import ThresholdConfig
from natix_hf.metrics.threshold import CountScore, Objective, ThresholdResult
from natix_hf.provenance.stored import OPTIONAL, Stored
from natix_hf.results.candidate import Candidate
from natix_hf.results.figures import Figure, Gain, GroupCounts, paired_bounds
from natix_hf.results.logits import LogitTable, read_logits
from natix_hf.results.out_of_fold import OutOfFold
from natix_hf.results.soup import Soup
from natix_hf.subnet.expectation import reward_of_counts

# What a threshold was fitted to.
FittedTo = Literal["val_select", "out_of_fold"]
_FOLDS = 5  # of the held-out MCC

_OBJECTIVES = {
    "mcc": "MCC",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "reward": "the subnet's expected reward",
}


@dataclass(frozen=True)
class Comparison:
    """A challenger compared with the control, each at its own threshold, on the same rows of val_select."""

    control: str
    challenger: str
    mcc_gain: Gain


@dataclass(frozen=True)
class Decision(Stored):
    """Champion and threshold.

    Args:
        threshold_logit (`float`): On the scale of the champion's raw logits. An answer is yes strictly above it.
        exam (`Exam`): The views that the threshold was fitted to; None means whole pictures.
        val_select_optimistic (`dict[str, float]`): The objective on the rows that the threshold was fitted to, and TPR
            and TNR on val_select. They are optimistic where these are the same rows.
        fitted_to (`str`): What the threshold was fitted to; None means val_select, in files older than the key.
        held_out (`dict[str, Figure]`): The MCC on val_select where each group is decided by a threshold that was
            fitted without it, by what it was fitted to. None: there are too few groups, or the file is older.
        soup (`Soup`): The candidate that phase 2 made of others, champion or not. None: it made none.
    """

    FILE: ClassVar[str] = "threshold.json"

    champion: str
    candidate_sha256: str
    threshold_logit: float
    objective: str
    target_prior: float | None
    exam: Exam | None
    val_select_optimistic: dict[str, float]
    val_select_groups: GroupCounts
    comparisons: list[Comparison]
    fitted_to: FittedTo | None = field(default=None, metadata=OPTIONAL)
    held_out: dict[str, Figure] | None = field(default=None, metadata=OPTIONAL)
    soup: Soup | None = field(default=None, metadata=OPTIONAL)

    @property
    def told_held_out(self) -> str:
        """The held-out MCC in words, or ""."""
        names = {"val_select": "val_select", "out_of_fold": "out-of-fold answers"}
        figures = [f"{figure.told} from {names[name]}" for name, figure in (self.held_out or {}).items()]
        return f"MCC with thresholds of other groups {', '.join(figures)}" if figures else ""

    @property
    def sample_in_words(self) -> str:
        """What the threshold and the calibration were fitted to, for people."""
        return "the out-of-fold answers" if self.fitted_to == "out_of_fold" else "val_select"

    @property
    def objective_in_words(self) -> str:
        """What the threshold maximises, for people."""
        return _OBJECTIVES.get(self.objective, self.objective)

    def val_select(self, folder: Path, champion: Candidate) -> LogitTable:
        """The champion's answers on val_select that the threshold was fitted to. `folder` is the folder of phase 2."""
        if self.exam is None or self.exam.chooses:
            return champion.stored_logits("val_select", self.exam)
        return read_logits(exam_answers(folder, champion), champion.sha256, self.exam)


def decide(
    tables: dict[str, LogitTable],
    out_of_fold: Callable[[str], OutOfFold | None],
    config: ThresholdConfig,
    prior: float | None,
    soup: Soup | None = None,
) -> tuple[Decision, ThresholdResult, LogitTable | OutOfFold]:
    """Choose the champion and fit its threshold. Equal answers give an equal decision.

    Args:
        tables: The answers of every candidate to the same rows of val_select, by name, the control first.
        out_of_fold: Gives the out-of-fold answers that belong to a champion, or None.
        prior: The target prior.
        soup: What the candidate is made of that phase 2 made of others, if there is one.

    Returns:
        The decision, the threshold with its score, and the answers that it was fitted to.
    """
    objective = _score(config)
    champion, comparisons, best = lead(tables, config, prior)
    table, chosen = tables[champion], best[champion]
    of_folds = out_of_fold(champion)
    samples: dict[FittedTo, LogitTable | OutOfFold] = {"val_select": table}
    if of_folds is not None:
        samples["out_of_fold"] = of_folds
    fitted_to: FittedTo = config.from_ if config.from_ in samples else "val_select"
    sample = samples[fitted_to]
    if fitted_to == "out_of_fold":
        chosen = best_threshold(sample, config, prior)
    held_out = {
        str(name): measured
        for name, answers in samples.items()
        if (measured := held_out_mcc(answers, table, objective, prior, config.n_resamples)) is not None
    }
    decision = Decision(
        champion=champion,
        candidate_sha256=table.candidate_sha256,
        threshold_logit=chosen.threshold,
        objective=config.objective,
        target_prior=prior,
        exam=table.asked.exam,
        val_select_optimistic={config.objective: chosen.value} | rates_at(table, chosen.threshold),
        val_select_groups=GroupCounts.of(table.groups, table.labels),
        comparisons=comparisons,
        fitted_to=fitted_to,
        held_out=held_out or None,
        soup=soup,
    )
    return decision, replace(chosen, objective=config.objective), sample


def lead(
    tables: dict[str, LogitTable], config: ThresholdConfig, prior: float | None
) -> tuple[str, list[Comparison], dict[str, ThresholdResult]]:
    """Choose the champion, each candidate at its own best threshold.

    Returns:
        As `choose_champion`, and the best threshold of each candidate with its score, by name.
    """
    best = {name: best_threshold(table, config, prior) for name, table in tables.items()}
    thresholds = {name: chosen.threshold for name, chosen in best.items()}
    return *choose_champion(tables, thresholds, prior, config.n_resamples), best


def best_threshold(answers: LogitTable | OutOfFold, config: ThresholdConfig, prior: float | None) -> ThresholdResult:
    """The best threshold for some answers by the objective of phase 2, with its score."""
    return select_threshold(answers.logits, answers.labels, _score(config), prior)


def _score(config: ThresholdConfig) -> Objective | CountScore:
    return reward_of_counts if config.objective == "reward" else config.objective


def rates_at(table: LogitTable, threshold: float) -> dict[str, float]:
    """TPR and TNR of a table's answers at a threshold."""
    decided, positive = table.logits > threshold, table.labels == 1
    return {"tpr": float(decided[positive].mean()), "tnr": float((~decided[~positive]).mean())}


def held_out_mcc(
    fitted_to: OutOfFold | LogitTable,
    table: LogitTable,
    objective: Objective | CountScore,
    prior: float | None,
    n_resamples: int,
) -> Figure | None:
    """The MCC of a table's answers where each group is decided by a threshold that was fitted without that group.

    Args:
        fitted_to: The answers that thresholds are fitted to: the table itself, or out-of-fold answers.
        table: The champion's answers on val_select.

    Returns:
        The MCC with its interval, or None if a label has fewer than two groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    few = min(len(np.unique(table.groups[table.labels == label])) for label in (0, 1))
    if few < 2:
        return None
    decided = np.zeros(len(table.labels), dtype=bool)
    folds = StratifiedGroupKFold(min(_FOLDS, few), shuffle=True, random_state=0)
    for _, held in folds.split(table.logits, table.labels, table.groups):
        others = ~np.isin(fitted_to.groups, table.groups[held])
        logits, labels = fitted_to.logits[others], fitted_to.labels[others]
        if len(np.unique(labels)) < 2:
            return None
        decided[held] = table.logits[held] > select_threshold(logits, labels, objective, prior).threshold
    answers, weights = decided.astype(np.float64), prior_weights(table.labels, prior)
    value = compute_metrics(answers, table.labels, sample_weight=weights)["mcc"]
    found = metric_intervals(
        answers, table.labels, table.groups, sample_weight=weights, n_resamples=n_resamples, metrics=("mcc",)
    )
    return Figure.of(value, found["mcc"])


def exam_answers(folder: Path, candidate: Candidate) -> Path:
    """The file in which phase 2 keeps a candidate's answers on val_select, if it asked about other views than the
    candidate's own phase."""
    return folder / "logits" / f"{candidate.name}.parquet"


def choose_champion(
    tables: dict[str, LogitTable], thresholds: dict[str, float], prior: float | None, n_resamples: int
) -> tuple[str, list[Comparison]]:
    """Keep the control (the first candidate) unless the paired confidence interval of a challenger's gain in MCC is
    entirely above zero.

    Args:
        tables: The answers of every candidate to the same rows of val_select, by name.
        thresholds: The decision threshold of each candidate, by name.
        prior: The share of label 1 that the rows are weighted to; None takes the rows as found.
        n_resamples: Number of resamples of the paired group bootstrap.

    Returns:
        The name of the champion, and one comparison per challenger.

    Raises:
        RunError: if the tables hold different rows.
    """
    champion, *challengers = tables
    comparisons = []
    for challenger in challengers:
        control, other = tables[champion], tables[challenger]
        if control.ids != other.ids:
            raise RunError(f"{champion} and {challenger} have logits of different rows: run both phases again")
        gain = paired_difference(
            control.logits,
            other.logits,
            control.labels,
            control.groups,
            thresholds[champion],
            thresholds[challenger],
            sample_weight=prior_weights(control.labels, prior),
            n_resamples=n_resamples,
        )
        low, high, reason = paired_bounds(gain["low"], gain["high"], control.labels, control.groups)
        comparisons.append(Comparison(champion, challenger, Gain(gain["difference"], low, high, reason)))
        if low is not None and low > 0:
            champion = challenger
    return champion, comparisons
