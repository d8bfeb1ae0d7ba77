"""Training views and their order: functions of (seed, epoch, row), in this process or in a spawned worker."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_parquet_source
from PIL import Image
from refusals import refused
from test_drawn import photograph
from torch.utils.data import DataLoader, default_collate

from natix_hf.data.asked import ask
from natix_hf.data.augment import augment
from natix_hf.data.config import AugmentConfig, DataConfig
from natix_hf.data.crops import MultiCropViews
from natix_hf.data.crops_config import CropConfig
from natix_hf.data.drawn import _without_corners
from natix_hf.data.exam_on_device import described_challenge, made_challenges
from natix_hf.data.on_device import same_size
from natix_hf.data.rows import Rows, load_image_data
from natix_hf.data.sampler import EpochSampler
from natix_hf.data.views import AskedViews, FeatureViews, TrainViews, finished
from natix_hf.errors import DataError, RecipeError
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.section import key_types
from natix_hf.subnet.challenge import SIZE

NOTHING = AugmentConfig(crop_scale=[1, 1], crop_ratio=[1, 1], flip=False, rotate=0, jitter=0)


def picture(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(9).integers(0, 256, (height, width, 3), dtype=np.uint8))


def view(config: AugmentConfig, image: Image.Image | None = None, size: int = 16, seed: int = 0) -> np.ndarray:
    shown = np.asarray(picture() if image is None else image)
    return augment(shown, config, size, np.random.default_rng([seed, 1, 2])).permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        source = write_parquet_source(tmp_path_factory.mktemp("source"), groups=20, frames=1)
        return load_image_data(DataConfig(source=str(source))).role("train")


def train_views(rows: Rows, seed: int = 0) -> TrainViews:
    return TrainViews(rows, AugmentConfig(grey=0.2, blur=0.5, erase=0.5), 14, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], seed)


CHANGES: dict[str, Any] = {
    "crop_scale": [0.3, 0.4], "crop_ratio": [0.5, 0.6], "flip": True, "rotate": 20.0, "jitter": 0.4, "grey": 1.0,
    "blur": 1.0, "erase": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGES)
def test_each_key_changes_the_view(key: str) -> None:
    assert set(CHANGES) == set(key_types(AugmentConfig))
    changed = replace(NOTHING, **{key: CHANGES[key]})
    # At 112 px, because a blur's radius is in proportion to the view: at 16 px it is a tenth of a pixel.
    assert any((view(changed, size=112, seed=s) != view(NOTHING, size=112, seed=s)).any() for s in range(8))


@pytest.mark.parametrize("side", [9, 16, 32, 75], ids=["enlarged", "as it is", "halved", "shrunk"])
def test_without_augmentation_a_model_learns_on_the_pixels_that_it_answers_on(side: int) -> None:
    processor = make_processor(ModelConfig(config={"model_type": "vit"}, image_size=16))
    asked = Preprocess(processor)(picture(side, side))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    expected = ((asked * std + mean) * 255).round().permute(1, 2, 0).numpy()
    apart = np.abs(view(NOTHING, picture(side, side)) - expected)
    assert apart.mean() < 0.5
    # Of an enlarged picture of noise, Pillow cuts off what is too bright after each of its two passes, we once.
    assert side < 16 or apart.max() <= 1


@pytest.mark.parametrize("place", ["workers", "device"])
def test_a_smaller_exam_view_is_resized_as_predict_does(place: str) -> None:
    image = photograph(300, 300)
    config = ModelConfig(config={"model_type": "vit"}, image_size=48)
    exact = augment(np.asarray(image), "challenge", SIZE, np.random.default_rng(3))
    processor = make_processor(config)
    asked = Preprocess(processor)(Image.fromarray(exact.permute(1, 2, 0).numpy()))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    expected = (asked * std + mean) * 255
    if place == "workers":
        found = augment(np.asarray(image), "challenge", 48, np.random.default_rng(3))
        assert (found - expected).abs().max() <= 1
    else:
        drawn = described_challenge(np.asarray(image), np.random.default_rng(3))[None]
        found = made_challenges(same_size([np.asarray(image)]), drawn, 48, 2)[0]
        assert found.float().std() == pytest.approx(float(expected.std()), rel=0.02)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_scale", [0.5]), ("crop_scale", [0.0, 1.0]), ("crop_scale", [0.9, 0.5]), ("crop_scale", [0.5, 1.1]),
        ("crop_ratio", [2.0, 1.0]), ("crop_ratio", [0.0, 1.0]), ("rotate", -1), ("rotate", 181), ("jitter", 1.0),
        ("grey", 1.1), ("blur", -0.1), ("erase", 2),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(key: str, value: Any) -> None:
    refused(RecipeError, lambda: replace(NOTHING, **{key: value}), f"data.augment.{key}", value)


WILD = AugmentConfig(crop_scale=[0.01, 1], crop_ratio=[0.2, 5], rotate=180, jitter=0.9, grey=0.5, blur=0.5, erase=0.5)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 2), (5000, 3), (3, 5000), (17, 31), (640, 480)])
@pytest.mark.parametrize("config", [AugmentConfig(), WILD], ids=["default", "wild"])
def test_every_view_of_every_shape_is_a_square(width: int, height: int, config: AugmentConfig) -> None:
    for seed in range(12):
        pixels = view(config, picture(width, height), size=14, seed=seed)
        assert pixels.shape == (14, 14, 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize(
    ("width", "height"),
    [(64, 64), (90, 40), (40, 90), (400, 100), (300, 4), (4, 300), *((w, h) for w in (1, 2, 3, 7, 8) for h in (1, 2))],
)
def test_rotation_leaves_no_black_corner(width: int, height: int) -> None:
    white = Image.new("RGB", (width, height), (255, 255, 255))
    for seed in range(30):
        assert view(replace(NOTHING, rotate=180), white, seed=seed).min() == 255


def test_rotation_keeps_most_of_the_picture() -> None:
    """A box far smaller than needed would pass the test above: at 45 degrees half of a square's area is whole."""
    for degrees in (0, 1, 45, 90, 135, 180, -45, -179):
        left, top, right, bottom = _without_corners(101, 101, degrees)
        kept = (right - left) * (bottom - top) / 101**2
        assert kept == pytest.approx(0.5 if degrees % 90 == 45 else 1, abs=0.06)


