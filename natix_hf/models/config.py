"""The recipe's `model:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from natix_hf.errors import RecipeError
from natix_hf.section import Section

PACKAGED_PREFIX = "packaged:"


@dataclass(frozen=True)
class ModelConfig(Section):
    """The vision transformer to start from."""

    place: ClassVar[str] = "model"

    backbone: Annotated[
        str | None, "Pretrained weights: a Hub id, a folder, or packaged:NAME; null starts from random ones."
    ] = None
    revision: Annotated[str | None, "Branch, tag or commit of a backbone on the Hub."] = None
    config: Annotated[
        dict[str, Any],
        "Fields of the backbone's transformers config to override; without a backbone the whole architecture, with a "
        "model_type.",
    ] = field(default_factory=dict)
    image_size: Annotated[int, "Height and width of what the model sees, in px."] = 224

    def check(self) -> None:
        self.require(self.image_size >= 1, "image_size", "at least 1")
        if self.backbone is None and "model_type" not in self.config:
            raise RecipeError(
                "model: name a backbone, or give model.config with a model_type to start from random weights"
            )
