"""Which modules of a model an adapter changes, by the last parts of their names. Light, as the table of adapters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from natix_hf.errors import RecipeError, cut

if TYPE_CHECKING:
    from torch import nn

# Queries and values, as ViTs and as Swin V2 call them; the linear layers of a block of ConvNeXt V2.
LAYERS = ("q_proj", "v_proj", "query", "value", "pwconv1", "pwconv2")
# The last linear layer of a block, whose input IA3 scales.
LAST = ("fc2", "down_proj", "blocks.output.dense", "pwconv2")


def target_modules(model: nn.Module, wanted: Any, where: str) -> list[str]:
    """List the full names of the modules of the live model that end in one of `wanted`.

    Args:
        where (`str`): The section of the recipe, for errors.

    Raises:
        [`RecipeError`]: there is none, `wanted` is no list of names, or it names the classifier layer.
    """
    from torch import nn

    key = f"{where}.adapter_options.target_modules"
    wanted = names_in_option(wanted, key)
    if any(name.partition(".")[0] == "classifier" for name in wanted):
        raise RecipeError(f"{key}: leave the classifier layer out, it is trained without an adapter")
    found = [name for name, _ in model.named_modules() if ends_in(name, wanted)]
    if not found:
        linear = [name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)]
        ends = sorted({last for last in linear if not last.isdigit()} - {"classifier"})
        raise RecipeError(f"{key}: no module ends in {' or '.join(wanted)}: there are {', '.join(ends)}")
    return found


def names_in_option(value: Any, key: str) -> tuple[str, ...]:
    """The names that an option holds.

    Raises:
        [`RecipeError`]: it is no list of names.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value) or not value:
        raise RecipeError(f"{key} is {cut(value)}: expected a list of module names")
    return tuple(value)


def ends_in(name: str, wanted: tuple[str, ...]) -> bool:
    """Whether a module's name ends in one of `wanted`, with the numbers of blocks and stages in it or without."""
    unnumbered = ".".join(part for part in name.split(".") if not part.isdigit())
    return any(f".{full}".endswith(f".{end}") for full in (name, unnumbered) for end in wanted)


def common_width(model: nn.Module, targets: list[str]) -> int:
    """The largest number that divides every width of the linear layers among some modules; 1 if there are none."""
    modules: list[Any] = [model.get_submodule(name) for name in targets]
    linear = [module for module in modules if hasattr(module, "in_features")]
    return math.gcd(*(side for module in linear for side in (module.in_features, module.out_features))) or 1