def test_jitter_scales_saturation_contrast_and_brightness() -> None:
    image, strength, size = picture(16, 16), 0.5, 16
    luma = np.array([0.299, 0.587, 0.114])
    for seed in range(8):
        rng = np.random.default_rng([seed, 1, 2])
        drawn = [rng.uniform(*NOTHING.crop_scale), rng.uniform(0, 0)]  # area and shape of the crop are drawn before
        assert drawn == [1, 0]
        brightness, contrast, saturation = 1 + rng.uniform(-strength, strength, 3)
        pixels = np.asarray(image, dtype=np.float64)
        grey = (pixels @ luma)[..., None]
        expected = grey + (pixels - grey) * saturation
        expected = np.clip((grey.mean() + (expected - grey.mean()) * contrast) * brightness, 0, 255)
        found = view(replace(NOTHING, jitter=strength), image, size, seed)
        np.testing.assert_allclose(found, expected, atol=1)  # a byte is rounded


def test_half_of_the_views_are_mirrored() -> None:
    mirrored = replace(NOTHING, flip=True)
    plain = view(NOTHING, picture(32, 32))
    views = [view(mirrored, picture(32, 32), seed=s) for s in range(200)]
    flips = [v for v in views if not (v == plain).all()]
    assert 70 < len(flips) < 130
    assert all((v == plain[:, ::-1]).all() for v in flips)


def test_equal_seed_epoch_and_row_give_equal_bits(rows: Rows) -> None:
    views = train_views(rows)
    again = train_views(rows)
    for key in [(0, 0), (0, 5), (3, 5)]:
        assert torch.equal(views[key]["pixel_values"], again[key]["pixel_values"])
    for other in [views[1, 5], views[0, 6], train_views(rows, seed=1)[0, 5]]:
        assert not torch.equal(views[0, 5]["pixel_values"], other["pixel_values"])


