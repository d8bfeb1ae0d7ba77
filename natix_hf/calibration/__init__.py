"""Calibration of a classifier's logits, and control of the risk of its accepted answers. numpy and scipy, no torch."""

from __future__ import annotations

from natix_hf.calibration.classwise import ClasswiseRiskControl, fit_classwise_risk_control
from natix_hf.calibration.plan import Plan, allowed_errors, groups_needed
from natix_hf.calibration.promise import Promise
from natix_hf.calibration.risk_control import RiskControl, fit_risk_control, make_grid
from natix_hf.calibration.risk_rows import losses_for, one_row_per_group, subsample_to_prior
from natix_hf.calibration.temperature import (
    TEMPERATURE_BOUNDS,
    Calibration,
    fit_calibration,
    fit_platt,
    fit_temperature,
)

__all__ = [
    "TEMPERATURE_BOUNDS",
    "Calibration",
    "ClasswiseRiskControl",
    "Plan",
    "Promise",
    "RiskControl",
    "allowed_errors",
    "fit_calibration",
    "fit_classwise_risk_control",
    "fit_platt",
    "fit_risk_control",
    "fit_temperature",
    "groups_needed",
    "losses_for",
    "make_grid",
    "one_row_per_group",
    "subsample_to_prior",
]
