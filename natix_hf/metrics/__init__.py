"""Metrics, thresholds and intervals: numpy in, floats out. Importing this module imports only numpy."""

from __future__ import annotations

from natix_hf.metrics.bootstrap import bootstrap_intervals, paired_difference, paired_selective_difference
from natix_hf.metrics.calibration_error import (
    ece_reduction_percent,
    expected_calibration_error,
    maximum_calibration_error,
    smooth_calibration_error,
)
from natix_hf.metrics.compute import compute_metrics, rates_from_counts
from natix_hf.metrics.evaluate_metric import load_metric
from natix_hf.metrics.groups import count_groups, group_weights
from natix_hf.metrics.intervals import Interval, exact_interval, metric_intervals
from natix_hf.metrics.prior import prior_weights
from natix_hf.metrics.selective import augrc, aurc, risk_coverage
from natix_hf.metrics.threshold import ThresholdResult, select_threshold, sweep

__all__ = [
    "Interval",
    "ThresholdResult",
    "augrc",
    "aurc",
    "bootstrap_intervals",
    "compute_metrics",
    "count_groups",
    "ece_reduction_percent",
    "exact_interval",
    "expected_calibration_error",
    "group_weights",
    "load_metric",
    "maximum_calibration_error",
    "metric_intervals",
    "paired_difference",
    "paired_selective_difference",
    "prior_weights",
    "rates_from_counts",
    "risk_coverage",
    "select_threshold",
    "smooth_calibration_error",
    "sweep",
]
