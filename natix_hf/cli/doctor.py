"""`natix-hf doctor`: what this machine offers to a run."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from natix_hf.provenance.manifest import package_versions

_OPTIONAL = {
    "tensorboard": "shows training curves; set phase1.report_to=tensorboard",
    "trackio": "the same; set phase1.report_to=trackio",
    "onnxruntime": "runs a bundle's model.onnx; pip install 'natix_hf[onnx]'",
    "torchvision": "not needed",
}
_LOW_DISK_GB = 10


def check() -> tuple[list[str], list[str]]:
    """The facts and the warnings, one line each."""
    import torch

    from natix_hf.models.device import device_line, why_no_gpu

    facts = [f"device: {device_line()}", *(f"{name} {version}" for name, version in package_versions().items())]
    warnings = [
        f"{name} is not installed: install natix_hf again"
        for name, v in package_versions().items()
        if v == "not installed"
    ]
    hidden = why_no_gpu()
    if hidden is not None:
        warnings.append(hidden)
    facts += [
        f"optional {name}: {'installed' if importlib.util.find_spec(name) else 'not installed'} ({use})"
        for name, use in _OPTIONAL.items()
    ]
    facts += list(_devices(torch.cuda.device_count()))
    facts.append(f"cores: {os.cpu_count()}, torch threads: {torch.get_num_threads()}")
    memory = _memory_gb()
    facts.append(f"memory: {memory:.1f} GB" if memory else "memory: unknown on this system")
    from natix_hf.models.features import cache_folder

    for what, folder in {"outputs": Path.cwd(), "cache": cache_folder()}.items():
        free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free / 1e9
        facts.append(f"disk for {what}: {free:.0f} GB free at {folder}")
        if free < _LOW_DISK_GB:
            warnings.append(f"only {free:.1f} GB free for {what} at {folder}: checkpoints and caches may not fit")
    if not os.access(Path.cwd(), os.W_OK):
        warnings.append(f"{Path.cwd()} is not writable: change to another folder, or set --run-dir")
    facts.append(_hub())
    return facts, warnings


def _devices(cuda_devices: int) -> Iterator[str]:
    import torch

    for index in range(cuda_devices):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        yield f"GPU {index}: {properties.name}, {properties.total_memory / 1e9:.0f} GB, {bf16} bf16"
    if not cuda_devices:
        other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        yield f"accelerator: {other}" if other else "accelerator: none, so everything runs on the CPU"


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def _hub() -> str:
    from huggingface_hub import HfApi, constants, get_token

    login = "a token is set" if get_token() else "no token (private repositories and push need one)"
    if constants.HF_HUB_OFFLINE:
        return f"Hub: offline because HF_HUB_OFFLINE is set; {login}"
    try:
        HfApi().model_info("facebook/dinov2-base", timeout=5)
        return f"Hub: {constants.ENDPOINT} answers; {login}"
    except Exception as error:  # the doctor reports every failure of the network
        return f"Hub: {constants.ENDPOINT} does not answer ({type(error).__name__}); {login}"
