"""What a self-supervised objective offers to `ExploraTrainer`."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Objective(Protocol):
    """A module whose forward takes a batch of views and returns `{"loss": scalar, …detached figures}`.

    `step` counts optimizer steps: `on_step_begin` and `on_gradients` get those done before, `on_step_end` those done.
    """

    def __call__(self, **batch: torch.Tensor) -> dict[str, Any]: ...

    def backbone(self) -> Any:
        """What is kept: the adapted encoder (of the teacher, where there is one)."""

    def on_step_begin(self, step: int, total_steps: int) -> None:
        """Sets what follows a schedule."""

    def weight_decay(self, step: int, total_steps: int, start: float) -> float:
        """The weight decay of the coming step; `start` is the one that was asked for."""

    def on_gradients(self, step: int, total_steps: int) -> None:
        """After backward, before the optimizer."""

    def on_step_end(self, step: int, total_steps: int) -> None:
        """After the optimizer: moving averages."""

    def untrained_state(self) -> dict[str, torch.Tensor]:
        """Copies of what changes without a gradient; a checkpoint holds it beside the trained parameters."""

    def load_untrained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes back what `untrained_state` gave, strictly."""
