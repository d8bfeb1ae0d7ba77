"""Views that are made on the device, beside those of the workers: the same draws, nearly the same pixels."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from scipy.stats import kstest
from test_drawn import EVERYTHING, photograph
from torch.utils.data import default_collate

from natix_hf.data.augment import augment
from natix_hf.data.config import AugmentConfig
from natix_hf.data.crops import MultiCropViews
from natix_hf.data.crops_config import CropConfig
from natix_hf.data.exam_on_device import _jpeg, _normal, described_challenge, made_challenges
from natix_hf.data.on_device import same_size
from natix_hf.data.plain import rows_of
from natix_hf.data.rows import Rows
from natix_hf.data.views import MaskedViews, TrainViews, choose_place, finished
from natix_hf.subnet.challenge import LEVELS, SIZE, draw_challenge, jpeg

SIZES = [(150, 96), (96, 140), (60, 50), (120, 120), (33, 100), (7, 9), (1, 3)]
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        table = datasets.Dataset.from_dict({"image": [photograph(*size) for size in SIZES]})
        return rows_of(table, "train", "image", None)


def views_of_kind(kind: str, rows: Rows) -> Any:
    if kind == "crops":
        return MultiCropViews(rows.decoded, CropConfig(local_crops=3), 56, 7, MEAN, STD, 0)
    if kind == "bicubic crops":
        cubic = CropConfig(local_crops=3, interpolation="bicubic")
        return MultiCropViews(rows.decoded, cubic, 56, 7, MEAN, STD, 0)
    config: Any = {"default": AugmentConfig(), "challenge": "challenge"}.get(kind, EVERYTHING)
    views = TrainViews(rows, config, 48, MEAN, STD, 0)
    return MaskedViews(views, 16) if kind == "masked" else views


def batches(views: Any, keys: list[tuple[int, int]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch as workers make it, and as the device does."""
    found = []
    for where in ("workers", "device"):
        choose_place(views, where, torch.device("cpu"))
        found.append(finished(views, default_collate(views.__getitems__(keys))))
    return found[0], found[1]


