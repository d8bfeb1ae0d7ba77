"""The calibration result of phase 5: the fitted map, and the errors on val_calib before and after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from natix_hf.calibration import TEMPERATURE_BOUNDS, Calibration, fit_calibration
from natix_hf.calibration.temperature import Method
from natix_hf.metrics import ece_reduction_percent, metric_intervals, prior_weights
from natix_hf.metrics.table import METRICS, calibration_scores
from natix_hf.provenance.stored import Stored
from natix_hf.results.answered import Answered
from natix_hf.results.figures import Figure, GroupCounts, interval_notes

if TYPE_CHECKING:  # it reads parquet, which a foreign model's answers need not be
    from natix_hf.results.logits import LogitTable


@dataclass(frozen=True)
class CalibrationReport(Stored):
    """A calibration fitted on val_select, with its errors on val_calib at the target prior.

    Args:
        no_optimum (`bool`): No temperature fits val_select best, so the probabilities stay as they are.
        rows (`int`): Number of pictures.
        views (`int`): Number of answers to each picture.
        before, after (`dict[str, Figure]`): The calibration errors by name.
    """

    FILE: ClassVar[str] = "calibration.json"

    no_optimum: bool
    method: Method
    slope: float
    intercept: float
    temperature: float | None
    target_prior: float | None
    rows: int
    views: int
    groups: GroupCounts
    before: dict[str, Figure]
    after: dict[str, Figure]
    ece_reduction_percent: float | None

    @property
    def calibration(self) -> Calibration:
        return Calibration(self.method, self.slope, self.intercept)

    @property
    def notes(self) -> list[str]:
        """Which errors have no interval, and why, one sentence each."""
        found = [
            note
            for errors in (self.before, self.after)
            for note in interval_notes({METRICS[name].title: figure for name, figure in errors.items()})
        ]
        return list(dict.fromkeys(found))


def fit_on(select: Answered, method: Method, prior: float | None) -> tuple[Calibration, bool]:
    """Fit a calibration on val_select.

    Returns:
        The calibration, and True if there is no optimum; the calibration then changes nothing. That happens if every
        answer on val_select is right: the likelihood grows as the probabilities approach 0 and 1.
    """
    fitted = fit_calibration(select.logits, select.labels, method, prior_weights(select.labels, prior))
    at_bound = fitted.method == "temperature" and 1 / fitted.slope in TEMPERATURE_BOUNDS
    return (Calibration("none") if at_bound else fitted), at_bound


def measure_calibration(
    fitted: Calibration, no_optimum: bool, calib: LogitTable, prior: float | None, n_resamples: int
) -> CalibrationReport:
    """Measure the calibration errors on val_calib before and after a calibration, with intervals from resampled
    groups."""
    weights = prior_weights(calib.labels, prior)
    before = _errors(Calibration("none"), calib, weights, n_resamples)
    after = _errors(fitted, calib, weights, n_resamples)
    return CalibrationReport(
        no_optimum=no_optimum,
        method=fitted.method,
        slope=fitted.slope,
        intercept=fitted.intercept,
        temperature=1 / fitted.slope if fitted.method == "temperature" else None,
        target_prior=prior,
        rows=len(calib.asked.row_ids),
        views=calib.asked.views,
        groups=GroupCounts.of(calib.groups, calib.labels),
        before=before,
        after=after,
        ece_reduction_percent=ece_reduction_percent(_ece(before), _ece(after)),
    )


def _ece(errors: dict[str, Figure]) -> float:
    value = errors["ece"].value
    assert value is not None, "the ECE of at least one row is a number"
    return value


def _errors(calibration: Calibration, calib: Answered, weights: np.ndarray, n_resamples: int) -> dict[str, Figure]:
    p = calibration.probability(calib.logits)
    errors = calibration_scores()
    intervals = metric_intervals(
        p, calib.labels, calib.groups, sample_weight=weights, n_resamples=n_resamples, metrics=tuple(errors)
    )
    return {
        name: Figure.of(error.function(p, calib.labels, weights), intervals[name]) for name, error in errors.items()
    }
