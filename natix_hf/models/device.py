"""The device that this process computes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch

from natix_hf.errors import UsageError, cut, first_line, shortened

_ON_CPU = "ACCELERATE_USE_CPU"


def runs_on_cpu() -> bool:
    """Tell whether training uses the CPU: there is no accelerator, or the CPU was asked for."""
    return cpu_was_asked_for() or not torch.accelerator.is_available()


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute in true float32 while this context is open.

    On recent GPUs, TF32 would round the inputs of convolutions and matrix products to 10 bits. The logits of one model
    would then differ between machines by far more than float32 rounding. A caller's autocast would round them too.
    """
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    exact: str | bool
    if hasattr(cudnn, "conv"):
        switches, name, exact = (cudnn.conv, products), "fp32_precision", "ieee"
    else:  # PyTorch below 2.9
        switches, name, exact = (cudnn, products), "allow_tf32", False
    before = [(switch, getattr(switch, name)) for switch in switches]
    try:
        for switch, _ in before:
            setattr(switch, name, exact)
        with _no_autocast():
            yield
    finally:
        for switch, value in before:
            setattr(switch, name, value)


@contextmanager
def _no_autocast() -> Iterator[None]:
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        for kind in {"cpu", "cpu" if accelerator is None else accelerator.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def default_device() -> torch.device:
    """Return the accelerator if there is one and the CPU was not asked for, otherwise the CPU."""
    accelerator = None if runs_on_cpu() else torch.accelerator.current_accelerator()
    return accelerator if accelerator is not None else torch.device("cpu")


def loader_workers(on_cpu: int) -> int:
    """Return the number of processes that make the pictures of a pass without training: `on_cpu` where the CPU also
    runs the model, else half of the cores, but at most 8. A GPU would wait for a single process."""
    return on_cpu if runs_on_cpu() else max(1, min(8, (os.cpu_count() or 1) // 2))


def use_cpu() -> None:
    """Let this process and those that it launches compute on the CPU, as `accelerate launch --cpu` does."""
    os.environ[_ON_CPU] = "true"


def cpu_was_asked_for() -> bool:
    """Tell whether `use_cpu` or `accelerate launch --cpu` has asked for the CPU."""
    return os.environ.get(_ON_CPU, "").lower() in ("1", "true")


def why_no_gpu() -> str | None:
    """Say why torch cannot use the NVIDIA GPU of this machine. None if it can, or if there is no such GPU."""
    if torch.accelerator.is_available():
        return None
    gpus = _gpus_of_the_driver()
    if not gpus:
        return None
    found = f"this machine has {' and '.join(sorted(set(gpus)))}, but PyTorch {torch.__version__} cannot use it"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles"):
        return f"{found}: CUDA_VISIBLE_DEVICES is {cut(hidden)}, which hides it: unset it"
    if torch.version.cuda is None:
        return f"{found}: it is a build for the CPU: install a build for CUDA that your driver supports"
    try:
        torch.zeros(1, device="cuda")
        reason = "it does not say why"
    except Exception as error:  # RuntimeError, AssertionError, or the driver's own
        reason = shortened(str(first_line(error)), 200)
    return f"{found}: it needs a driver for CUDA {torch.version.cuda} ({reason}): install a build for your driver"


def _gpus_of_the_driver() -> list[str]:
    """The names of the NVIDIA GPUs that the driver shows here, whether torch can use them or not."""
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run([tool, "-L"], capture_output=True, encoding="utf-8", errors="replace", timeout=30)
            names = re.findall(r"^GPU \d+: (.+?) \(UUID", done.stdout, re.MULTILINE)
            if names:
                return [f"an {name}" if name.startswith("NVIDIA") else f"a {name}" for name in names]
    # In a container without the tool. The nodes are the container's own, /proc would show the GPUs of its host.
    return ["an NVIDIA GPU" for _ in Path("/dev").glob("nvidia[0-9]*")]


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
