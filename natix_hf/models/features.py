"""Features of a frozen backbone: the input of the classifier layer, computed once and kept in a memory-mapped file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from natix_hf.data.views import finished
from natix_hf.models.classifier import head_of
from natix_hf.models.device import full_float32
from natix_hf.provenance.alone import alone
from natix_hf.provenance.files import atomic_file, json_sha256

View = tuple[Dataset[Any], Sequence[Any]]


class Head(nn.Module):
    """The classifier layer on its own: `features` float [n, d] -> {"logits": float [n, 2]}."""

    def __init__(self, classifier: nn.Linear) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.classifier(features)}


def cache_folder() -> Path:
    """Return the folder of data that runs share. It is beside the Hub's cache, so `HF_HOME` moves both."""
    return Path(os.environ.get("NATIX_HF_CACHE", Path(HF_HOME) / "natix_hf"))


def weights_sha256(model: nn.Module, with_head: bool = False) -> str:
    """Hash every tensor of a model, with or without those of the classifier layer."""
    facts = []
    for name, tensor in sorted(model.state_dict().items()):
        if with_head or not name.startswith("classifier."):
            values = tensor.detach().cpu().contiguous()
            digest = hashlib.sha256(values.reshape(-1).view(torch.uint8).numpy()).hexdigest()
            facts.append([name, str(values.dtype), list(values.shape), digest])
    return json_sha256(facts)


def _settings(model: nn.Module) -> dict[str, str]:
    """The facts about a model that its weights do not show, such as heads, activation and epsilon."""
    config = getattr(model, "config", None)
    facts = config.to_dict() if config is not None else {}
    ignored = ("_name_or_path", "transformers_version", "architectures")
    return {"class": type(model).__name__} | {k: repr(v) for k, v in facts.items() if k not in ignored}


def cached_features(
    model: nn.Module, views: list[View], key: Any, batch_size: int, workers: int, device: torch.device
) -> np.ndarray:
    """Compute the input of the classifier layer for every view of every row, or read it from the cache.

    Args:
        model (`nn.Module`): A classifier.
        views (`list` of `(dataset, keys)`): Each with the same number n of keys; `dataset[key]` yields `pixel_values`,
            which `finished` completes.
        key: Everything that the features depend on beside the weights (rows, processor, augmentation), as plain JSON
            values. Equal weights and an equal key give the cached file.
        batch_size, workers (`int`): Of the loader.
        device (`torch.device`): Where to compute.

    Returns:
        `np.ndarray` of float32, of shape `(views, n, d)`, memory-mapped.
    """
    path = cache_folder() / "features" / f"{json_sha256([weights_sha256(model), _settings(model), key])}.npy"
    if not path.is_file():
        with alone(path, "computing the same features"):
            if not path.is_file():
                _compute_into(path, model, views, batch_size, workers, device)
    cached: np.ndarray = np.load(path, mmap_mode="r")
    return cached


def _compute_into(
    path: Path, model: nn.Module, views: list[View], batch_size: int, workers: int, device: torch.device
) -> None:
    try:
        with atomic_file(path) as temporary:
            _compute(model.to(device).eval(), views, temporary, batch_size, workers, device)
    except PermissionError:
        if not path.is_file():  # on Windows, if another run was quicker and has the file open: use that file
            raise


def _compute(
    model: nn.Module, views: list[View], path: Path, batch_size: int, workers: int, device: torch.device
) -> None:
    head = head_of(model)
    shape = (len(views), len(views[0][1]), head.in_features)
    features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    captured: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        with torch.inference_mode(), full_float32():
            for number, (dataset, keys) in enumerate(views):
                loader = DataLoader(dataset, sampler=keys, batch_size=batch_size, num_workers=workers)
                start = 0
                for batch in tqdm(loader, desc=f"features, view {number + 1} of {len(views)}", disable=None):
                    moved = {name: values.to(device) for name, values in batch.items()}
                    model(pixel_values=finished(dataset, moved)["pixel_values"])
                    values = captured.pop().float().cpu().numpy()
                    features[number, start : start + len(values)] = values
                    start += len(values)
        features.flush()
    finally:
        hook.remove()
        del features  # Windows cannot rename or delete a file while it is mapped, even by the frame of a traceback
