"""One way to a logit: stored logits of val and test rows and the answers of `predict` come from here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from natix_hf.bundle.contents import ONNX
from natix_hf.data.images import open_image
from natix_hf.errors import UsageError, VerificationError, first_line
from natix_hf.models.classifier import head_of, load_classifier, logit_difference
from natix_hf.models.device import default_device, full_float32
from natix_hf.models.positions import fix_positions
from natix_hf.models.preprocess import Preprocess, load_processor

# What the two files of a bundle are run by, and in which precision.
Backend = Literal["torch", "onnx"]
Precision = Literal["float32", "bfloat16"]
# pixel_values float32 [n, 3, H, W] -> logits [n, 2] and the inputs of the classifier layer [n, d], both float32.
Forward = Callable[[torch.Tensor], tuple[np.ndarray, np.ndarray]]


class ImageList(Dataset[dict[str, torch.Tensor]]):
    """Any images (paths, PIL images, uint8 arrays, `datasets` cells) through the preprocessing."""

    def __init__(self, images: Sequence[Any], preprocess: Preprocess) -> None:
        self.images = images
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.images[index]
        return {"pixel_values": self.preprocess(open_image(image, image_name(image, index)))}


def image_name(image: Any, index: int) -> str:
    """What an error line calls an image: its path, or its place."""
    return str(image) if isinstance(image, str | Path) else f"image {index}"


class Inference:
    """A merged model folder, ready to answer: no randomness, no augmentation, float32 unless asked otherwise.

    Args:
        device: as torch names it; None takes the accelerator if there is one.
        backend: "onnx" runs the folder's `model.onnx` on the CPU, by onnxruntime.
        precision: "bfloat16" computes everything but the classifier layer in it; of PyTorch alone.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str | None = None,
        backend: Backend = "torch",
        precision: Precision = "float32",
    ) -> None:
        self.backend = backend
        self.device = torch.device(device) if device is not None else default_device()
        self.preprocess = Preprocess(load_processor(folder))
        image_size = self.preprocess.image_size  # refused here if it is no square, whatever runs the model
        if backend == "onnx":
            self._forward = onnx_forward(folder / ONNX)
        else:
            self.model: nn.Module = load_classifier(folder)
            self.model.eval().to(self.device)
            self._forward = torch_forward(self.model, self.device, precision)
            fix_positions(self.model, image_size)  # in that precision

    def answer(self, pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The logit of each image, float64 [n], label 1 over label 0, and the input of the classifier layer behind
        it, float32 [n, d], from one forward pass over `pixel_values` float32 [n, 3, H, W]."""
        logits, features = self._forward(pixel_values)
        return logit_difference(logits), features

    def logits(
        self, dataset: Dataset[Any], batch_size: int = 32, workers: int = 0, label: str | None = None
    ) -> np.ndarray:
        """float64 [n], label 1 over label 0, of a dataset that yields `pixel_values`. `label` names a progress bar."""
        return self.logits_and_features(dataset, batch_size, workers, label)[0]

    def logits_and_features(
        self, dataset: Dataset[Any], batch_size: int = 32, workers: int = 0, label: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`answer` for a dataset that yields `pixel_values`: float64 [n] and float32 [n, d]."""
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers)
        bar = tqdm(loader, desc=label, disable=None if label else True)
        answers = [self.answer(batch["pixel_values"]) for batch in bar]
        if not answers:
            return np.zeros(0), np.zeros((0, 0), dtype=np.float32)
        logits, features = zip(*answers, strict=True)
        return np.concatenate(logits), np.concatenate(features)


def torch_forward(model: nn.Module, device: torch.device, precision: Precision = "float32") -> Forward:
    """The forward pass of a classifier in PyTorch.

    In bfloat16 the classifier layer stays float32: its logits would be rounded to steps of 1/64 where they are 2 to 4,
    and with them the threshold that is folded into its bias.
    """
    dtype, head = getattr(torch, precision), head_of(model)
    kept = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    nn.Module.to(model, dtype=dtype)
    head.float().load_state_dict(kept)
    seen: list[torch.Tensor] = []

    def see(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        seen.append(inputs[0].float())
        return (seen[-1],)

    head.register_forward_pre_hook(see)
    one_at_a_time = threading.Lock()  # the hook and the float32 setting are the whole process's

    def forward(pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        with one_at_a_time, torch.inference_mode(), full_float32():
            logits = model(pixel_values=pixel_values.to(device, dtype)).logits
            return logits.cpu().numpy(), seen.pop().cpu().numpy()

    return forward


def onnx_forward(path: Path) -> Forward:
    """The forward pass of a bundle's ONNX file on the CPU, with as many threads as torch would take.

    Raises:
        UsageError: onnxruntime is not installed. VerificationError: it cannot run the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"{path.name} is run by onnxruntime: pip install 'natix_hf[onnx]' ({error})") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Between two calls its threads would keep a core busy, which decoding and PyTorch need.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors alone: a user can do nothing about the others
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many classes, with no base of their own
        reason = first_line(error)
        raise VerificationError(f"{path} cannot be run ({reason})") from None
    names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    if names != ["pixel_values", "logits", "features"]:
        raise VerificationError(f"{path} has other inputs and outputs than a bundle's: {', '.join(names)}")

    def forward(pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        logits, features = session.run(["logits", "features"], {"pixel_values": pixel_values.cpu().numpy()})
        return logits, features

    return forward
