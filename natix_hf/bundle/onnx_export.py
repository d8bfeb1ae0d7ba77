"""`model.onnx`: the bundle's model for onnxruntime, exported from the safetensors and compared with them."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from natix_hf.bundle.inference import ImageList, Inference
from natix_hf.bundle.names import ONNX, WEIGHTS
from natix_hf.errors import UsageError
from natix_hf.models.classifier import head_of, load_classifier
from natix_hf.models.positions import fix_positions
from natix_hf.provenance.files import atomic_file

# protobuf cannot read a message of 2 GB or more. The difference leaves room for the graph.
_LARGEST = 2**31 - 2**24
# The float32 kernels of the two runtimes differ by some 1e-6 in a logit. A wrong weight moves it by far more.
ONNX_TOLERANCE = 1e-4
# The first opset with attention as one node. As several nodes it takes a fifth longer and holds a mask never set.
_OPSET = 23
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_onnx(model: nn.Module | None = None) -> None:
    """Check before any work that `export_onnx` is possible. The model may be on the meta device.

    Raises:
        UsageError: if a package is missing, or if the model is too large for one file.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"phase6.onnx needs {', '.join(missing)}: pip install 'natix_hf[onnx]', or set it to false")
    size = sum(parameter.numel() for parameter in model.parameters()) * 4 if model is not None else 0
    if size > _LARGEST:
        raise UsageError(
            f"phase6.onnx: an ONNX file holds at most 2 GB, this model has {size / 1e9:.1f} GB: set it to false"
        )


class _LogitsAndFeatures(nn.Module):
    """The exported module: `pixel_values` [n, 3, H, W] -> logits [n, 2] and inputs of the classifier layer [n, d]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []
        hook = head_of(self.model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        logits = self.model(pixel_values=pixel_values).logits
        hook.remove()
        return logits, seen[0]


def export_onnx(bundle: Path, image_size: int) -> None:
    """Write `model.onnx` beside the safetensors of a folder.

    The file is float32, takes any batch size and images of `image_size` px, holds its weights, and says nothing about
    the machine that made it.

    Raises:
        UsageError: as in `check_onnx`.
    """
    import onnx_ir  # comes with onnxscript

    model = load_classifier(bundle)
    check_onnx(model)
    fix_positions(model, image_size)
    pixels = torch.zeros(2, 3, image_size, image_size)
    with _quiet_exporter():
        program = torch.onnx.export(
            _LogitsAndFeatures(model).eval(),
            (pixels,),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits", "features"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns None
    # The exporter records for every node which lines of which files made it: paths of this machine, and half the file.
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    for value in program.model.graph.initializers.values():
        value.metadata_props.clear()
    with atomic_file(bundle / ONNX) as temporary:
        program.save(temporary, external_data=False)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter, which warns about its own deprecated calls and about a missing torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def onnx_difference(bundle: Path, images: Sequence[Any] = ()) -> float:
    """The largest difference between the answers of a bundle's safetensors and its ONNX file.

    Both answer four images of seeded noise and `images`, as one batch and one by one.

    Args:
        images: Further images to compare on.

    Returns:
        The larger of two differences: that of the logits, and that of the inputs of the classifier layer, relative to
        the largest input.
    """
    plain, onnx = Inference(bundle, "cpu"), Inference(bundle, backend="onnx")
    size = plain.preprocess.image_size
    noise = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)).numpy()
    views = ImageList(images, plain.preprocess)
    pixels = np.stack([*noise, *(views[i]["pixel_values"] for i in range(len(views)))])
    logits, features = plain.answer(pixels)
    scale = max(1.0, float(np.abs(features).max()))
    worst = 0.0
    for size in (1, len(pixels)):
        found = [onnx.answer(part) for part in np.split(pixels, range(size, len(pixels), size))]
        worst = max(worst, float(np.abs(np.concatenate([z for z, _ in found]) - logits).max()))
        worst = max(worst, float(np.abs(np.concatenate([x for _, x in found]) - features).max()) / scale)
    return worst


def onnx_answers_problems(bundle: Path) -> list[str]:
    """Compare the answers of both files of an intact bundle, if it has an ONNX file and onnxruntime is installed."""
    if not (bundle / ONNX).is_file() or importlib.util.find_spec("onnxruntime") is None:
        return []
    difference = onnx_difference(bundle)
    if difference <= ONNX_TOLERANCE:
        return []
    return [f"{bundle / ONNX} and {WEIGHTS} answer differently, by {difference:.1e}: it was made from other weights"]
