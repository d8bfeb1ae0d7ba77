"""One way to a logit: stored logits of val and test rows and the answers of `predict` come from here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from natix_hf.data.images import open_image
from natix_hf.models.classifier import head_of, load_classifier, logit_difference
from natix_hf.models.device import default_device, full_float32
from natix_hf.models.preprocess import Preprocess, load_processor


class ImageList(Dataset[dict[str, torch.Tensor]]):
    """Any images (paths, PIL images, uint8 arrays, `datasets` cells) through the preprocessing."""

    def __init__(self, images: Sequence[Any], preprocess: Preprocess) -> None:
        self.images = images
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.images[index]
        name = str(image) if isinstance(image, str | Path) else f"image {index}"
        return {"pixel_values": self.preprocess(open_image(image, name))}


class Inference:
    """A merged model folder in float32, ready to answer. No randomness, no augmentation, no half precision."""

    def __init__(self, folder: Path, device: torch.device | str | None = None) -> None:
        self.device = torch.device(device) if device is not None else default_device()
        self.model: nn.Module = load_classifier(folder)
        self.model.eval().to(self.device)
        self.preprocess = Preprocess(load_processor(folder))

    def logits(
        self, dataset: Dataset[Any], batch_size: int = 32, workers: int = 0, label: str | None = None
    ) -> np.ndarray:
        """float64 [n], label 1 over label 0, of a dataset that yields `pixel_values`. `label` names a progress bar."""
        return self.logits_and_features(dataset, batch_size, workers, label)[0]

    @torch.inference_mode()
    def logits_and_features(
        self, dataset: Dataset[Any], batch_size: int = 32, workers: int = 0, label: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`logits`, and the input of the classifier layer behind each, float32 [n, d], from the same forward pass."""
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers)
        head, seen = head_of(self.model), []
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu().numpy()))
        try:
            with full_float32():
                parts = [
                    logit_difference(
                        self.model(pixel_values=batch["pixel_values"].to(self.device)).logits.cpu().numpy()
                    )
                    for batch in tqdm(loader, desc=label, disable=None if label else True)
                ]
        finally:
            hook.remove()
        empty = np.zeros((0, head.in_features), dtype=np.float32)
        return np.concatenate([np.zeros(0), *parts]), np.concatenate([empty, *seen])