def levels(batch: torch.Tensor) -> torch.Tensor:
    """Pixels from 0 to 255 of normalised ones."""
    return (batch * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


@pytest.mark.parametrize("kind", ["default", "everything", "masked", "crops", "bicubic crops"])
def test_the_device_makes_what_the_workers_make(kind: str, rows: Rows) -> None:
    """Pictures of all sizes in one batch: those of a few px are enlarged, and padded by far."""
    keys = [(epoch, row) for epoch in range(4) for row in range(len(rows))]
    workers, device = batches(views_of_kind(kind, rows), keys)
    assert workers.keys() == device.keys()
    for name, expected in workers.items():
        assert device[name].shape == expected.shape and device[name].dtype == expected.dtype, name
        if expected.dtype == torch.float32 and expected.ndim > 2:
            apart = (levels(device[name]) - levels(expected)).abs()
            assert apart.mean() < 2 and apart.flatten(1).mean(dim=1).max() < 6, name
        else:
            assert torch.equal(device[name], expected), name


def test_a_challenge_of_the_device_is_like_that_of_the_exam() -> None:
    """Level by level on large copies, as the recipes have them. The noise is other noise, as strong."""
    image = np.asarray(photograph(560, 384))
    found: dict[tuple[int, bool], list[Any]] = {}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        level = int(rng.choice(LEVELS))
        noisy = bool(draw_challenge(560, 384, level, rng).strengths.get("noise"))
        exact = augment(image, "challenge", SIZE, np.random.default_rng(seed)).float()
        drawn = described_challenge(image, np.random.default_rng(seed))[None]
        ours = made_challenges(same_size([image]), drawn, SIZE, 2)[0].float()
        apart = float((ours - exact).abs().mean()), float((ours - exact).mean()), float(ours.std() / exact.std())
        found.setdefault((level, noisy), []).append(apart)
    assert {level for level, _ in found} == set(LEVELS) and (3, True) in found
    for (_, noisy), figures in found.items():
        apart, bias, spread = np.mean(figures, axis=0)
        assert apart < (10 if noisy else 2) and abs(bias) < 0.5 and spread == pytest.approx(1, abs=0.02)


def test_black_corners_of_a_challenge_are_black() -> None:
    white = np.full((300, 300, 3), 255, dtype=np.uint8)
    shares = []
    for seed in range(60):
        exact = augment(white, "challenge", SIZE, np.random.default_rng(seed)).float()
        drawn = described_challenge(white, np.random.default_rng(seed))[None]
        ours = made_challenges(same_size([white]), drawn, SIZE, 2)[0].float()
        shares.append((float((exact < 90).float().mean()), float((ours < 90).float().mean())))
    assert max(black for black, _ in shares) > 0.05
    assert max(abs(one - other) for one, other in shares) < 0.01


def test_a_jpeg_of_the_device_is_that_of_pillow() -> None:
    image = photograph(SIZE, SIZE)
    exact, before = (torch.from_numpy(np.array(one)).float() for one in (jpeg(image), image))
    ours = _jpeg(before.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    apart, changed = (ours - exact).abs().mean(), (before - exact).abs().mean()
    assert apart < 0.4 * changed and apart < 1


def test_noise_is_normal_and_depends_on_the_seed_alone() -> None:
    shape = torch.Size((3, 3, 64, 64))
    noise = _normal(torch.tensor([5.0, 2.0**24 - 1, 6.0]), shape)
    assert torch.equal(noise[1], _normal(torch.tensor([2.0**24 - 1]), torch.Size((1, 3, 64, 64)))[0])
    for one in noise:
        assert kstest(one.flatten().numpy(), "norm").pvalue > 1e-3
        flat = one.flatten()
        assert abs(float((flat[1:] * flat[:-1]).mean())) < 0.04, "neighbours are independent"
    assert abs(float((noise[0] * noise[2]).mean())) < 0.04, "and so are seeds"


@pytest.mark.parametrize("kind", ["everything", "challenge", "crops", "bicubic crops"])
def test_a_view_does_not_depend_on_its_batch(kind: str, rows: Rows) -> None:
    """Another batch pads the pictures to another size. Only the last bit of a float may differ, then rounded; a JPEG
    spreads that over its block."""
    most, share = (12, 0.05) if kind == "challenge" else (1.01, 0.01)
    views, keys = views_of_kind(kind, rows), [(2, row) for row in range(len(rows))]
    _, together = batches(views, keys)
    for place, key in enumerate(keys):
        _, alone = batches(views, [key])
        for name in set(together) & {"pixel_values", "global_crops", "local_crops"}:
            apart = (levels(together[name][place]) - levels(alone[name][0])).abs()
            assert apart.max() < most and (apart > 0.5).float().mean() < share


def test_neither_padding_nor_a_black_corner_is_seen(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        white: Any = [np.full((height, width, 3), 255, dtype=np.uint8) for width, height in SIZES]
        table = datasets.Dataset.from_dict(
            {"image": white}, features=datasets.Features({"image": datasets.Image()})
        )
        rows = rows_of(table, "train", "image", None)
        plain = AugmentConfig(crop_scale=[0.05, 1], crop_ratio=[0.5, 2], rotate=180, jitter=0)
        views = TrainViews(rows, plain, 24, MEAN, STD, 0)
        _, device = batches(views, [(epoch, row) for epoch in range(20) for row in range(len(rows))])
        assert (levels(device["pixel_values"]) - 255).abs().max() < 0.01


def test_the_device_is_taken_where_it_is_a_gpu(rows: Rows) -> None:
    for kind in ("default", "crops"):
        views = views_of_kind(kind, rows)
        assert not views.on_device
        for views_on, cpu, gpu in (("auto", False, True), ("device", True, True), ("workers", False, False)):
            for device, expected in (("cpu", cpu), ("cuda", gpu)):
                choose_place(views, views_on, torch.device(device))
                assert views.on_device == expected
    masked: Any = views_of_kind("masked", rows)
    choose_place(masked, "device", torch.device("cpu"))
    assert masked.views.on_device
    choose_place([1, 2], "device", torch.device("cpu"))  # a user's own dataset


@pytest.mark.parametrize("kind", ["default", "everything", "challenge", "masked", "crops"])
def test_nothing_is_left_on_the_cpu(kind: str, rows: Rows) -> None:
    """Another device than the CPU, on a machine without one: torch refuses to mix it with tensors that were made
    elsewhere, and to read a value of it, for which a GPU would have to be waited for."""
    views = views_of_kind(kind, rows)
    choose_place(views, "device", torch.device("cpu"))
    batch = default_collate(views.__getitems__([(1, row) for row in range(4)]))
    done = finished(views, {name: value.to("meta") for name, value in batch.items()})
    assert {value.device.type for value in done.values()} == {"meta"}
    choose_place(views, "workers", torch.device("cpu"))
    expected = finished(views, default_collate(views.__getitems__([(1, row) for row in range(4)])))
    assert {name: (value.shape, value.dtype) for name, value in done.items()} == {
        name: (value.shape, value.dtype) for name, value in expected.items()
    }
