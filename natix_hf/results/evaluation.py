"""The evaluation of a policy on test: metrics at the threshold, coverage, promised risks, slices and the exam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from natix_hf.bundle.policy import Policy
from natix_hf.calibration import losses_for
from natix_hf.calibration.risk_rows import Loss
from natix_hf.metrics import Interval, compute_metrics, group_weights, metric_intervals, prior_weights
from natix_hf.metrics.confusion import Confusion, count_answers
from natix_hf.metrics.intervals import share_interval
from natix_hf.metrics.table import BY_CLASS, interval_names, measured_scores, rates
from natix_hf.provenance.stored import OPTIONAL, Stored, formerly
from natix_hf.results.exam_confusion import confusion_of_halves, exam_answers
from natix_hf.results.figures import Bounds, Figure, GroupCounts, finite, interval_notes
from natix_hf.results.logits import LogitTable
from natix_hf.results.synthetic_half import SyntheticHalf
from natix_hf.subnet.marks import SLICE_ROWS, ExamMarks, mark_exam, small_values

_NAMED_VALUES = 12


@dataclass(frozen=True)
class Column:
    """Metrics of the test answers by name, as found or weighted to a prior. An undefined figure is None.

    Args:
        exact (`list[str]`): The metrics whose interval holds exact binomial bounds; None: none of them.
        no_interval (`dict[str, str]`): Why a metric has no interval, by name; None: each has one.
    """

    target_prior: float | None
    metrics: dict[str, float | None]
    intervals: dict[str, Bounds]
    exact: list[str] | None = field(default=None, metadata=OPTIONAL)
    no_interval: dict[str, str] | None = field(default=None, metadata=OPTIONAL)

    def figure(self, name: str) -> Figure:
        """A metric with its interval, or with the reason why it has none."""
        exact = True if name in (self.exact or []) else None
        return Figure(
            self.metrics[name], self.intervals.get(name, (None, None)), exact, (self.no_interval or {}).get(name)
        )


@dataclass(frozen=True)
class Selective:
    """Selective answering on test: the share of accepted answers (in total and by answer) and their promised risks.

    Args:
        promised (`float`): alpha, or None if no risk control was asked for.
        risks (`dict[str, Figure]`): Each promised risk among the accepted answers, by name.
    """

    promised: float | None
    coverage: Figure
    coverage_yes: Figure = field(metadata=formerly("coverage_roadwork"))
    coverage_no: Figure = field(metadata=formerly("coverage_none"))
    risks: dict[str, Figure]

    @property
    def notes(self) -> list[str]:
        """What the intervals are where resampling gives none, one sentence each."""
        shares = {name.replace("_", " "): share for name, share in vars(self).items() if isinstance(share, Figure)}
        return interval_notes(shares | {f"risk {name}": risk for name, risk in self.risks.items()})


@dataclass(frozen=True)
class SliceFigures:
    """Figures of the test rows that have one value in a column.

    Args:
        intervals (`dict[str, Interval]`): 95% intervals of mcc, recall and specificity; None in older files.
        confusion (`Confusion`): The counts behind the rates; None in older files.
    """

    n: float
    n_positive: float
    mcc: float | None
    recall: float | None
    specificity: float | None
    coverage: float
    intervals: dict[str, Interval] | None = field(default=None, metadata=OPTIONAL)
    confusion: Confusion | None = field(default=None, metadata=OPTIONAL)

    def figure(self, name: str) -> Figure:
        """A figure with its interval, or with the reason why it has none."""
        value, found = getattr(self, name), (self.intervals or {}).get(name)
        return Figure(value, (None, None)) if found is None or value is None else Figure.of(value, found)


@dataclass(frozen=True)
class Evaluation(Stored):
    """The one evaluation on test.

    Args:
        rows (`int`): Number of pictures.
        views (`int`): Number of answers to each picture.
        as_found (`Column`): Metrics on the test rows as they are.
        at_target_prior (`Column`): Metrics weighted to the target prior; None without one.
        slices (`dict`): Figures by column and value.
        slices_left_out (`dict`): Number of rows by column and value, of the values with too few rows for figures; None
            if there are none.
        exam (`ExamMarks`): Figures of the subnet's exam; None without one.
        synthetic_half (`SyntheticHalf`): The generated pictures of the exam's other half; None without them.
        confusion (`Confusion`): All answers by label and answer; None in older files.
        level_confusion (`dict`): The same by half of the exam, `real` and `synthetic`, and by level; None without one.
    """

    FILE: ClassVar[str] = "evaluation.json"
    SCHEMA: ClassVar[int] = 2  # 1 calls two keys of `selective` after the subnet's labels

    rows: int
    views: int
    groups: GroupCounts
    as_found: Column
    at_target_prior: Column | None = field(metadata=OPTIONAL)
    selective: Selective
    slices: dict[str, dict[str, SliceFigures]]
    exam: ExamMarks | None = field(default=None, metadata=OPTIONAL)
    slices_left_out: dict[str, dict[str, int]] | None = field(default=None, metadata=OPTIONAL)
    synthetic_half: SyntheticHalf | None = field(default=None, metadata=OPTIONAL)
    confusion: Confusion | None = field(default=None, metadata=OPTIONAL)
    level_confusion: dict[str, dict[str, Confusion]] | None = field(default=None, metadata=OPTIONAL)

    @property
    def groups_known(self) -> bool:
        """True if something says which rows belong together. A file without the field says so by fewer groups."""
        return self.groups.groups < self.rows if self.groups.known is None else self.groups.known

    @property
    def unit(self) -> str:
        """What the intervals resample, in words: groups, or rows where none of them has a group."""
        return "groups" if self.groups_known or self.groups.groups < self.rows else "rows"

    @property
    def sample(self) -> str:
        """The test rows in words. Unless groups are known of all, none of them is called independent."""
        grouped = f" in {self.groups.groups} groups" if self.unit == "groups" else ""
        return f"{self.rows} test rows{grouped}" + ("" if self.groups_known else ", not known to be independent")

    def notes(self, titles: Mapping[str, str]) -> list[str]:
        """What the intervals of these metrics are where resampling gives none, one sentence each.

        Args:
            titles: What to call each metric, by its name.
        """
        found = [
            note
            for column in self.columns.values()
            for note in interval_notes(
                {title: column.figure(name) for name, title in titles.items() if name in column.metrics}
            )
        ]
        return list(dict.fromkeys(found))

    def notes_of(self, column: str) -> list[str]:
        """What the intervals of a column's slices are where resampling gives none, one sentence each."""
        figures = {
            f"{told} of {value}": row.figure(name)
            for value, row in self.slices.get(column, {}).items()
            for name, told in BY_CLASS.items()
            if row.intervals is not None
        }
        return interval_notes(figures)

    def left_out_of(self, column: str) -> str:
        """The values of a column that have too few rows for figures, in words, or ""."""
        small = sorted(((self.slices_left_out or {}).get(column) or {}).items(), key=lambda found: -found[1])
        named = ", ".join(f"{value} ({rows})" for value, rows in small[:_NAMED_VALUES])
        more = f" and {len(small) - _NAMED_VALUES} more values" if len(small) > _NAMED_VALUES else ""
        return f"left out, too few rows (figures need {SLICE_ROWS}): {named}{more}" if small else ""

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
    groups_known: bool,
    synthetic: tuple[LogitTable, SyntheticHalf] | None = None,
) -> Evaluation:
    """Measure a policy on test answers, with intervals from resampled groups, or exact ones on small samples.

    Args:
        accepted: bool [n], aligned with the table.
        slices: Values of columns by the name of the column, one value per row.
        target_prior: The share of label 1 for a second column of metrics; None makes no such column.
        n_resamples: Number of resamples of the group bootstrap.
        groups_known: Something says which rows belong together. False: each row counts as a group.
        synthetic: Answers to the exam's views of generated pictures, and the facts about these.
    """
    asked, taken = table.asked, accepted if policy.promise.feasible else None
    left_out = {name: small for name, values in slices.items() if (small := small_values(values))}
    marks, by_level = None, None
    if asked.exam is not None:
        other = exam_answers(synthetic[0]) if synthetic is not None else None
        marks = mark_exam(exam_answers(table), policy.threshold_logit, other, n_resamples)
        by_level = confusion_of_halves(
            table, policy, taken, synthetic[0] if synthetic is not None else None, n_resamples
        )
    return Evaluation(
        rows=len(asked.row_ids),
        views=asked.views,
        groups=GroupCounts.of(table.groups, table.labels, groups_known),
        as_found=_column(table, policy, None, n_resamples),
        at_target_prior=_column(table, policy, target_prior, n_resamples) if target_prior is not None else None,
        selective=evaluate_selective(table, policy, accepted, target_prior, n_resamples),
        slices={name: evaluate_slice(table, policy, accepted, values, n_resamples) for name, values in slices.items()},
        exam=marks,
        slices_left_out=left_out or None,
        synthetic_half=synthetic[1] if synthetic is not None else None,
        confusion=count_answers(policy.decide(table.logits), table.labels, table.groups, taken, n_resamples),
        level_confusion=by_level,
    )


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
        for key, interval in metric_intervals(
            values, table.labels, table.groups, sample_weight=weights, n_resamples=n_resamples, metrics=wanted
        ).items()
    }
    return Column(
        target_prior=prior,
        metrics={key: finite(value) for key, value in metrics.items()},
        intervals={key: (found.low, found.high) for key, found in intervals.items()},
        exact=[key for key, found in intervals.items() if found.exact] or None,
        no_interval={key: found.reason for key, found in intervals.items() if found.reason} or None,
    )


