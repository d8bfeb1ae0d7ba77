"""The device that this process computes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from natix_hf.errors import UsageError, cut, first_line, shortened


def runs_on_cpu() -> bool:
    """Tell whether training uses the CPU: there is no accelerator, or `accelerate launch --cpu` asked for it."""
    return not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute in true float32 while this context is open.

    On recent GPUs, TF32 would round the inputs of convolutions and matrix products to 10 bits. The logits of one model
    would then differ between machines by far more than float32 rounding.
    """
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = convolutions.fp32_precision, products.fp32_precision
    convolutions.fp32_precision = products.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision, products.fp32_precision = before


def default_device() -> torch.device:
    """Return the accelerator if there is one, otherwise the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator if accelerator is not None else torch.device("cpu")


def usable_device(device: object) -> torch.device:
    """Return a device that was asked for by name.

    Raises:
        [`UsageError`]: torch does not know it, or cannot compute on it here.
    """
    try:
        if isinstance(device, bool) or not isinstance(device, str | torch.device):
            raise TypeError("it must be the name of a device, such as cpu or cuda:0")
        found = torch.device(device)
        if found.type == "meta":
            raise ValueError("nothing is computed on it")
        torch.zeros(1, device=found)
    except Exception as error:  # each kind of device has its own
        reason = shortened(str(first_line(error)), 200)
        raise UsageError(f"device is {cut(device)}, which cannot be used here ({reason}): leave it out") from None
    return found


def device_line() -> str:
    """Describe the devices that this process may compute on, in one line."""
    version = f"PyTorch {torch.__version__}"
    if runs_on_cpu():
        return f"CPU, {os.cpu_count()} cores, {version}"
    if not torch.cuda.is_available():
        return f"{default_device()}, {version}"
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in names)
    return f"{gpus}, {'with' if torch.cuda.is_bf16_supported() else 'without'} bf16, {version}"
