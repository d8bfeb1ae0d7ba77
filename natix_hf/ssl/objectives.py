"""The self-supervised objectives by name. Light: the module of an objective is imported when it is asked for.

To add one: a module with its class (`natix_hf.ssl.objective` says what it offers), a row here, and in
`trainers/explora_config.py` its name and its sections, so that a recipe can name them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from natix_hf.errors import RecipeError

if TYPE_CHECKING:
    from natix_hf.ssl.objective import Objective

# Name -> the class, or where it lies as `module:class`.
OBJECTIVES: dict[str, str | type[Any]] = {
    "dinov2": "natix_hf.ssl.dinov2:DinoV2Objective",
    "mae": "natix_hf.ssl.mae:MaskedAutoencoder",
}


def objective_class(name: str) -> type[Objective]:
    """The class of an objective.

    Raises:
        RecipeError: there is none of this name.
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
    """The objective that the weights of such a backbone were made with."""
    return "dinov2" if model_type.startswith("dinov2") else "mae"


def settings_of(objective: type[Objective], given: Any) -> dict[str, Any]:
    """The sections of an objective: those that `given` (a mapping, or an object) holds, and defaults for the rest."""
    held = given if isinstance(given, dict) else vars(given)
    found = {name: held.get(name) for name in objective.sections}
    return {name: cls() if found[name] is None else found[name] for name, cls in objective.sections.items()}
