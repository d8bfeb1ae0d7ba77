"""AdaLoRA moves its ranks about as it trains: PEFT must be called after every step, while gradients are there."""

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
    """Calls `update_and_allocate` with the steps done, and keeps the allocator's averages over a resume."""

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
