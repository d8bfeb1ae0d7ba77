"""The table of self-supervised objectives. The module of an objective is imported only when it is needed.

To add an objective, write a module with its class (see `natix_hf.ssl.objective`) and add a row here. If it has
settings, add its section to `trainers/explora_config.py` too, so that a recipe can set them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from natix_hf.errors import RecipeError

if TYPE_CHECKING:
    from natix_hf.ssl.objective import Objective

# Name -> the class, or its place as `module:class`.
OBJECTIVES: dict[str, str | type[Any]] = {
    "dinov2": "natix_hf.ssl.dinov2:DinoV2Objective",
    "mae": "natix_hf.ssl.mae:MaskedAutoencoder",
}


def objective_class(name: str) -> type[Objective]:
    """Look up the class of an objective.

    Raises:
        RecipeError: If there is no objective of this name.
    """
    if name not in OBJECTIVES:
        raise RecipeError(f"phase4.objective is {name!r}: allowed is {' | '.join(OBJECTIVES)}")
    found = OBJECTIVES[name]
    if isinstance(found, str):
        module, _, cls = found.partition(":")
        found = getattr(importlib.import_module(module), cls)
    assert isinstance(found, type)
    return found


def default_objective(model_type: str) -> str:
    """Name of the objective that backbones of this type were pretrained with."""
    return "dinov2" if model_type.startswith("dinov2") else "mae"


def settings_of(objective: type[Objective], given: Any) -> dict[str, Any]:
    """Collect the settings of an objective from `given`, a mapping or an object. A missing section gets defaults."""
    held = given if isinstance(given, dict) else vars(given)
    found = {name: held.get(name) for name in objective.sections}
    return {name: cls() if found[name] is None else found[name] for name, cls in objective.sections.items()}
