"""Metrics, thresholds and intervals: numpy in, floats out. Importing this imports numpy alone."""

from __future__ import annotations

from natix_hf.metrics.bootstrap import bootstrap_intervals, paired_difference
from natix_hf.metrics.calibration_error import expected_calibration_error
from natix_hf.metrics.classification import compute_metrics, rates_from_counts
from natix_hf.metrics.evaluate_metric import load_metric
from natix_hf.metrics.groups import count_groups, group_weights
from natix_hf.metrics.prior import prior_weights
from natix_hf.metrics.threshold import ThresholdResult, select_threshold, sweep

__all__ = [
    "ThresholdResult",
    "bootstrap_intervals",
    "compute_metrics",
    "count_groups",
    "expected_calibration_error",
    "group_weights",
    "load_metric",
    "paired_difference",
    "prior_weights",
    "rates_from_counts",
    "select_threshold",
    "sweep",
]
