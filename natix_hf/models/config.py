"""The recipe's `model:` section."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from natix_hf.errors import RecipeError, require
from natix_hf.section import Section

# The largest numbers of a transformers config. The largest vision transformer, of 22 billion weights, has 48 layers.
_MOST_LAYERS = 1000
_MOST = {"num_attention_heads": 1024, "hidden_size": 65_536, "patch_size": 8192}
_MOST_OTHERWISE = 10**6
PACKAGED_PREFIX = "packaged:"
_BUNDLE = os.path.join("phase6_export", "bundle")  # in a run


@dataclass(frozen=True)
class ModelConfig(Section):
    """The vision model to start from."""

    place: ClassVar[str] = "model"

    backbone: Annotated[
        str | None,
        "Pretrained weights: a Hub id, a folder, a finished run (its bundle), or packaged:NAME; null starts from "
        "random ones.",
    ] = None
    revision: Annotated[str | None, "Branch, tag or commit of a backbone on the Hub."] = None
    config: Annotated[
        dict[str, Any],
        "Fields of the backbone's transformers config to override; without a backbone the whole architecture, with a "
        "model_type.",
    ] = field(default_factory=dict)
    image_size: Annotated[int, "Height and width of what the model sees, in px."] = 224

    def check(self) -> None:
        object.__setattr__(self, "backbone", bundle_of_run(self.backbone) if self.backbone is not None else None)
        self.require_within("image_size", 1, 8192)
        for name, value in self.config.items():  # a layer more costs time even where no weight is made yet
            most = _MOST_LAYERS if "layers" in name else _MOST.get(name, _MOST_OTHERWISE)
            fits = not isinstance(value, int | float) or abs(value) <= most
            require(fits, f"model.config.{name}", value, f"at most {most:,}")
        if self.backbone is None and "model_type" not in self.config:
            raise RecipeError(
                "model: name a backbone, or give model.config with a model_type to start from random weights"
            )


def bundle_of_run(backbone: str) -> str:
    """The bundle of a finished run, if `backbone` is the folder of one. Everything else stays as it is."""
    bundle = os.path.join(backbone, _BUNDLE)
    return bundle if os.path.isfile(os.path.join(bundle, "config.json")) else backbone
