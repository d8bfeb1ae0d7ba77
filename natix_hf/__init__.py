"""natix_hf: from images and a pretrained ViT to a deployable, calibrated yes/no image classifier.

Importing this package imports neither torch nor transformers. A name that needs them is loaded at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natix_hf import calibration, metrics, ssl, subnet
    from natix_hf.api import Run, run
    from natix_hf.bulk.answer_all import answer_all
    from natix_hf.bundle.explain import Explanation
    from natix_hf.bundle.flips import count_flips
    from natix_hf.bundle.load import Bundle, Prediction, load_bundle
    from natix_hf.bundle.stream import BadImage
    from natix_hf.deploy import bundle_of
    from natix_hf.models.soup import average_models
    from natix_hf.recipe import Recipe, load_recipe
    from natix_hf.selective.classifier import SelectiveAnswers, SelectiveClassifier
    from natix_hf.ssl.explora import apply_explora
    from natix_hf.trainers.explora import ExploraTrainer
    from natix_hf.trainers.merge_validation import MergeValidationCallback
    from natix_hf.trainers.roadwork import RoadworkTrainer

__version__ = "0.1.0"

_MODULES = ("calibration", "metrics", "ssl", "subnet")
_PLACES = {
    "BadImage": "bundle.stream",
    "Bundle": "bundle.load",
    "Explanation": "bundle.explain",
    "ExploraTrainer": "trainers.explora",
    "MergeValidationCallback": "trainers.merge_validation",
    "Prediction": "bundle.load",
    "Recipe": "recipe",
    "RoadworkTrainer": "trainers.roadwork",
    "Run": "api",
    "SelectiveAnswers": "selective.classifier",
    "SelectiveClassifier": "selective.classifier",
    "answer_all": "bulk.answer_all",
    "apply_explora": "ssl.explora",
    "average_models": "models.soup",
    "bundle_of": "deploy",
    "count_flips": "bundle.flips",
    "load_bundle": "bundle.load",
    "load_recipe": "recipe",
    "run": "api",
}
__all__ = [
    "BadImage",
    "Bundle",
    "Explanation",
    "ExploraTrainer",
    "MergeValidationCallback",
    "Prediction",
    "Recipe",
    "RoadworkTrainer",
    "Run",
    "SelectiveAnswers",
    "SelectiveClassifier",
    "__version__",
    "answer_all",
    "apply_explora",
    "average_models",
    "bundle_of",
    "calibration",
    "count_flips",
    "load_bundle",
    "load_recipe",
    "metrics",
    "run",
    "ssl",
    "subnet",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"natix_hf.{_PLACES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"natix_hf.{name}")
    raise AttributeError(f"module 'natix_hf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
