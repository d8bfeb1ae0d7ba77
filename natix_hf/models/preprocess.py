"""The one preprocessing of deployment: the centre square, then the image processor that is saved with the model.

Every candidate carries a `ViTImageProcessor`, whatever its architecture: it is the only one that the official miner's
call (transformers 4.45.2, `use_fast=True`) finds. The miner refuses the `BitImageProcessor` of DINOv2 backbones. An
image of the model's size is neither cropped nor resized. A stock pipeline squeezes an image that is not square;
`predict` crops it to its centre square first, as the subnet's validator does.

This module imports neither torch nor transformers: a bundle's pixels are made by PIL and numpy, bit for bit those of
the stock processor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from natix_hf.data.images import centre_square, to_rgb
from natix_hf.errors import UsageError, VerificationError
from natix_hf.models.config import ModelConfig
from natix_hf.models.schema import processor_faults, processor_keys
from natix_hf.provenance.strict import read_strictly

if TYPE_CHECKING:
    import torch
    from transformers import ViTImageProcessorPil

_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]


def make_processor(config: ModelConfig) -> ViTImageProcessorPil:
    """Make the processor of a candidate, with the mean and standard deviation of the backbone, else of ImageNet.

    Raises:
        [`UsageError`]: the backbone's `preprocessor_config.json` is damaged, or no bundle may hold its values.
    """
    from transformers import ViTImageProcessorPil

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
    from transformers import ViTImageProcessorPil

    from natix_hf.models.resolved import resolve_backbone

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
    from transformers import ViTImageProcessorPil

    settings = read_settings(folder)
    return ViTImageProcessorPil(**{key: value for key, value in settings.items() if key != "image_processor_type"})


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the `preprocessor_config.json` of a candidate or bundle, without transformers.

    Raises:
        [`VerificationError`]: it is missing, or cannot be used.
    """
    path = folder / "preprocessor_config.json"
    settings: dict[str, Any] = read_strictly(path)
    for fault in processor_faults(settings):
        raise VerificationError(f"{path} cannot be used: {fault}")
    return settings


def exported_processor(processor: Any) -> dict[str, Any]:
    """The content of `preprocessor_config.json` of an export: the keys that it may hold, whatever the version of
    transformers adds to them."""
    content = json.loads(processor.to_json_string())
    return {key: value for key, value in content.items() if key in processor_keys()}


class Preprocess:
    """A callable from a PIL image to `pixel_values` float32 [3, size, size]. Loader workers can pickle it.

    Args:
        processor: An image processor of transformers, or the settings of a bundle ([`read_settings`]), which need no
            transformers.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self._values = _values_of(processor) if isinstance(processor, Mapping) else None

    @property
    def image_size(self) -> int:
        """Height and width of its images, in px.

        Raises:
            [`VerificationError`]: its images are not square, or have no fixed size.
        """
        size = dict(self.processor["size"] if self._values is not None else self.processor.size)
        height = size.get("height")
        if not isinstance(height, int) or height != size.get("width"):
            raise VerificationError(f"the preprocessor_config.json has size {size}: it must be a square in px")
        return height

    def __call__(self, image: Image.Image) -> torch.Tensor:
        import torch

        if self._values is not None:
            return torch.from_numpy(self.pixels(image))
        pixels: torch.Tensor = self.processor(centre_square(to_rgb(image)), return_tensors="pt")["pixel_values"][0]
        return pixels

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The same as an array; of a bundle's settings, without torch."""
        if self._values is None:
            return self(image).numpy()
        size, square = self.image_size, centre_square(to_rgb(image))
        resized = np.asarray(square.resize((size, size), resample=self.processor["resample"]))
        channels = [values[resized[..., channel]] for channel, values in enumerate(self._values)]
        return np.stack(channels)


def _values_of(settings: Mapping[str, Any]) -> np.ndarray:
    """What becomes of each of the 256 values of a pixel, float32 [3, 256], by the types and the order of transformers:
    scaled in float64, then rounded, then normalised in float32."""
    scaled = (np.arange(256, dtype=np.uint8).astype(np.float64) * settings["rescale_factor"]).astype(np.float32)
    mean, std = (np.array(settings[key], dtype=np.float32)[:, None] for key in ("image_mean", "image_std"))
    values: np.ndarray = (scaled - mean) / std
    return values
