"""The plots of a certificate, in the style of a run's."""

from __future__ import annotations

from pathlib import Path

from natix_hf.bundle.policy import Policy
from natix_hf.calibration import Calibration
from natix_hf.metrics import expected_calibration_error, prior_weights
from natix_hf.results import plots
from natix_hf.results.promise_plot import plot_promise
from natix_hf.selective.fitting import Evidence
from natix_hf.selective.written import PLOTS


def plot(folder: Path, policy: Policy, evidence: Evidence) -> list[Path]:
    """Draw the certifying half: risk over coverage, and reliability before and after calibration."""
    paths = [folder / name for name in PLOTS]
    plot_promise(paths[0], evidence.report, evidence.rows, "the certifying half")
    answers = evidence.certifying
    weights = prior_weights(answers.labels, evidence.prior)
    both = {"before": Calibration("none"), "after": policy.calibration}
    for path, (when, calibration) in zip(paths[1:], both.items(), strict=True):
        p = calibration.probability(answers.logits)
        error = expected_calibration_error(p, answers.labels, sample_weight=weights)
        title = f"Certifying half, {when} calibration: ECE {error:.3f}"
        plots.reliability(path, p, answers.labels, weights, title)
    return paths
