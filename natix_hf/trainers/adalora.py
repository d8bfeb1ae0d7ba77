"""Support for AdaLoRA. It reallocates its ranks in training, so PEFT needs a call in every step with gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

ALLOCATOR = "adalora.safetensors"
_PATTERN = "rank_pattern"
_MEMORY = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLoraCallback(TrainerCallback):
    """Call `update_and_allocate` in every step, and keep the allocator's averages over a resume."""

    def __init__(self, model: PeftModel) -> None:
        self.tuner: Any = model.base_model

        self._config: Any = model.peft_config[model.active_adapter]

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.tuner.update_and_allocate(state.global_step + 1)

    def save(self, checkpoint: Path) -> None:
        memory = {
            f"{kind}:{name}": value.contiguous()
            for kind in _MEMORY
            for name, value in getattr(self.tuner.rankallocator, kind).items()
        }
        memory |= {
            f"{_PATTERN}:{name}": torch.tensor(kept) for name, kept in (self._config.rank_pattern or {}).items()
        }
        save_file(memory, checkpoint / ALLOCATOR)

    def load(self, checkpoint: Path) -> None:
        device = str(next(self.tuner.parameters()).device)
        for key, value in load_file(checkpoint / ALLOCATOR, device=device).items():
            kind, _, name = key.partition(":")
            if kind == _PATTERN:
                self._config.rank_pattern = (self._config.rank_pattern or {}) | {name: value.tolist()}
                continue
            getattr(self.tuner.rankallocator, kind)[name] = value
