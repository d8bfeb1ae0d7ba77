"""Which device this process computes on."""

from __future__ import annotations

import os

import torch


def runs_on_cpu() -> bool:
    """Whether training here uses the CPU: there is no accelerator, or `accelerate launch --cpu` asked for it."""
    return not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator if accelerator is not None else torch.device("cpu")
