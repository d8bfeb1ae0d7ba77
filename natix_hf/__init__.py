"""natix_hf: from images and a pretrained ViT to a deployable, calibrated yes/no image classifier.

Importing this package imports neither torch nor transformers; what needs them is loaded at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natix_hf import calibration, metrics
    from natix_hf.bundle.load import Bundle, Prediction, count_flips, load_bundle
    from natix_hf.bundle.stream import BadImage
    from natix_hf.trainers.explora import ExploraTrainer
    from natix_hf.trainers.roadwork import RoadworkTrainer

__version__ = "0.1.0"
__all__ = [
    "BadImage",
    "Bundle",
    "ExploraTrainer",
    "Prediction",
    "RoadworkTrainer",
    "__version__",
    "calibration",
    "count_flips",
    "load_bundle",
    "metrics",
]

_LAZY = dict.fromkeys(("Bundle", "Prediction", "count_flips", "load_bundle"), "natix_hf.bundle.load")
_LAZY["BadImage"] = "natix_hf.bundle.stream"
_LAZY["ExploraTrainer"] = "natix_hf.trainers.explora"
_LAZY["RoadworkTrainer"] = "natix_hf.trainers.roadwork"


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in ("calibration", "metrics"):
        return importlib.import_module(f"natix_hf.{name}")
    raise AttributeError(f"module 'natix_hf' has no attribute {name!r}")
