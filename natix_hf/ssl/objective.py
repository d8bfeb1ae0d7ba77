"""The interface of a self-supervised objective: one class that holds its method, settings and views."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from natix_hf.data.config import Augment
from natix_hf.data.rows import Rows


class Objective(Protocol):
    """A module whose forward pass takes a batch of views and returns `{"loss": scalar, ...}` with other figures.

    The other figures have no gradient. A module must not have an attribute `config`, because Trainer would write into
    it as into the config of a transformers model. `step` counts optimizer steps. `on_step_begin` and `on_gradients`
    get the number of steps done before, `on_step_end` gets the number including the current one.

    Attributes:
        sections: Settings of the objective: the name of each section under `phase4:`, and its frozen dataclass. The
            defaults are those of the method. `check`, `build` and `views` get one instance of each by keyword.
        takes_decoder: Whether `build` can use a decoder that was pretrained with the backbone.
        without_decay: Last parts of the names of parameters that get no weight decay, beside biases and norms.
        no_stream: Why it cannot train on a stream. None if it can.
        decoder_from: "pretrained" or "fresh" if the objective has a decoder, which is discarded after training. None
            if it has no decoder.
    """

    sections: ClassVar[dict[str, type]]
    takes_decoder: ClassVar[bool]
    without_decay: ClassVar[tuple[str, ...]]
    no_stream: ClassVar[str | None]
    decoder_from: str | None

    @classmethod
    def check(cls, backbone: PreTrainedModel, image_size: int, **sections: Any) -> None:
        """Check that the settings fit the backbone, which may be on the meta device. Raises RecipeError if not."""

    @classmethod
    def build(cls, student: nn.Module, image_size: int, seed: int, decoder: Any, images: int, **sections: Any) -> Self:
        """Make the objective around a student whose trainable weights are already chosen.

        Args:
            student: A backbone, or a PeftModel around one.
            image_size: Side of the square views in px.
            seed: Seed of new weights.
            decoder: A decoder that was pretrained with the backbone, or None.
            images: Number of different images to train on. It means nothing with a stream.
        """

    @classmethod
    def views(
        cls, images: Rows, processor: Any, patch_size: int, augment: Augment, seed: int, **sections: Any
    ) -> Dataset[Any]:
        """Make the training views, indexed by `(epoch, row)`. Their draws depend only on (seed, epoch, row).

        Where the views have a method `finish`, it turns a batch of their items, already on the device, into the
        inputs of the objective: pictures may travel as bytes.

        With `phase4.stream`, `images` is a sample, and training calls `draw` of the views (`natix_hf.data.stream`).
        """

    def __call__(self, **batch: torch.Tensor) -> dict[str, Any]: ...

    def backbone(self) -> Any:
        """Return the encoder that is kept after training. With a teacher it is the teacher's."""

    def on_step_begin(self, step: int, total_steps: int) -> None:
        """Set all values that follow a schedule."""

    def weight_decay(self, step: int, total_steps: int, start: float) -> float:
        """Return the weight decay for the next step. `start` is the configured one."""

    def on_gradients(self, step: int, total_steps: int) -> None:
        """Change gradients. Called after the backward pass, before the optimizer step."""

    def on_step_end(self, step: int, total_steps: int) -> None:
        """Update moving averages. Called after the optimizer step."""

    def untrained_state(self) -> dict[str, torch.Tensor]:
        """Return copies of all tensors that change without a gradient. A checkpoint stores them."""

    def load_untrained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the result of `untrained_state`. Names and shapes must match."""


class PlainObjective(nn.Module):
    """A base class for an objective without a schedule, a teacher or checks of its own."""

    sections: ClassVar[dict[str, type]] = {}
    takes_decoder: ClassVar[bool] = False
    without_decay: ClassVar[tuple[str, ...]] = ()
    no_stream: ClassVar[str | None] = None
    decoder_from: str | None = None

    @classmethod
    def check(cls, backbone: PreTrainedModel, image_size: int, **sections: Any) -> None:
        """Accept every backbone."""

    def on_step_begin(self, step: int, total_steps: int) -> None:
        """Do nothing, because there is no schedule."""

    def weight_decay(self, step: int, total_steps: int, start: float) -> float:
        """Keep the weight decay constant."""
        return start

    def on_gradients(self, step: int, total_steps: int) -> None:
        """Do nothing, because no gradient needs a change."""

    def on_step_end(self, step: int, total_steps: int) -> None:
        """Do nothing, because there is no moving average."""

    def untrained_state(self) -> dict[str, torch.Tensor]:
        """Return nothing, because all changes come from gradients."""
        return {}

    def load_untrained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Do nothing."""
