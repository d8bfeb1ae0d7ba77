"""An exponential moving average of the weights, which is evaluated and kept instead of the last weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from natix_hf.trainers.checkpoints import load_tensors

AVERAGE = "average.safetensors"


class WeightAverage(TrainerCallback):
    """Keep an average of a model's trainable parameters, updated after every optimizer step.

    The update is average <- d * average + (1 - d) * weights, with d = min(decay, (1 + step) / (10 + step)). This ramp
    is that of TensorFlow's ExponentialMovingAverage; it makes the random start fade within the first steps. d depends
    on the step only, so a resumed run continues with the same numbers. Equal weights on all ranks give equal averages.

    Args:
        model: The model, on the device where it will train.
        decay: Decay of the average, in (0, 1). It covers about the last 1 / (1 - decay) steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.update(state.global_step)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the current weights, after `step` optimizer steps (1, 2, …)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self._average[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the average inside the block, and its own weights again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            own = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name] = own

    @torch.no_grad()
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the model the average for good. Callbacks that were added later see it."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._average[name])

    def save(self, checkpoint: Path) -> None:
        save_file(self._average, checkpoint / AVERAGE)

    def load(self, checkpoint: Path) -> None:
        """Load the average that `save` wrote.

        Raises:
            VerificationError: If it is missing, damaged, or belongs to another model.
        """
        load_tensors(checkpoint / AVERAGE, self._average)
