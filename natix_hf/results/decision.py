"""The decision of phase 2: the champion among the candidates and its decision threshold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from natix_hf.data.config import Exam
from natix_hf.errors import RunError
from natix_hf.metrics import paired_difference, prior_weights
from natix_hf.provenance.stored import Stored
from natix_hf.results.candidate import Candidate
from natix_hf.results.figures import Gain, GroupCounts, paired_bounds
from natix_hf.results.logits import LogitTable, read_logits

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
        val_select_optimistic (`dict[str, float]`): Figures on val_select by name. They are optimistic because the
            threshold was chosen on the same rows.
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

    @property
    def objective_in_words(self) -> str:
        """What the threshold maximises, for people."""
        return _OBJECTIVES.get(self.objective, self.objective)

    def val_select(self, folder: Path, champion: Candidate) -> LogitTable:
        """The champion's answers on val_select that the threshold was fitted to. `folder` is the folder of phase 2."""
        if self.exam is None:
            return champion.stored_logits("val_select")
        return read_logits(exam_answers(folder, champion), champion.sha256, self.exam)


def exam_answers(folder: Path, candidate: Candidate) -> Path:
    """The file in which phase 2 keeps a candidate's answers to exam views of val_select."""
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
