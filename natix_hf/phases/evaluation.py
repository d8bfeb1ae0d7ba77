"""What test says about a policy: metrics at the threshold, coverage and promised risks, slices; all with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from natix_hf.bundle.logits import LogitTable
from natix_hf.bundle.policy import Policy
from natix_hf.calibration import losses_for
from natix_hf.calibration.risk_rows import Loss
from natix_hf.data.rows import Rows
from natix_hf.metrics import bootstrap_intervals, compute_metrics, count_groups, group_weights, prior_weights
from natix_hf.metrics.bootstrap import MEANS, RATES
from natix_hf.models.classifier import ID2LABEL

_OF_PROBABILITIES = ("auroc", "auprc", "ece", "brier", "nll")
# A slice value with fewer rows than this says nothing that an interval would not swallow.
_SLICE_ROWS = 20


def evaluate(table: LogitTable, policy: Policy, target_prior: float | None, n_resamples: int) -> dict[str, Any]:
    """Test metrics at the fitted threshold in two columns, as found and at the target prior, with group-bootstrap
    intervals; undefined figures are null."""
    columns = {"as_found": None, "at_target_prior": target_prior} if target_prior is not None else {"as_found": None}
    # Rates are those of the decisions: far from 0, logits on both sides of the threshold share one probability.
    probabilities, decided = policy.probability(table.logits), policy.decide(table.logits).astype(np.float64)
    result: dict[str, Any] = {
        "rows": len(table.ids) // table.views,
        "views": table.views,
        "groups": count_groups(table.groups, table.labels),
    }
    for name, prior in columns.items():
        weights = prior_weights(table.labels, prior)
        metrics = compute_metrics(decided, table.labels, sample_weight=weights)
        scored = compute_metrics(probabilities, table.labels, sample_weight=weights)
        metrics |= {key: scored[key] for key in _OF_PROBABILITIES}
        intervals = {
            key: interval
            for values, wanted in ((decided, RATES), (probabilities, (*MEANS, "auroc", "ece")))
            for key, interval in bootstrap_intervals(
                values,
                table.labels,
                table.groups,
                sample_weight=weights,
                n_resamples=n_resamples,
                metrics=wanted,
            ).items()
        }
        result[name] = {
            "target_prior": prior,
            "metrics": {key: _finite(value) for key, value in metrics.items()},
            "intervals": {key: [_finite(low), _finite(high)] for key, (low, high) in intervals.items()},
        }
    return result


def evaluate_selective(
    table: LogitTable, policy: Policy, accepted: np.ndarray, target_prior: float | None, n_resamples: int
) -> dict[str, Any]:
    """What the acceptance of answers is worth on test, beside the promise: coverage, by answer too, and every promised
    risk among the accepted, with group-bootstrap intervals."""
    positive = policy.decide(table.logits)
    weights = prior_weights(table.labels, target_prior)
    everything = np.ones_like(accepted)
    shares = {
        "coverage": (accepted, everything),
        "coverage_roadwork": (accepted & positive, positive),
        "coverage_none": (accepted & ~positive, ~positive),
    }
    promised = _promised_risks(policy.risk_control, positive, table.labels)
    risks = {name: (accepted & lost, accepted & counted) for name, (lost, counted) in promised.items()}
    sums = np.column_stack([part for pair in (shares | risks).values() for part in pair]) * weights[:, None]
    drawn = np.concatenate(list(group_weights(table.groups, table.labels, n_resamples, 0))).astype(np.float64)
    resampled, whole = (drawn @ sums).T, sums.sum(axis=0)
    figures = {}
    for i, name in enumerate(shares | risks):
        with np.errstate(invalid="ignore", divide="ignore"):
            each, value = resampled[2 * i] / resampled[2 * i + 1], whole[2 * i] / whole[2 * i + 1]
        defined = each[np.isfinite(each)]
        interval = np.quantile(defined, [0.025, 0.975]).tolist() if defined.size else [None, None]
        figures[name] = {"value": _finite(value), "interval": interval}
    return {"promised": policy.risk_control.get("alpha")} | {
        **{name: figures[name] for name in shares},
        "risks": {name: figures[name] for name in risks},
    }


def _promised_risks(
    risk_control: dict[str, Any], positive: np.ndarray, labels: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By the name of each risk that phase 5 controls: which rows are losses, and which count; bool [n] both."""
    loss, decisions = risk_control.get("loss", "error"), positive.astype(np.int8)
    wanted: tuple[Loss, ...] = ("fnr", "fpr") if risk_control.get("classwise") else (loss,)
    if risk_control.get("classwise") and loss == "error":
        wrong = decisions != labels
        of_answer = {ID2LABEL[1]: positive, ID2LABEL[0]: ~positive}
        return {f"error of {label}": (wrong & answered, answered) for label, answered in of_answer.items()}
    found = {name: losses_for(name, decisions, labels) for name in wanted}
    return {name: (losses.astype(bool), counted) for name, (losses, counted) in found.items()}


def evaluate_slice(
    table: LogitTable, policy: Policy, accepted: np.ndarray, test: Rows, column: str
) -> dict[str, dict[str, float | None]]:
    values = np.repeat(np.asarray([str(value) for value in test.column(column)]), table.views)
    result = {}
    for value in np.unique(values):
        at = values == value
        if at.sum() >= _SLICE_ROWS * table.views:
            answers = compute_metrics(policy.decide(table.logits[at]).astype(float), table.labels[at])
            wanted = ("n", "n_positive", "mcc", "recall", "specificity")
            result[str(value)] = {key: _finite(answers[key]) for key in wanted}
            result[str(value)]["coverage"] = float(accepted[at].mean())
    return result


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
