"""What a self-supervised objective is: one class with its method, its settings and its views."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from natix_hf.data.config import Augment
from natix_hf.data.rows import Rows


class Objective(Protocol):
    """A module whose forward takes a batch of views and returns `{"loss": scalar, ...figures without gradient}`.

    Attributes:
        sections: settings that the objective takes, by name: a frozen dataclass whose defaults are the method's. The
            names are those of the sections of `phase4:` in a recipe. `check`, `build` and `views` get an instance of
            each by keyword.
        takes_decoder: whether `build` can use a decoder that was pretrained with the backbone.
        decoder_from: "pretrained" or "fresh" where the objective has a decoder, which is thrown away; else None.

    A module must not call an attribute `config`: Trainer writes into it, as it does into that of a transformers model.

    `step` counts optimizer steps: `on_step_begin` and `on_gradients` get the number done before, `on_step_end` the
    number done.
    """

    sections: ClassVar[dict[str, type]]
    takes_decoder: ClassVar[bool]
    decoder_from: str | None

    @classmethod
    def check(cls, backbone: PreTrainedModel, image_size: int, **sections: Any) -> None:
        """Refuse settings that do not fit the backbone, which may be on the meta device. Raises RecipeError."""

    @classmethod
    def build(cls, student: nn.Module, image_size: int, seed: int, decoder: Any, **sections: Any) -> Self:
        """Make the objective around a student whose trainable weights have been chosen.

        Args:
            student: a backbone, or a PeftModel around one.
            image_size: px of the square views.
            seed: of fresh weights.
            decoder: one that was pretrained with the backbone, or None.
        """

    @classmethod
    def views(
        cls, images: Rows, processor: Any, patch_size: int, augment: Augment, seed: int, **sections: Any
    ) -> Dataset[Any]:
        """Make the training views: indexed by `(epoch, row)`, each drawn from (seed, epoch, row) alone."""

    def __call__(self, **batch: torch.Tensor) -> dict[str, Any]: ...

    def backbone(self) -> Any:
        """Return what is kept: the adapted encoder (the teacher's, where there is a teacher)."""

    def on_step_begin(self, step: int, total_steps: int) -> None:
        """Set what follows a schedule."""

    def weight_decay(self, step: int, total_steps: int, start: float) -> float:
        """Return the weight decay of the coming step; `start` is the one that was asked for."""

    def on_gradients(self, step: int, total_steps: int) -> None:
        """Called after backward, before the optimizer."""

    def on_step_end(self, step: int, total_steps: int) -> None:
        """Called after the optimizer: moving averages."""

    def untrained_state(self) -> dict[str, torch.Tensor]:
        """Return copies of what changes without a gradient; a checkpoint holds them beside the trained parameters."""

    def load_untrained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `untrained_state` gave, strictly."""


class PlainObjective(nn.Module):
    """The parts of `Objective` that most objectives leave empty: no schedule, no teacher, nothing to check."""

    sections: ClassVar[dict[str, type]] = {}
    takes_decoder: ClassVar[bool] = False
    decoder_from: str | None = None

    @classmethod
    def check(cls, backbone: PreTrainedModel, image_size: int, **sections: Any) -> None:
        """Accept every backbone."""

    def on_step_begin(self, step: int, total_steps: int) -> None:
        """Do nothing: there is no schedule."""

    def weight_decay(self, step: int, total_steps: int, start: float) -> float:
        """Keep the weight decay constant."""
        return start

    def on_gradients(self, step: int, total_steps: int) -> None:
        """Do nothing: no part is held back."""

    def on_step_end(self, step: int, total_steps: int) -> None:
        """Do nothing: there is no moving average."""

    def untrained_state(self) -> dict[str, torch.Tensor]:
        """Return nothing: every change has a gradient."""
        return {}

    def load_untrained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Do nothing."""
