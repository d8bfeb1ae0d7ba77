"""The table of self-supervised objectives. The module of an objective is imported only when it is needed.

To add an objective, write a module with its class (see `natix_hf.ssl.objective`) and a module with its settings if it
has any. Then add a row to `OBJECTIVES` and a field to `ObjectiveSections`, so that a recipe can set them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from natix_hf.data.crops_config import CropConfig
from natix_hf.errors import RecipeError, cut
from natix_hf.models.architectures import architecture_of
from natix_hf.section import LATER, Section
from natix_hf.ssl.diet_config import DietConfig
from natix_hf.ssl.dinov2_config import DinoV2Config
from natix_hf.ssl.mae_config import MaeConfig

if TYPE_CHECKING:
    from natix_hf.ssl.objective import Objective

# Name -> the class, or its place as `module:class`.
OBJECTIVES: dict[str, str | type[Any]] = {
    "dinov2": "natix_hf.ssl.dinov2:DinoV2Objective",
    "mae": "natix_hf.ssl.mae:MaskedAutoencoder",
    "diet": "natix_hf.ssl.diet:Diet",
}
# How an objective trains. Where the same settings train otherwise than before, raise its number (it begins at 1): what
# an older version trained is then not taken for current.
VERSIONS: dict[str, int] = {"dinov2": 2}  # 2: ema_keeps, frozen prototypes, layer scale without decay


@dataclass(frozen=True, kw_only=True)
class ObjectiveSections(Section):
    """The sections of `phase4:` that hold the settings of objectives.

    A new one is `field(default_factory=…, metadata=LATER)`: runs that were made without it stay current.
    """

    mae: MaeConfig = field(default_factory=MaeConfig)
    dinov2: DinoV2Config = field(default_factory=DinoV2Config)
    crops: CropConfig = field(default_factory=CropConfig)
    diet: DietConfig = field(default_factory=DietConfig, metadata=LATER)


def objective_class(name: str) -> type[Objective]:
    """Look up the class of an objective.

    Raises:
        RecipeError: If there is no objective of this name.
    """
    if name not in OBJECTIVES:
        raise RecipeError(f"phase4.objective is {cut(name)}: allowed is {' | '.join(OBJECTIVES)}")
    found = OBJECTIVES[name]
    if isinstance(found, str):
        module, _, cls = found.partition(":")
        found = getattr(importlib.import_module(module), cls)
    assert isinstance(found, type)
    return found


def version_of(name: str) -> int:
    """The version of an objective, from `VERSIONS`."""
    return VERSIONS.get(name, 1)


def default_objective(model_type: str) -> str:
    """Name of the objective that the public weights of backbones of this type were pretrained with."""
    found = architecture_of(model_type)
    return "mae" if found is None or found.objective is None else found.objective


def takes_decoder(name: str | None) -> bool:
    """Whether an objective can use a pretrained decoder.

    None, the backbone's default objective, can: a backbone with a decoder was trained by masked autoencoding.
    """
    return name is None or objective_class(name).takes_decoder


def settings_of(objective: type[Objective], given: Any) -> dict[str, Any]:
    """Collect the settings of an objective from `given`, a mapping or an object. A missing section gets defaults."""
    held = given if isinstance(given, dict) else vars(given)
    found = {name: held.get(name) for name in objective.sections}
    return {name: cls() if found[name] is None else found[name] for name, cls in objective.sections.items()}