def evaluate_selective(
    table: LogitTable, policy: Policy, accepted: np.ndarray, target_prior: float | None, n_resamples: int
) -> Selective:
    """Measure coverage and the promised risks on test, each a share of rows with its interval."""
    positive = policy.decide(table.logits)
    weights = prior_weights(table.labels, target_prior)
    everything = np.ones_like(accepted)
    shares = {
        "coverage": (accepted, everything),
        "coverage_yes": (accepted & positive, positive),
        "coverage_no": (accepted & ~positive, ~positive),
    }
    promised = _promised_risks(policy, positive, table.labels)
    risks = {name: (accepted & lost, accepted & counted) for name, (lost, counted) in promised.items()}
    wanted = shares | risks
    sums = np.column_stack([part for pair in wanted.values() for part in pair]) * weights[:, None]
    drawn = np.concatenate(list(group_weights(table.groups, table.labels, n_resamples, 0))).astype(np.float64)
    resampled, whole = (drawn @ sums).T, sums.sum(axis=0)
    figures = {}
    for i, (name, (hits, counted)) in enumerate(wanted.items()):
        with np.errstate(invalid="ignore", divide="ignore"):
            each, value = resampled[2 * i] / resampled[2 * i + 1], whole[2 * i] / whole[2 * i + 1]
        defined = each[np.isfinite(each)]
        low, high = np.quantile(defined, [0.025, 0.975]).tolist() if defined.size else (np.nan, np.nan)
        found = share_interval((low, high), hits, counted, table.labels, table.groups, weights)
        figures[name] = Figure.of(value, found)
    of_shares = {name: figures[name] for name in shares}
    return Selective(promised=policy.promise.alpha, **of_shares, risks={name: figures[name] for name in risks})


