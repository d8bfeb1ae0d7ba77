"""The callback that tells a sampler the epoch."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from natix_hf.data.sampler import RowOrder


class SetEpoch(TrainerCallback):
    """Tell the sampler the epoch. accelerate cannot reach it behind its own batch samplers."""

    def __init__(self, sampler: RowOrder) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))
