"""The plot of a promise: risk over coverage on the rows that certified it, and the certified point."""

from __future__ import annotations

from pathlib import Path

from natix_hf.calibration import losses_for
from natix_hf.metrics import risk_coverage
from natix_hf.results import plots
from natix_hf.results.promise import EVERY_ANSWER, CalibrationRows, PromiseReport


def plot_promise(path: Path, promise: PromiseReport, rows: CalibrationRows, where: str) -> None:
    """Draw the risk among accepted answers over coverage.

    Args:
        rows: The rows that certified, one per group.
        where: What these rows are called in the plot.
    """
    losses, eligible = losses_for(promise.loss, rows.decisions, rows.labels)
    counted, at = [eligible], [""]
    if rows.counted is not None and promise.prior is not None:  # an interval of priors, certified at both ends
        counted, at = list(rows.counted), [f", at a share of {share:g}" for share in promise.prior]
    single, chosen, curves = promise.parts.get(EVERY_ANSWER), None, {}
    for mask, told in zip(counted, at, strict=True):
        if not mask.any():
            continue
        confidence = rows.confidence[mask]
        curves[f"{promise.loss} on {where}, one row per group{told}"] = risk_coverage(confidence, losses[mask])[:2]
        if promise.feasible and single is not None and single.threshold is not None:
            accepted = confidence > single.threshold
            if (int(accepted.sum()), int(losses[mask][accepted].sum())) == (single.accepted, single.errors):
                bound = float(single.risk_bound or 0.0)
                chosen = float(accepted.mean()), single.errors / single.accepted, bound
    plots.risk_coverage(path, curves, "Risk among the accepted answers over coverage", promise.alpha, chosen)
