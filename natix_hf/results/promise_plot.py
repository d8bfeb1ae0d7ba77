"""The plot of a promise: risk over coverage on the rows that certified it, and the certified point."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
    confidence, chosen, curves = rows.confidence[eligible], None, {}
    single = promise.parts.get(EVERY_ANSWER)
    if promise.feasible and single is not None and single.threshold is not None:
        coverage = float(np.mean(confidence > single.threshold))
        chosen = (coverage, single.errors / single.accepted, float(single.risk_bound or 0.0))
    if eligible.any():
        curves[f"{promise.loss} on {where}, one row per group"] = risk_coverage(confidence, losses[eligible])[:2]
    plots.risk_coverage(path, curves, "Risk among the accepted answers over coverage", promise.alpha, chosen)
