"""The evaluation of a policy on test: metrics at the threshold, coverage, promised risks, slices and the exam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from natix_hf.bundle.policy import Policy
from natix_hf.calibration import Promise, losses_for
from natix_hf.calibration.risk_rows import Loss
from natix_hf.labels import ID2LABEL
from natix_hf.metrics import bootstrap_intervals, compute_metrics, group_weights, prior_weights
from natix_hf.metrics.table import interval_names, measured_scores, rates
from natix_hf.provenance.stored import OPTIONAL, Stored
from natix_hf.results.figures import Figure, GroupCounts, finite
from natix_hf.results.logits import LogitTable
from natix_hf.subnet.marks import ExamMarks, mark_exam

# With fewer rows than this, the interval of a slice is too wide to say anything.
_SLICE_ROWS = 20


@dataclass(frozen=True)
class Column:
    """Metrics of the test answers by name, as found or weighted to a prior. An undefined figure is None."""

    target_prior: float | None
    metrics: dict[str, float | None]
    intervals: dict[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Selective:
    """Selective answering on test: the share of accepted answers (in total and by answer) and their promised risks.

    Args:
        promised (`float`): alpha, or None if no risk control was asked for.
        risks (`dict[str, Figure]`): Each promised risk among the accepted answers, by name.
    """

    promised: float | None
    coverage: Figure
    coverage_roadwork: Figure
    coverage_none: Figure
    risks: dict[str, Figure]


@dataclass(frozen=True)
class SliceFigures:
    """Figures of the test rows that have one value in a column."""

    n: float
    n_positive: float
    mcc: float | None
    recall: float | None
    specificity: float | None
    coverage: float


@dataclass(frozen=True)
class Evaluation(Stored):
    """The one evaluation on test.

    Args:
        rows (`int`): Number of pictures.
        views (`int`): Number of answers to each picture.
        as_found (`Column`): Metrics on the test rows as they are.
        at_target_prior (`Column`): Metrics weighted to the target prior; None without one.
        slices (`dict`): Figures by column and value.
        exam (`ExamMarks`): Figures of the subnet's exam; None without one.
    """

    FILE: ClassVar[str] = "evaluation.json"

    rows: int
    views: int
    groups: GroupCounts
    as_found: Column
    at_target_prior: Column | None = field(metadata=OPTIONAL)
    selective: Selective
    slices: dict[str, dict[str, SliceFigures]]
    exam: ExamMarks | None = field(default=None, metadata=OPTIONAL)

    @property
    def columns(self) -> dict[str, Column]:
        """The columns that exist, by name."""
        both = {"as_found": self.as_found, "at_target_prior": self.at_target_prior}
        return {name: column for name, column in both.items() if column is not None}


def evaluate(
    table: LogitTable,
    policy: Policy,
    accepted: np.ndarray,
    slices: Mapping[str, Sequence[str]],
    target_prior: float | None,
    n_resamples: int,
) -> Evaluation:
    """Measure a policy on test answers, with group-bootstrap intervals.

    Args:
        accepted: bool [n], aligned with the table.
        slices: Values of columns by the name of the column, one value per row.
        target_prior: The share of label 1 for a second column of metrics; None makes no such column.
        n_resamples: Number of resamples of the group bootstrap.
    """
    asked = table.asked
    return Evaluation(
        rows=len(asked.row_ids),
        views=asked.views,
        groups=GroupCounts.of(table.groups, table.labels),
        as_found=_column(table, policy, None, n_resamples),
        at_target_prior=_column(table, policy, target_prior, n_resamples) if target_prior is not None else None,
        selective=evaluate_selective(table, policy, accepted, target_prior, n_resamples),
        slices={name: evaluate_slice(table, policy, accepted, values) for name, values in slices.items()},
        exam=_marks(table, policy.threshold_logit) if asked.exam is not None else None,
    )


def _marks(table: LogitTable, threshold_logit: float) -> ExamMarks:
    asked = table.asked
    return mark_exam(table.logits, asked.labels, asked.levels, asked.views, threshold_logit)


def _column(table: LogitTable, policy: Policy, prior: float | None, n_resamples: int) -> Column:
    # Rates come from decisions: far from 0, logits on both sides of the threshold round to the same probability.
    probabilities, decided = policy.probability(table.logits), policy.decide(table.logits).astype(np.float64)
    weights = prior_weights(table.labels, prior)
    metrics = compute_metrics(decided, table.labels, sample_weight=weights)
    scored = compute_metrics(probabilities, table.labels, sample_weight=weights)
    metrics |= {key: scored[key] for key in measured_scores()}
    of_decisions = tuple(rates())
    of_probabilities = tuple(name for name in interval_names() if name not in of_decisions)
    intervals = {
        key: interval
        for values, wanted in ((decided, of_decisions), (probabilities, of_probabilities))
        for key, interval in bootstrap_intervals(
            values, table.labels, table.groups, sample_weight=weights, n_resamples=n_resamples, metrics=wanted
        ).items()
    }
    return Column(
        target_prior=prior,
        metrics={key: finite(value) for key, value in metrics.items()},
        intervals={key: (finite(low), finite(high)) for key, (low, high) in intervals.items()},
    )


def evaluate_selective(
    table: LogitTable, policy: Policy, accepted: np.ndarray, target_prior: float | None, n_resamples: int
) -> Selective:
    """Measure coverage and the promised risks on test, with group-bootstrap intervals."""
    positive = policy.decide(table.logits)
    weights = prior_weights(table.labels, target_prior)
    everything = np.ones_like(accepted)
    shares = {
        "coverage": (accepted, everything),
        "coverage_roadwork": (accepted & positive, positive),
        "coverage_none": (accepted & ~positive, ~positive),
    }
    promised = _promised_risks(policy.promise, positive, table.labels)
    risks = {name: (accepted & lost, accepted & counted) for name, (lost, counted) in promised.items()}
    sums = np.column_stack([part for pair in (shares | risks).values() for part in pair]) * weights[:, None]
    drawn = np.concatenate(list(group_weights(table.groups, table.labels, n_resamples, 0))).astype(np.float64)
    resampled, whole = (drawn @ sums).T, sums.sum(axis=0)
    figures = {}
    for i, name in enumerate(shares | risks):
        with np.errstate(invalid="ignore", divide="ignore"):
            each, value = resampled[2 * i] / resampled[2 * i + 1], whole[2 * i] / whole[2 * i + 1]
        defined = each[np.isfinite(each)]
        low, high = np.quantile(defined, [0.025, 0.975]).tolist() if defined.size else (None, None)
        figures[name] = Figure(finite(value), (low, high))
    of_shares = {name: figures[name] for name in shares}
    return Selective(promised=policy.promise.alpha, **of_shares, risks={name: figures[name] for name in risks})


def _promised_risks(
    promise: Promise, positive: np.ndarray, labels: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each risk of phase 5, by name: the rows that are losses and the rows that count, both bool [n]."""
    loss, decisions = promise.loss or "error", positive.astype(np.int8)
    wanted: tuple[Loss, ...] = ("fnr", "fpr") if promise.classwise else (loss,)
    if promise.classwise and loss == "error":
        wrong = decisions != labels
        of_answer = {ID2LABEL[1]: positive, ID2LABEL[0]: ~positive}
        return {f"error of {label}": (wrong & answered, answered) for label, answered in of_answer.items()}
    found = {name: losses_for(name, decisions, labels) for name in wanted}
    return {name: (losses.astype(bool), counted) for name, (losses, counted) in found.items()}


def evaluate_slice(
    table: LogitTable, policy: Policy, accepted: np.ndarray, row_values: Sequence[Any]
) -> dict[str, SliceFigures]:
    """Compute figures for each value of a column that has at least 20 rows."""
    values = table.asked.of_rows([str(value) for value in row_values])
    result = {}
    for value in np.unique(values):
        at = values == value
        if at.sum() >= _SLICE_ROWS * table.asked.views:
            answers = compute_metrics(policy.decide(table.logits[at]).astype(float), table.labels[at])
            result[str(value)] = SliceFigures(
                n=answers["n"],
                n_positive=answers["n_positive"],
                mcc=finite(answers["mcc"]),
                recall=finite(answers["recall"]),
                specificity=finite(answers["specificity"]),
                coverage=float(accepted[at].mean()),
            )
    return result
