"""Crops for self-supervised training: functions of (seed, epoch, row), each setting with its effect."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_parquet_source
from PIL import Image
from refusals import refused
from torch.utils.data import DataLoader

from natix_hf.data.augment import views_of
from natix_hf.data.config import DataConfig
from natix_hf.data.crops import MultiCropViews, global_crop, local_crop
from natix_hf.data.crops_config import CropConfig
from natix_hf.data.drawn import Drawn
from natix_hf.data.rows import Rows, load_image_data
from natix_hf.data.views import finished
from natix_hf.errors import RecipeError
from natix_hf.section import key_types

NOTHING = CropConfig(
    global_scale=[1, 1], local_scale=[1, 1], ratio=[1, 1], flip=False, jitter_share=0, grey=0, blur=[0, 0, 0],
    solarise=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        source = write_parquet_source(tmp_path_factory.mktemp("source"), groups=20, frames=1)
        return load_image_data(DataConfig(source=str(source))).role("train")


def crops_of(rows: Rows, seed: int = 0, **changes: Any) -> MultiCropViews:
    config = replace(CropConfig(local_crops=3), **changes)
    return MultiCropViews(rows.decoded, config, 28, 7, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], seed)


def picture(width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(9).integers(0, 256, (height, width, 3), dtype=np.uint8))


def views(config: CropConfig, seed: int) -> list[np.ndarray]:
    """Global 1, global 2 and a local crop of one picture, each drawn afresh."""
    rng = [np.random.default_rng([seed, i]) for i in range(3)]
    return [
        shown(picture(), global_crop(64, 64, 0, config, 112, rng[0]), 112),
        shown(picture(), global_crop(64, 64, 1, config, 112, rng[1]), 112),
        shown(picture(), local_crop(64, 64, config, 112, rng[2]), 48),
    ]


def shown(image: Image.Image, drawn: Drawn, size: int) -> np.ndarray:
    return views_of(np.asarray(image), [drawn], size)[0].permute(1, 2, 0).numpy()


def test_equal_seed_epoch_and_row_give_equal_bits(rows: Rows) -> None:
    views, again = crops_of(rows), crops_of(rows)
    for key in [(0, 0), (0, 5), (3, 5)]:
        assert all(torch.equal(views[key][name], again[key][name]) for name in views[key])
    for other in (views[1, 5], views[0, 6], crops_of(rows, seed=1)[0, 5]):
        assert not torch.equal(views[0, 5]["global_crops"], other["global_crops"])
        assert not torch.equal(views[0, 5]["local_crops"], other["local_crops"])
    assert any(not torch.equal(views[0, row]["masks"], views[1, row]["masks"]) for row in range(8))


def test_a_loader_gives_the_batch_that_the_objective_takes(rows: Rows) -> None:
    keys: Any = [(2, 0), (2, 3), (1, 7), (1, 1)]
    (batch,) = DataLoader(crops_of(rows), batch_size=4, sampler=keys)
    shapes = {"global_crops": (4, 2, 3, 28, 28), "local_crops": (4, 3, 3, 14, 14), "masks": (4, 2, 16)}
    assert {name: tuple(values.shape) for name, values in batch.items()} == shapes
    assert [values.dtype for values in batch.values()] == [torch.uint8, torch.uint8, torch.bool]
    for name, values in batch.items():
        assert torch.equal(values, torch.stack([crops_of(rows)[key][name] for key in keys]))
    assert crops_of(rows, local_crops=0)[0, 0]["local_crops"].shape == (0, 3, 14, 14)


def test_half_of_the_global_crops_are_masked(rows: Rows) -> None:
    masks = torch.stack([crops_of(rows)[0, row]["masks"] for row in range(10)])
    assert masks.any(-1).float().mean() == 0.5
    all_masked = MultiCropViews(rows.decoded, CropConfig(), 28, 7, [0.5] * 3, [0.5] * 3, 0, 1.0, (0.25, 0.25))
    assert (all_masked[0, 0]["masks"].sum(-1) == 4).all()


def test_without_augmentation_a_crop_is_the_resized_picture_normalised(rows: Rows) -> None:
    views = MultiCropViews(
        rows.decoded, replace(NOTHING, ratio=[1.2, 1.2]), 28, 7, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], 0
    )
    cell = views.decoded.with_format(None)[3]
    assert (cell["width"], cell["height"]) == (36, 30), "the crop of this shape is the whole picture"
    whole = Image.frombytes("RGB", (36, 30), cell["pixels"])
    for name, size in (("global_crops", 28), ("local_crops", 14)):
        resized = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR)) / 255
        expected = (resized - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
        for crop in finished(views, views[0, 3])[name]:
            np.testing.assert_allclose(crop.permute(1, 2, 0), expected, atol=1.01 / 255 / 0.2)


@pytest.mark.parametrize("size", [24, 90, 150], ids=["smaller", "one side larger", "larger"])
def test_a_bicubic_crop_is_pillows(size: int) -> None:
    """A smooth picture and noise; with whole px and between them, mirrored or not. Of strong noise, whose edges
    overshoot, Pillow cuts off what is too bright twice, we once."""
    strong = picture(130, 80)
    noise = strong.point(lambda level: 90 + level * 75 // 255)
    smooth = noise.resize((8, 5)).resize((130, 80), Image.Resampling.BICUBIC)
    for image, box in ((noise, (0, 0, 130, 80)), (noise, (11, 5, 121, 77)), (smooth, (3.4, 10.7, 100.2, 70.1))):
        for flip in (False, True):
            drawn = Drawn((65, 40), 0.0, box, flip)
            whole = size <= min(box[2] - box[0], box[3] - box[1])
            shown_box = tuple(map(round, box)) if whole else box
            expected = image.resize((size, size), Image.Resampling.BICUBIC, box=shown_box)  # type: ignore[arg-type]
            if flip:
                expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            found = views_of(np.asarray(image), [drawn], size, cubic=True)[0].permute(1, 2, 0).numpy()
            apart = np.abs(found.astype(int) - np.asarray(expected, dtype=int))
            # Pillow rounds between its two passes. It cuts the filter off at the picture, we at the crop.
            assert apart[3:-3, 3:-3].max() <= 2 and apart.mean() < 1, (size, box, flip)
    whole_picture = Drawn((65, 40), 0.0, (0, 0, 130, 80))
    cubic, linear = (
        views_of(np.asarray(strong), [whole_picture], size, cubic)[0].permute(1, 2, 0).numpy()
        for cubic in (True, False)
    )
    pillow = np.asarray(strong.resize((size, size), Image.Resampling.BICUBIC))
    assert np.abs(cubic.astype(int) - pillow).max() < 60, "no level goes round from white to black"
    assert cubic.std() > 1.05 * linear.std(), "it is sharper"


CHANGES: dict[str, tuple[dict[str, Any], list[bool]]] = {
    # The change, and which of global 1, global 2 and local it reaches.
    "global_scale": ({"global_scale": [0.4, 0.5]}, [True, True, False]),
    "local_scale": ({"local_scale": [0.1, 0.2]}, [False, False, True]),
    "ratio": ({"ratio": [0.5, 0.6]}, [True, True, True]),
    "flip": ({"flip": True}, [True, True, True]),
    "jitter": ({"jitter_share": 1.0, "jitter": [0.4, 0, 0, 0]}, [True, True, True]),
    "jitter_share": ({"jitter_share": 1.0}, [True, True, True]),
    "grey": ({"grey": 1.0}, [True, True, True]),
    "blur": ({"blur": [1.0, 0, 0]}, [True, False, False]),
    "blur of the second": ({"blur": [0, 1.0, 0]}, [False, True, False]),
    "blur of local ones": ({"blur": [0, 0, 1.0]}, [False, False, True]),
    "solarise": ({"solarise": 1.0}, [False, True, False]),
}


def test_every_key_of_a_crop_is_tried() -> None:
    others = {"local_crops", "local_size", "interpolation"}
    assert {name.partition(" ")[0] for name in CHANGES} | others == set(key_types(CropConfig))


@pytest.mark.parametrize("key", CHANGES)
def test_each_key_changes_the_crops_that_it_names(key: str) -> None:
    change, expected = CHANGES[key]
    pairs = [(views(replace(NOTHING, **change), seed), views(NOTHING, seed)) for seed in range(8)]
    assert [any((one[i] != other[i]).any() for one, other in pairs) for i in range(3)] == expected


def test_a_crop_covers_the_share_of_the_picture_that_its_scale_says() -> None:
    ramp = np.zeros((256, 256, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(256)[None, :], np.arange(256)[:, None]
    for scale in (0.05, 0.3, 0.9):
        config = replace(NOTHING, global_scale=[scale, scale], ratio=[0.75, 4 / 3])
        for seed in range(5):
            drawn = global_crop(256, 256, 0, config, 64, np.random.default_rng(seed))
            view = shown(Image.fromarray(ramp), drawn, 64).astype(float)
            sides = [(view[..., c].max() - view[..., c].min() + 1) / 256 for c in (0, 1)]
            assert sides[0] * sides[1] == pytest.approx(scale, rel=0.15)
            assert 0.7 < sides[0] / sides[1] < 1.43


def recoloured(image: Image.Image, *strengths: float) -> np.ndarray:
    """The whole picture with other brightness, contrast, saturation and hue."""
    width, height = image.size
    return shown(image, Drawn((0, 0), 0.0, (0, 0, width, height), False, *strengths), width).astype(float)


def test_the_hue_turns_and_the_grey_stays() -> None:
    red, luma = np.array([140, 100, 100]), np.array([0.299, 0.587, 0.114])
    for hue in (-0.1, 0.05, 0.1):
        turned = recoloured(Image.new("RGB", (4, 4), tuple(red.tolist())), 1, 1, 1, hue)[0, 0]
        assert turned @ luma == pytest.approx(red @ luma, abs=1.5)
        found = colorsys.rgb_to_hsv(*(turned / 255))[0]
        assert abs(hue) / 2 < abs((found + 0.5) % 1 - 0.5) < 2 * abs(hue)
    same = recoloured(picture(), 1, 1, 1, 1.0)  # a full circle
    assert np.abs(same - np.asarray(picture()).astype(int)).max() <= 1
    assert np.ptp(recoloured(picture(), 1, 1, 0, 0.1), axis=-1).max() <= 1


@pytest.mark.parametrize(
    ("size", "patch", "expected"), [(224, 14, 98), (224, 16, 96), (48, 8, 24), (28, 14, 14), (14, 14, 14)]
)
def test_a_local_crop_is_a_whole_number_of_patches(size: int, patch: int, expected: int) -> None:
    assert CropConfig().local_pixels(size, patch) == expected
    assert CropConfig(local_size=patch).local_pixels(size, patch) == patch
    for wrong in (patch + 1, size + patch):
        config = CropConfig(local_size=wrong)
        refused(RecipeError, lambda config=config: config.local_pixels(size, patch), "phase4.crops.local_size", wrong)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("local_crops", -1), ("local_size", 0), ("global_scale", [0.5]), ("global_scale", [0.0, 1.0]),
        ("local_scale", [0.4, 0.3]), ("ratio", [0.0, 1.0]), ("jitter", [0.1, 0.1, 0.1]),
        ("jitter", [1.0, 0.0, 0.0, 0.0]), ("jitter", [0.0, 0.0, 0.0, 0.6]), ("jitter_share", 1.1), ("grey", -0.1),
        ("blur", [1.0, 1.0]), ("blur", [1.0, 1.0, 2.0]), ("solarise", 2),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(key: str, value: Any) -> None:
    refused(RecipeError, lambda: replace(CropConfig(), **{key: value}), f"phase4.crops.{key}", value)
