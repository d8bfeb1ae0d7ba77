"""A tiny bundle with a `model.onnx`, and pictures to ask it: half of them on each side of its threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import TINY, striped_image
from PIL import Image
from safetensors.torch import save_file

from natix_hf.bundle.build import build_bundle
from natix_hf.bundle.confidence import Confidence
from natix_hf.bundle.inference import ImageList, Inference
from natix_hf.bundle.policy import GateUse, Policy
from natix_hf.calibration import Calibration, Promise
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.gate import gate_shapes
from natix_hf.models.preprocess import make_processor
from natix_hf.provenance.files import file_sha256
from natix_hf.results.answers import save_candidate


def pictures(count: int = 12) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [striped_image(n % 2, rng) for n in range(count)]


def make_onnx_bundle(folder: Path, name: str = "dinov2", onnx: bool = True, **fields: Any) -> Path:
    """A bundle with a learned gate whose promise accepts some of `pictures()` and not others."""
    config = ModelConfig(None, None, {"initializer_range": 0.3} | TINY[name] | fields, image_size=28)
    candidate = save_candidate(folder / "candidate", build_classifier(config, seed=0), make_processor(config))
    plain, images = Inference(candidate.model, "cpu"), pictures()
    z, features = plain.logits_and_features(ImageList(images, plain.preprocess))
    rng, path = np.random.default_rng(0), folder / "gate.safetensors"
    shapes = gate_shapes(features.shape[1] + 2, 4)
    tensors = {key: torch.tensor(rng.normal(size=shape), dtype=torch.float32) for key, shape in shapes.items()}
    tensors["std"] = tensors["std"].abs() + 0.5
    save_file(tensors, path)
    threshold = _middle(z)
    sure = Confidence(threshold, path)(z, features)
    above = {name: _middle(sure[(z > threshold) == yes]) for name, yes in (("Roadwork", True), ("None", False))}
    promise = Promise(feasible=True, loss="error", alpha=0.1, delta=0.1, classwise=True, accept_above=above)
    policy = Policy(
        threshold, candidate.sha256, "", calibration=Calibration("temperature", 0.6),
        gate=GateUse("learned", "x", file_sha256(path)), promise=promise,
    )  # fmt: skip
    build_bundle(
        folder / "bundle", candidate.model, policy, evaluation={"rows": 0}, card="# card\n", model_card=None, plots=[],
        lineage={}, images=images, expected_logits=z, gate=path, onnx=onnx,
    )  # fmt: skip
    return folder / "bundle"


def _middle(values: np.ndarray) -> float:
    """A value that no row has: half of them lie above it."""
    low, high = np.sort(values)[len(values) // 2 - 1 : len(values) // 2 + 1]
    assert high - low > 1e-3
    return float((low + high) / 2)
