"""The one way to compute a logit, for the stored logits of val and test rows and for `predict`.

Arrays of numpy go in and out, whatever runs the model. torch is imported only where it runs the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from natix_hf.bundle.backends import Backend, Precision, threads
from natix_hf.bundle.compiled import compiled_forward
from natix_hf.bundle.names import ONNX
from natix_hf.bundle.openvino import openvino_forward
from natix_hf.data.images import open_image
from natix_hf.errors import UsageError, VerificationError, first_line
from natix_hf.models.logit import logit_difference
from natix_hf.models.preprocess import Preprocess, read_settings

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

__all__ = ["Backend", "Forward", "ImageList", "Inference", "Precision", "image_name", "onnx_forward", "torch_forward"]
# pixel_values float32 [n, 3, H, W] -> logits [n, 2] and the inputs of the classifier layer [n, d], both float32.
# One that torch runs takes a tensor on its device too.
Forward = Callable[[Any], tuple[np.ndarray, np.ndarray]]


class ImageList:
    """A dataset of preprocessed images, from paths, PIL images, uint8 arrays or `datasets` cells."""

    def __init__(self, images: Sequence[Any], preprocess: Preprocess) -> None:
        self.images = images
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image = self.images[index]
        return {"pixel_values": self.preprocess.pixels(open_image(image, image_name(image, index)))}


def image_name(image: Any, index: int) -> str:
    """The name of an image in an error line: its path, or its position."""
    return str(image) if isinstance(image, str | Path) else f"image {index}"


class Inference:
    """A merged model folder, ready to answer: without randomness or augmentation, and in float32 by default.

    Args:
        device: A torch device; None takes the accelerator if there is one.
        backend: "torch" runs the safetensors in PyTorch, "compile" the same compiled for the CPU. "onnx" runs
            `model.onnx` on the CPU in onnxruntime, "openvino" in OpenVINO.
        precision: "bfloat16" computes everything but the classifier layer in bfloat16. "torch" and "openvino" can.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str | None = None,
        backend: Backend = "torch",
        precision: Precision = "float32",
    ) -> None:
        self.backend = backend
        self.preprocess = Preprocess(read_settings(folder))
        image_size = self.preprocess.image_size  # raises if it is no square, whatever runs the model
        if backend == "onnx":
            self._forward = onnx_forward(folder / ONNX)
            return
        if backend == "openvino":
            self._forward = openvino_forward(folder, precision)
            return
        from natix_hf.models.classifier import load_classifier
        from natix_hf.models.device import default_device, usable_device
        from natix_hf.models.positions import fix_positions

        asked = "cpu" if backend == "compile" else device
        self.device = usable_device(asked) if asked is not None else default_device()
        self.model: nn.Module = load_classifier(folder)
        self.model.eval().to(self.device)
        if backend == "compile":
            fix_positions(self.model, image_size)
            self._forward = compiled_forward(self.model, image_size)
            return
        self._forward = torch_forward(self.model, self.device, precision)
        fix_positions(self.model, image_size)  # after the cast, so in that precision

    def answer(self, pixel_values: np.ndarray | torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Run one forward pass over `pixel_values`, float32 [n, 3, H, W].

        Returns:
            The logits, float64 [n], label 1 over label 0; and the inputs of the classifier layer, float32 [n, d].
        """
        logits, features = self._forward(pixel_values)
        return logit_difference(logits), features

    def logits(
        self, dataset: Dataset[Any] | ImageList, batch_size: int = 32, workers: int = 0, label: str | None = None
    ) -> np.ndarray:
        """The logits, float64 [n], label 1 over label 0, of a dataset that yields `pixel_values`.

        Args:
            label: The name of a progress bar; None shows no bar.
        """
        return self.logits_and_features(dataset, batch_size, workers, label)[0]

    def logits_and_features(
        self, dataset: Dataset[Any] | ImageList, batch_size: int = 32, workers: int = 0, label: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The logits, float64 [n], and inputs of the classifier layer, float32 [n, d], of a dataset that yields
        `pixel_values`."""
        from torch.utils.data import DataLoader
        from tqdm.auto import tqdm

        loader: DataLoader[Any] = DataLoader(dataset, batch_size=batch_size, num_workers=workers)  # type: ignore[arg-type]
        bar = tqdm(loader, desc=label, disable=None if label else True, leave=False)
        answers = [self.answer(batch["pixel_values"].numpy()) for batch in bar]
        if not answers:
            return np.zeros(0), np.zeros((0, 0), dtype=np.float32)
        logits, features = zip(*answers, strict=True)
        return np.concatenate(logits), np.concatenate(features)


def torch_forward(model: nn.Module, device: torch.device, precision: Precision = "float32") -> Forward:
    """Make the forward pass of a classifier in PyTorch.

    With bfloat16 the classifier layer stays in float32. Otherwise logits between 2 and 4 would be rounded to steps of
    1/64, and so would the threshold that is folded into the bias.
    """
    import torch
    from torch import nn

    from natix_hf.models.classifier import head_of
    from natix_hf.models.device import full_float32

    dtype, head = getattr(torch, precision), head_of(model)
    kept = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    nn.Module.to(model, dtype=dtype)
    head.float().load_state_dict(kept)
    seen: list[torch.Tensor] = []

    def see(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        seen.append(inputs[0].float())
        return (seen[-1],)

    head.register_forward_pre_hook(see)
    one_at_a_time = threading.Lock()  # the hook and the float32 setting belong to the whole process

    def forward(pixel_values: Any) -> tuple[np.ndarray, np.ndarray]:
        with one_at_a_time, torch.inference_mode(), full_float32():
            model(pixel_values=torch.as_tensor(pixel_values).to(device, dtype))
            features = seen.pop().cpu().numpy()
            return _head_row_by_row(head, features), features

    return forward


def _head_row_by_row(head: nn.Linear, features: np.ndarray) -> np.ndarray:
    """The logits, float32 [n, 2]. A matrix product sums in another order for one row than for several: an image would
    answer differently, in the last bits, alone and in a batch."""
    weight, bias = head.weight.detach().cpu().numpy(), head.bias.detach().cpu().numpy()
    products = features[:, None, :].astype(np.float64) * weight
    return np.asarray(products.sum(axis=2) + bias, dtype=np.float32)


def onnx_forward(path: Path) -> Forward:
    """Make the forward pass of a bundle's ONNX file on the CPU, with as many threads as torch would use.

    Raises:
        UsageError: if onnxruntime is not installed.
        VerificationError: if onnxruntime cannot run the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"{path.name} needs onnxruntime: pip install 'natix_hf[onnx]' ({error})") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    # Otherwise its threads keep a core busy between two calls, and decoding and PyTorch need that core.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # only errors: users can do nothing about warnings
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        reason = first_line(error)
        raise VerificationError(f"{path} cannot be run ({reason})") from None
    names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    if names != ["pixel_values", "logits", "features"]:
        raise VerificationError(f"{path} does not have the inputs and outputs of a bundle: it has {', '.join(names)}")

    def forward(pixel_values: Any) -> tuple[np.ndarray, np.ndarray]:
        logits, features = session.run(["logits", "features"], {"pixel_values": np.asarray(pixel_values)})
        return logits, features

    return forward
