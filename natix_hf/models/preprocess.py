"""The one preprocessing of deployment: the centre square, then the image processor that is saved with the model.

Every candidate carries a `ViTImageProcessor`, whatever its architecture: it is the only one that the official miner's
call (transformers 4.45.2, `use_fast=True`) finds. The miner refuses the `BitImageProcessor` of DINOv2 backbones. An
image of the model's size is neither cropped nor resized. A stock pipeline squeezes an image that is not square;
`predict` crops it to its centre square first, as the subnet's validator does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from natix_hf.data.images import centre_square, to_rgb
from natix_hf.errors import UsageError, VerificationError
from natix_hf.models.config import ModelConfig
from natix_hf.models.resolved import resolve_backbone
from natix_hf.models.schema import processor_faults, processor_keys
from natix_hf.provenance.strict import read_strictly

_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]


def make_processor(config: ModelConfig) -> ViTImageProcessorPil:
    """Make the processor of a candidate, with the mean and standard deviation of the backbone, else of ImageNet.

    Raises:
        [`UsageError`]: the backbone's `preprocessor_config.json` is damaged, or no bundle may hold its values.
    """
    mean, std = _normalisation(config)
    size = config.image_size
    processor = ViTImageProcessorPil(
        size={"height": size, "width": size},
        resample=Image.Resampling.BICUBIC,
        image_mean=mean,
        image_std=std,
        do_convert_rgb=True,
    )
    for fault in processor_faults(exported_processor(processor)):
        raise UsageError(f"model: the image processor cannot be exported: {fault}")
    return processor


def _normalisation(config: ModelConfig) -> tuple[list[float], list[float]]:
    if config.backbone is not None:
        source = resolve_backbone(config.backbone)
        try:
            settings, _ = ViTImageProcessorPil.get_image_processor_dict(source, revision=config.revision)
        except (OSError, ValueError, AttributeError) as error:
            if (Path(source) / "preprocessor_config.json").is_file() or "valid JSON" in str(error):
                damaged = f"the preprocessor_config.json of {config.backbone} is damaged"
                raise UsageError(f"model.backbone: {damaged}") from None
            settings = {}  # a backbone without one
        if "image_mean" in settings and "image_std" in settings:
            return list(settings["image_mean"]), list(settings["image_std"])
    return _IMAGENET_MEAN, _IMAGENET_STD


def load_processor(folder: Path) -> ViTImageProcessorPil:
    """Load the processor of a candidate or bundle. It always uses PIL: the same pixels on every machine.

    Nothing but `preprocessor_config.json` is read, and every value in it is checked first.

    Raises:
        [`VerificationError`]: `preprocessor_config.json` is missing or cannot be used.
    """
    path = folder / "preprocessor_config.json"
    settings = read_strictly(path)
    for fault in processor_faults(settings):
        raise VerificationError(f"{path} cannot be used: {fault}")
    return ViTImageProcessorPil(**{key: value for key, value in settings.items() if key != "image_processor_type"})


def exported_processor(processor: Any) -> dict[str, Any]:
    """The content of `preprocessor_config.json` of an export: the keys that it may hold, whatever the version of
    transformers adds to them."""
    content = json.loads(processor.to_json_string())
    return {key: value for key, value in content.items() if key in processor_keys()}


class Preprocess:
    """A callable from a PIL image to `pixel_values` float32 [3, size, size]. Loader workers can pickle it."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    @property
    def image_size(self) -> int:
        """Height and width of its images, in px.

        Raises:
            [`VerificationError`]: its images are not square, or have no fixed size.
        """
        size = dict(self.processor.size)
        height = size.get("height")
        if not isinstance(height, int) or height != size.get("width"):
            raise VerificationError(f"the preprocessor_config.json has size {size}: it must be a square in px")
        return height

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels: torch.Tensor = self.processor(centre_square(to_rgb(image)), return_tensors="pt")["pixel_values"][0]
        return pixels