def _promised_risks(
    policy: Policy, positive: np.ndarray, labels: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each risk of phase 5, by name: the rows that are losses and the rows that count, both bool [n]."""
    promise = policy.promise
    loss, decisions = promise.loss or "error", positive.astype(np.int8)
    wanted: tuple[Loss, ...] = ("fnr", "fpr") if promise.classwise else (loss,)
    if promise.classwise and loss == "error":
        wrong = decisions != labels
        of_answer = {policy.labels.yes: positive, policy.labels.no: ~positive}
        return {f"error of {name}": (wrong & answered, answered) for name, answered in of_answer.items()}
    found = {name: losses_for(name, decisions, labels) for name in wanted}
    return {name: (losses.astype(bool), counted) for name, (losses, counted) in found.items()}


def evaluate_slice(
    table: LogitTable, policy: Policy, accepted: np.ndarray, row_values: Sequence[Any], n_resamples: int
) -> dict[str, SliceFigures]:
    """Compute figures for each value of a column that has at least 20 rows."""
    values = table.asked.of_rows([str(value) for value in row_values])
    small, result = small_values(row_values), {}
    decided = policy.decide(table.logits).astype(np.float64)
    for value in np.unique(values):
        at = values == value
        if value not in small:
            labels = table.labels[at]
            answers = compute_metrics(decided[at], labels)
            taken = accepted[at] if policy.promise.feasible else None
            groups, wanted = table.groups[at], tuple(BY_CLASS)
            intervals = metric_intervals(decided[at], labels, groups, n_resamples=n_resamples, metrics=wanted)
            result[str(value)] = SliceFigures(
                n=answers["n"],
                n_positive=answers["n_positive"],
                # With one label it is undefined. Its stand-in, 0, would pass for the weakest slice.
                mcc=finite(answers["mcc"]) if 0 < labels.sum() < len(labels) else None,
                recall=finite(answers["recall"]),
                specificity=finite(answers["specificity"]),
                coverage=float(accepted[at].mean()),
                intervals=intervals,
                confusion=count_answers(decided[at] > 0.5, labels, groups, taken, n_resamples),
            )
    return result
