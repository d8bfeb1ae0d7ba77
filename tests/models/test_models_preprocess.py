"""The preprocessing of deployment: what stock transformers computes from the saved processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from refusals import refused
from transformers import AutoImageProcessor, ViTImageProcessorPil

from natix_hf.data.images import centre_square
from natix_hf.errors import UsageError, VerificationError
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import Preprocess, load_processor, make_processor

SIZE = 28
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CONFIG = ModelConfig(config=TINY["vit"], image_size=SIZE)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_hand(image: Image.Image, mean: list[float], std: list[float]) -> np.ndarray:
    return ((np.asarray(image) / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)


def test_an_image_of_the_models_size_is_only_normalised() -> None:
    pixels = Preprocess(make_processor(CONFIG))(noise(SIZE, SIZE))
    assert pixels.shape == (3, SIZE, SIZE) and pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels.numpy(), by_hand(noise(SIZE, SIZE), *IMAGENET), atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(56, 28), (28, 56), (40, 33), (20, 20), (300, 200), (1, 1), (9000, 1)])
def test_it_equals_the_stock_processor_on_the_centre_square(width: int, height: int, tmp_path: Path) -> None:
    make_processor(CONFIG).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "ViTImageProcessor", "the class that old versions have"
    ours = Preprocess(load_processor(tmp_path))(noise(width, height).convert("RGBA"))
    stock = AutoImageProcessor.from_pretrained(tmp_path)
    square = centre_square(noise(width, height))
    assert torch.equal(ours, stock(square, return_tensors="pt")["pixel_values"][0])
    assert ours.shape == (3, SIZE, SIZE)


def test_it_equals_the_stock_pipeline(tmp_path: Path) -> None:
    """The official miner: `pipeline("image-classification")` on the folder."""
    from transformers import pipeline

    from natix_hf.models.classifier import build_classifier, load_classifier

    build_classifier(CONFIG, 0).save_pretrained(tmp_path)
    make_processor(CONFIG).save_pretrained(tmp_path)
    stock = pipeline("image-classification", model=str(tmp_path), device="cpu")
    image = noise(50, 50)
    ours = Preprocess(load_processor(tmp_path))(image)
    assert torch.equal(stock.preprocess(image)["pixel_values"][0], ours)
    with torch.inference_mode():
        probability = load_classifier(tmp_path).eval()(pixel_values=ours[None]).logits.softmax(1)[0, 1].item()
    answers = {answer["label"]: answer["score"] for answer in stock(image)}
    assert answers["Roadwork"] == pytest.approx(probability, abs=1e-6)


def test_the_backbones_own_normalisation_is_kept(tmp_path: Path) -> None:
    ViTImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], size=64).save_pretrained(tmp_path)
    processor = make_processor(ModelConfig(backbone=str(tmp_path), image_size=SIZE))
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    pixels = Preprocess(processor)(noise(SIZE, SIZE)).numpy()
    np.testing.assert_allclose(pixels, by_hand(noise(SIZE, SIZE), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), atol=1e-5)


@pytest.mark.parametrize("content", [None, "{}", '{"size": 64}'])
def test_a_backbone_without_its_own_gets_imagenets(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(content)
    processor = make_processor(ModelConfig(backbone=str(tmp_path), image_size=SIZE))
    assert (list(processor.image_mean), list(processor.image_std)) == IMAGENET


def test_a_damaged_processor_file_of_a_backbone_is_no_reason_to_guess(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    config = ModelConfig(backbone=str(tmp_path), image_size=SIZE)
    refused(UsageError, lambda: make_processor(config), "model.backbone", "preprocessor_config.json", tmp_path)


@pytest.mark.parametrize("size", [{"shortest_edge": 28}, {"height": 28, "width": 56}])
def test_a_size_that_is_no_square_is_one_line(size: dict[str, int]) -> None:
    preprocess = Preprocess(ViTImageProcessorPil(size=size))
    refused(VerificationError, lambda: preprocess.image_size, "preprocessor_config.json", size)
