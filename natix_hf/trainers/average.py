"""An exponential moving average of the weights: what is scored, chosen and kept in place of the last step's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from natix_hf.trainers.base import load_tensors

AVERAGE = "average.safetensors"


class WeightAverage(TrainerCallback):
    """Average of a model's trainable parameters, updated after every optimizer step.

    average <- d * average + (1 - d) * weights, with d = min(decay, (1 + step) / (10 + step)): the ramp, that of
    TensorFlow's ExponentialMovingAverage, lets the random start fade within the first steps. d depends on the step
    alone, so a resumed run goes on with the same numbers; equal weights on all ranks give equal averages.

    Args:
        model: on the device where it will train.
        decay: of the average, in (0, 1); about 1 / (1 - decay) steps count.
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
        """Takes in the weights as they are after `step` optimizer steps (1, 2, …)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self._average[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the average inside, and its own weights again afterwards."""
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
        """The model keeps the average; callbacks that were added later see it."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._average[name])

    def save(self, checkpoint: Path) -> None:
        save_file(self._average, checkpoint / AVERAGE)

    def load(self, checkpoint: Path) -> None:
        """Takes the average that `save` wrote.

        Raises:
            VerificationError: it is missing, damaged, or that of another model.
        """
        load_tensors(checkpoint / AVERAGE, self._average)
