"""Calibrate a classifier's logits and control the risk of its accepted answers. Uses numpy and scipy, not torch.

Each name is imported on first access, so reading a recipe's `phase5:` section does not load scipy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natix_hf.calibration.binomial import allowed_errors
    from natix_hf.calibration.classwise import ClasswiseRiskControl, fit_classwise_risk_control
    from natix_hf.calibration.grid import make_grid
    from natix_hf.calibration.plan import groups_needed, groups_needed_classwise, groups_needed_for
    from natix_hf.calibration.promise import Promise
    from natix_hf.calibration.risk_control import RiskControl, fit_risk_control
    from natix_hf.calibration.risk_rows import losses_for, one_row_per_group, subsample_to_prior
    from natix_hf.calibration.simulation import Plan, PlanRow
    from natix_hf.calibration.temperature import (
        TEMPERATURE_BOUNDS,
        Calibration,
        fit_calibration,
        fit_platt,
        fit_temperature,
    )

_PLACES = {
    **dict.fromkeys(("ClasswiseRiskControl", "fit_classwise_risk_control"), "classwise"),
    "allowed_errors": "binomial",
    "make_grid": "grid",
    **dict.fromkeys(("groups_needed", "groups_needed_classwise", "groups_needed_for"), "plan"),
    **dict.fromkeys(("Plan", "PlanRow"), "simulation"),
    "Promise": "promise",
    **dict.fromkeys(("RiskControl", "fit_risk_control"), "risk_control"),
    **dict.fromkeys(("losses_for", "one_row_per_group", "subsample_to_prior"), "risk_rows"),
    **dict.fromkeys(("TEMPERATURE_BOUNDS", "Calibration"), "temperature"),
    **dict.fromkeys(("fit_calibration", "fit_platt", "fit_temperature"), "temperature"),
}
__all__ = [
    "TEMPERATURE_BOUNDS",
    "Calibration",
    "ClasswiseRiskControl",
    "Plan",
    "PlanRow",
    "Promise",
    "RiskControl",
    "allowed_errors",
    "fit_calibration",
    "fit_classwise_risk_control",
    "fit_platt",
    "fit_risk_control",
    "fit_temperature",
    "groups_needed",
    "groups_needed_classwise",
    "groups_needed_for",
    "losses_for",
    "make_grid",
    "one_row_per_group",
    "subsample_to_prior",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"natix_hf.calibration.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
