"""What can run the model of a bundle here, found out without importing torch. This module imports nothing heavy."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from natix_hf.errors import UsageError, cut

if TYPE_CHECKING:
    import torch

# What runs the model of a bundle, and in which precision.
Backend = Literal["torch", "compile", "onnx", "openvino"]
AUTO = "auto"
Precision = Literal["float32", "bfloat16"]
_OTHER_NAMES = {"bf16": "bfloat16", "fp32": "float32"}
# What shows that an accelerator may be here: the nodes of NVIDIA, AMD, Intel, Habana, Ascend and others, and of WSL.
_NODES = ("nvidia*", "kfd", "dri/renderD*", "dxg", "accel*", "davinci*", "hl[0-9]*")


def precision_named(name: Any) -> Any:
    """A precision by its full name."""
    return _OTHER_NAMES.get(name, name) if isinstance(name, str) else name


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # a finder that refuses
        return False


def kind_of_device(device: str | torch.device | None) -> str:
    """The kind of a device, such as `"cpu"` or `"cuda"`. None stands for the accelerator, or the CPU without one.

    torch is imported only if it is here and the machine may have an accelerator, or if another device is named.

    Raises:
        UsageError: the device that was named cannot be used here.
    """
    if device == "cpu":
        return "cpu"
    if device is None and not _may_have_accelerator():
        return "cpu"
    if not is_installed("torch"):
        raise UsageError(f"device is {cut(device)}, which needs PyTorch: leave it out, or install torch")
    from natix_hf.models.device import default_device, usable_device

    return (default_device() if device is None else usable_device(device)).type


def _may_have_accelerator() -> bool:
    """Whether PyTorch might find an accelerator. False only if it is sure to find none."""
    if "torch" in sys.modules:
        return sys.modules["torch"] is not None
    if not is_installed("torch") or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        return False
    if sys.platform != "linux":
        return True
    nodes = Path("/dev")
    return any(any(nodes.glob(name)) for name in _NODES)


def threads() -> int:
    """The number of threads that a runtime should take: torch's if it is loaded, else `OMP_NUM_THREADS`, else one for
    each core that this process may use."""
    if sys.modules.get("torch") is not None:
        return int(sys.modules["torch"].get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return _cores()


def _cores() -> int:
    """Cores that this process may use. Two threads of one core share its arithmetic, so they count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text(encoding="ascii"))
        except OSError:
            siblings.add(str(cpu))
    return len(siblings)
