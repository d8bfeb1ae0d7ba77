"""The preprocessing of deployment: what stock transformers computes from the saved processor."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
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


@pytest.mark.parametrize(("width", "height"), [(56, 28), (28, 56), (40, 33), (20, 20), (300, 200), (1, 1), (3, 11)])
def test_it_equals_the_stock_processor_on_the_centre_square(width: int, height: int, tmp_path: Path) -> None:
    make_processor(CONFIG).save_pretrained(tmp_path)
    ours = Preprocess(load_processor(tmp_path))(noise(width, height))
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


def test_the_file_names_a_class_that_old_versions_have(tmp_path: Path) -> None:
    make_processor(CONFIG).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "ViTImageProcessor"


def test_the_middle_of_an_oblong_image_is_what_the_model_sees() -> None:
    pixels = np.zeros((SIZE, 3 * SIZE, 3), dtype=np.uint8)
    middle = np.asarray(noise(SIZE, SIZE))
    pixels[:, SIZE : 2 * SIZE] = middle
    preprocess = Preprocess(make_processor(CONFIG))
    assert torch.equal(preprocess(Image.fromarray(pixels)), preprocess(Image.fromarray(middle)))


@pytest.mark.parametrize(("width", "height"), [(10_000, 1), (2, 3000)])
def test_extreme_shapes_become_squares_and_not_gigabytes(width: int, height: int) -> None:
    assert Preprocess(make_processor(CONFIG))(noise(width, height)).shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_any_mode_is_taken(mode: str) -> None:
    image = noise(SIZE, SIZE).convert(mode)
    preprocess = Preprocess(make_processor(CONFIG))
    assert torch.equal(preprocess(image), preprocess(image.convert("RGB")))


def test_a_rotated_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    noise(SIZE, SIZE).save(buffer, "PNG", exif=exif)
    preprocess = Preprocess(make_processor(CONFIG))
    upright = noise(SIZE, SIZE).transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(preprocess(Image.open(buffer)), preprocess(upright))


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
    with pytest.raises(UsageError, match=r"preprocessor_config\.json of .* is damaged"):
        make_processor(ModelConfig(backbone=str(tmp_path), image_size=SIZE))


@pytest.mark.parametrize("size", [{"shortest_edge": 28}, {"height": 28, "width": 56}])
def test_a_size_that_is_no_square_is_one_line(size: dict[str, int]) -> None:
    preprocess = Preprocess(ViTImageProcessorPil(size=size))
    with pytest.raises(VerificationError, match="a square in px is needed") as caught:
        _ = preprocess.image_size
    assert "\n" not in str(caught.value)


def test_it_travels_to_a_worker() -> None:
    preprocess = Preprocess(make_processor(CONFIG))
    copy = pickle.loads(pickle.dumps(preprocess))
    assert torch.equal(copy(noise(40, 30)), preprocess(noise(40, 30)))