def test_a_training_view_is_normalised_on_its_device(rows: Rows) -> None:
    config, mean, std = NOTHING, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    views = TrainViews(rows, config, 14, mean, std, 0)
    item = views[0, 2]
    image = np.asarray(next(image for i, image in enumerate(rows.images()) if i == 2))
    drawn = augment(image, config, 14, np.random.default_rng([0, 0, 2])).permute(1, 2, 0).numpy()
    assert item["pixel_values"].dtype == torch.uint8, "it travels as bytes"
    batch = finished(views, default_collate([item]))
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_values"].shape == (1, 3, 14, 14)
    expected = (drawn / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(batch["pixel_values"][0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert batch["labels"].tolist() == [rows.labels[2]]


def test_a_batch_of_another_dataset_is_used_as_it_is() -> None:
    batch = {"pixel_values": torch.ones(2, 3, 4, 4), "bytes": torch.ones(2, dtype=torch.uint8)}
    assert finished([], batch) is batch


def original_views(rows: Rows) -> AskedViews:
    return AskedViews(ask(rows), Preprocess(make_processor(ModelConfig(config={"model_type": "vit"}, image_size=14))))


def test_an_original_view_is_the_preprocessed_original(rows: Rows) -> None:
    views = original_views(rows)
    assert len(views) == len(rows)
    for index, image in enumerate(rows.images()):
        assert torch.equal(views[index]["pixel_values"], views.preprocess(image))
        assert views[index]["labels"] == rows.labels[index]


def test_an_original_that_cannot_be_read_names_its_row(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    views = original_views(rows)
    monkeypatch.setattr(views.asked, "cells", [{"image": {"bytes": b"x", "path": None}}])
    refused(DataError, lambda: views[0], rows.ids[0])


def test_a_batch_is_its_rows_one_by_one(rows: Rows) -> None:
    training: Any = train_views(rows)
    features: Any = FeatureViews(np.arange(24, dtype=np.float32).reshape(2, 4, 3), np.array([0, 1, 0, 1]))
    for views, keys in ((training, [(0, 3), (2, 1), (2, 3)]), (features, [(1, 0), (2, 3), 2])):
        for item, key in zip(views.__getitems__(keys), keys, strict=True):
            assert item["labels"] == views[key]["labels"]
            assert all(torch.equal(item[k], views[key][k]) for k in item if k != "labels")


def test_a_spawned_process_gives_what_this_one_gives(rows: Rows) -> None:
    """Views of every kind, with what they need packed up, as a loader's worker gets them; one import for all."""
    crops = MultiCropViews(rows.decoded, CropConfig(local_crops=1), 28, 7, [0.5] * 3, [0.2] * 3, 0)
    keys = [(2, 0), (2, 5), (0, 3)]
    asked: list[Any] = [(views, key) for views in (train_views(rows), crops) for key in keys]
    asked += [(original_views(rows), row) for row in (0, 4)]
    with get_context("spawn").Pool(1) as pool:
        there = pool.starmap(operator.getitem, asked)
    for found, (views, key) in zip(there, asked, strict=True):
        for name, value in views[key].items():
            assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), (type(views), key, name)
    sampler: Any = EpochSampler(rows.labels, 3)
    batches = list(DataLoader(train_views(rows), batch_size=5, sampler=sampler))
    assert len(batches) == -(-len(rows) // 5)
    for batch, at in zip(batches, range(0, len(rows), 5), strict=True):
        assert torch.equal(
            batch["labels"], torch.as_tensor([rows.labels[row] for _, row in list(sampler)[at : at + 5]])
        )


def test_feature_views_go_through_the_views_by_epoch() -> None:
    features = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)
    views = FeatureViews(features, np.array([0, 1, 0, 1]))
    assert len(views) == 4
    for epoch in range(5):
        assert views[epoch, 3]["features"].tolist() == features[epoch % 2, 3].tolist()
    assert views[3]["features"].tolist() == features[0, 3].tolist(), "evaluation reads view 0"
    assert views[3]["labels"] == 1


LABELS = np.array([0] * 41 + [1] * 9)


def drawn(prior: float | None, seed: int = 0, epoch: int = 0) -> list[tuple[int, int]]:
    sampler = EpochSampler(LABELS, seed, prior)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler) == len(LABELS)
    return keys


def test_without_a_prior_every_row_comes_once() -> None:
    keys = drawn(None, epoch=4)
    assert {epoch for epoch, _ in keys} == {4}
    assert sorted(row for _, row in keys) == list(range(len(LABELS)))
    assert [row for _, row in keys] != list(range(len(LABELS))), "in random order: the source is sorted by class"


@pytest.mark.parametrize("prior", [0.02, 0.18, 0.5, 0.9])
def test_a_prior_is_met_exactly_and_rows_are_used_equally_often(prior: float) -> None:
    chosen = [row for _, row in drawn(prior)]
    assert sum(LABELS[chosen]) == round(prior * len(LABELS))
    for label in (0, 1):
        used = Counter({int(row): 0 for row in np.flatnonzero(LABELS == label)})
        used.update(row for row in chosen if LABELS[row] == label)
        assert max(used.values()) - min(used.values()) <= 1
    halves = LABELS[chosen][:25].sum(), LABELS[chosen][25:].sum()
    assert prior != 0.5 or min(halves) >= 5, "the classes are mixed, not one after the other"


@pytest.mark.parametrize("prior", [None, 0.5])
def test_the_order_is_a_function_of_seed_and_epoch(prior: float | None) -> None:
    assert drawn(prior, 1, 2) == drawn(prior, 1, 2)
    order = [row for _, row in drawn(prior, 1, 2)]
    assert order != [row for _, row in drawn(prior, 1, 3)] and order != [row for _, row in drawn(prior, 2, 2)]
    sampler = EpochSampler(LABELS, 1, prior)
    np.random.seed(0)
    torch.manual_seed(0)
    list(sampler), sampler.set_epoch(2)
    assert list(sampler) == drawn(prior, 1, 2), "neither global generators nor earlier epochs play a part"
