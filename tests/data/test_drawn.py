"""Views beside a slow reference, which rotates the whole picture first and takes every step by itself, with PIL."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import ks_2samp

from natix_hf.data.augment import augment, views_of
from natix_hf.data.config import AugmentConfig
from natix_hf.data.crops import global_crop, local_crop
from natix_hf.data.crops_config import CropConfig
from natix_hf.data.drawn import Drawn, draw_view
from natix_hf.data.pixels import Steps, change, packed

EVERYTHING = AugmentConfig(
    crop_scale=[0.1, 1], crop_ratio=[0.5, 2], rotate=180, jitter=0.5, grey=0.3, blur=0.5, erase=0.5
)


def photograph(width: int, height: int) -> Image.Image:
    """Detail at several scales, as photographs have it."""
    rng = np.random.default_rng(width)
    total = np.full((height, width, 3), 128.0)
    for divisor in (64, 16, 4):
        noise = rng.normal(0, 10 + divisor / 2, (max(2, height // divisor), max(2, width // divisor), 3)).clip(-90, 90)
        layer = Image.fromarray((noise + 128).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer) - 128.0
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def slow_draws(width: int, height: int, config: AugmentConfig, size: int, rng: Any) -> dict[str, Any]:
    """What is drawn, in the order of the steps."""
    found: dict[str, Any] = {"degrees": 0.0}
    if config.rotate:
        found["degrees"] = rng.uniform(-config.rotate, config.rotate)
        angle = math.radians(abs(found["degrees"]))
        angle = min(angle, math.pi - angle)
        shrink = 1 / (math.cos(angle) + max(width, height) / min(width, height) * math.sin(angle))
        sides = [(side - side * shrink) / 2 for side in (width, height)]
        found["inner"] = [math.ceil(side) for side in sides]
        whole = [int(side + length * shrink) for side, length in zip(sides, (width, height), strict=True)]
        width, height = whole[0] - found["inner"][0], whole[1] - found["inner"][1]
    area = width * height * rng.uniform(*config.crop_scale)
    ratio = math.exp(rng.uniform(*np.log(config.crop_ratio)))
    found["crop"] = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    found["at"] = [rng.uniform(0, length - crop) if crop < length else 0.0
                   for length, crop in zip((width, height), found["crop"], strict=True)]  # fmt: skip
    found["flip"] = config.flip and rng.random() < 0.5
    found["blur"] = rng.uniform(0.1, 2.0) * size / 224 if config.blur and rng.random() < config.blur else 0.0
    found["jitter"] = 1 + rng.uniform(-config.jitter, config.jitter, 3) if config.jitter else np.ones(3)
    if config.grey and rng.random() < config.grey:
        found["jitter"][2] = 0.0
    if config.erase and rng.random() < config.erase:
        area, ratio = size * size * rng.uniform(0.02, 0.2), math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        w, h = min(size, round(math.sqrt(area * ratio))), min(size, round(math.sqrt(area / ratio)))
        left, top = rng.integers(0, size - w + 1), rng.integers(0, size - h + 1)
        found["erase"] = left, top, w, h
    return found


def slow_view(image: Image.Image, config: AugmentConfig, size: int, rng: np.random.Generator) -> np.ndarray:
    drawn = slow_draws(*image.size, config, size, rng)
    left, top = drawn["at"]
    if config.rotate:
        # Enlarged first, so that the rotation takes no detail away.
        image = image.resize((4 * image.width, 4 * image.height), Image.Resampling.BICUBIC)
        image = image.rotate(drawn["degrees"], Image.Resampling.BICUBIC)
        left, top = left + drawn["inner"][0], top + drawn["inner"][1]
    larger = 4 if config.rotate else 1
    box = (left, top, left + drawn["crop"][0], top + drawn["crop"][1])
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=tuple(larger * edge for edge in box))
    if drawn["flip"]:
        view = ImageOps.mirror(view)
    pixels, luma = np.asarray(view, dtype=float), np.array([0.299, 0.587, 0.114])
    mean = (pixels @ luma).mean()
    brightness, contrast, saturation = drawn["jitter"]
    grey = (pixels @ luma)[..., None]
    pixels = ((grey + (pixels - grey) * saturation - mean) * contrast + mean) * brightness
    view = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
    if drawn["blur"]:
        view = view.filter(ImageFilter.GaussianBlur(drawn["blur"]))
    pixels = np.array(view, dtype=float)
    if "erase" in drawn:
        left, top, width, height = drawn["erase"]
        pixels[top : top + height, left : left + width] = pixels.mean(axis=(0, 1))
    return pixels


@pytest.mark.parametrize("config", [AugmentConfig(), EVERYTHING], ids=["default", "everything"])
@pytest.mark.parametrize(("width", "height", "size"), [(300, 170, 64), (150, 290, 64), (60, 50, 112)])
def test_a_view_is_that_of_the_slow_reference(config: AugmentConfig, width: int, height: int, size: int) -> None:
    """One draw that differs, or a map that is half a px off, gives other pixels."""
    image, apart, sharper = photograph(width, height), [], []
    for seed in range(25):
        slow = slow_view(image, config, size, np.random.default_rng(seed))
        fast = augment(np.asarray(image), config, size, np.random.default_rng(seed)).permute(1, 2, 0).numpy()
        apart.append(np.abs(fast - slow).mean())
        sharper.append(fast.std() / slow.std())
    assert np.mean(apart) < 2 and max(apart) < 6
    assert np.mean(sharper) == pytest.approx(1, abs=0.03)


def parameters(drawn: Drawn, width: int, height: int) -> list[float]:
    left, top, right, bottom = drawn.box
    across, down = right - left, bottom - top
    erase = drawn.erase or (0, 0, 0, 0)
    return [
        drawn.degrees, across * down / width / height, across / down, left, top, drawn.flip, drawn.blur,
        drawn.brightness, drawn.contrast, drawn.saturation, *erase,
    ]  # fmt: skip


def test_every_drawn_parameter_has_the_distribution_of_the_reference() -> None:
    """On other seeds than those of the reference: means, variances and the whole distributions."""
    width, height, size = 300, 170, 64
    fast, slow = [], []
    for seed in range(1500):
        drawn = draw_view(width, height, EVERYTHING, size, np.random.default_rng([0, seed]))
        fast.append(parameters(drawn, width, height))
        found = slow_draws(width, height, EVERYTHING, size, np.random.default_rng([1, seed]))
        across, down = found["crop"]
        left, top = (at + inner for at, inner in zip(found["at"], found["inner"], strict=True))
        slow.append([
            found["degrees"], across * down / width / height, across / down, left, top, found["flip"], found["blur"],
            *found["jitter"], *found.get("erase", (0, 0, 0, 0)),
        ])  # fmt: skip
    for one, other in zip(np.transpose(fast), np.transpose(slow), strict=True):
        assert ks_2samp(one, other).pvalue > 1e-3
        assert abs(one.mean() - other.mean()) < 5 * np.hypot(one.std(), other.std()) / math.sqrt(len(one))
        assert one.std() == pytest.approx(other.std(), rel=0.12)


def test_crops_have_the_distributions_that_their_settings_name() -> None:
    config, width, height = CropConfig(), 300, 170
    drawn: dict[str, list[Drawn]] = {"first": [], "second": [], "local": []}
    for seed in range(1500):
        rng = np.random.default_rng(seed)
        drawn["first"].append(global_crop(width, height, 0, config, 224, rng))
        drawn["second"].append(global_crop(width, height, 1, config, 224, rng))
        drawn["local"].append(local_crop(width, height, config, 224, rng))
    rng = np.random.default_rng(9)
    for (name, crops), blur, invert in zip(drawn.items(), config.blur, (0.0, config.solarise, 0.0), strict=True):
        jittered = [one for one in crops if one.hue]
        shares = [len(jittered), sum(one.saturation == 0 for one in crops), sum(one.blur > 0 for one in crops),
                  sum(one.solarise for one in crops), sum(one.flip for one in crops)]  # fmt: skip
        expected = [config.jitter_share, config.grey, blur, invert, 0.5]
        np.testing.assert_allclose(np.array(shares) / len(crops), expected, atol=0.05, err_msg=name)
        assert ks_2samp([one.hue for one in jittered], rng.uniform(-0.1, 0.1, 4000)).pvalue > 1e-3
        assert ks_2samp([one.brightness for one in jittered], rng.uniform(0.6, 1.4, 4000)).pvalue > 1e-3
        blurred = [one.blur for one in crops if one.blur]
        assert ks_2samp(blurred, rng.uniform(0.1, 2.0, 4000)).pvalue > 1e-3
        areas = [(r - x) * (b - y) / width / height for x, y, r, b in (one.box for one in crops)]
        low, high = config.local_scale if name == "local" else config.global_scale
        # A long crop of a large area does not fit, and is cut; the small ones all fit.
        assert low * 0.7 <= min(areas) and max(areas) <= high
        assert name != "local" or ks_2samp(areas, rng.uniform(low, high, 4000)).pvalue > 1e-3


def test_a_view_in_a_batch_is_the_view_alone() -> None:
    rng, image = np.random.default_rng(3), np.asarray(photograph(200, 130))
    drawn = [global_crop(200, 130, i % 2, CropConfig(), 64, rng) for i in range(12)]
    drawn += [draw_view(200, 130, EVERYTHING, 64, rng) for _ in range(12)]
    together = views_of(image, drawn, 64)
    for one, view in zip(drawn, together, strict=True):
        alone = views_of(image, [one], 64)[0]
        assert (view.int() - alone.int()).abs().max() <= 1  # a tie may be rounded the other way


def test_a_blur_has_its_variance_also_below_a_pixel() -> None:
    """Measured on a step: how far the blurred edge spreads."""
    for sigma in (0.2, 0.5, 1.0, 2.0, 4.5):
        drawn = Drawn((0, 0), 0.0, (0, 0, 64, 64), blur=sigma)
        step = torch.zeros(1, 3, 64, 64)
        step[..., 32:] = 255
        blurred = change(step, packed([drawn]), Steps.of([drawn]))[0, 0, 5].double() / 255
        weights, at = blurred.diff(), torch.arange(63).double() - 31
        assert float(weights.sum()) == pytest.approx(1) and float(weights @ at) == pytest.approx(0, abs=0.01)
        assert float(weights @ at.square()) == pytest.approx(sigma**2, rel=0.06, abs=0.01)


@pytest.mark.parametrize("sides", [(223.6, 300.0), (300.0, 223.6), (223.6, 223.6), (224.0, 224.0), (20.3, 400.0)])
def test_the_edge_of_a_crop_is_where_it_was_drawn(sides: tuple[float, float]) -> None:
    """A crop of about the size of the view is the hard case: it is shrunk or enlarged by less than a px."""
    ramp = np.zeros((420, 420, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(420)[None, :] // 2, np.arange(420)[:, None] // 2
    left, top = 0.9, 3.4
    for flip in (False, True):
        drawn = Drawn((210, 210), 0.0, (left, top, left + sides[0], top + sides[1]), flip)
        view = views_of(ramp, [drawn], 224)[0].numpy().astype(float)
        across = view[0].mean(axis=0)[:: -1 if flip else 1]
        for values, start, side in ((across, left, sides[0]), (view[1].mean(axis=1), top, sides[1])):
            expected = (start + (np.arange(224) + 0.5) * side / 224 - 0.5) / 2 - 0.25
            assert np.abs(values - expected).max() < 1.1
            assert np.abs((values - expected).mean()) < (0.35 if side >= 224 else 0.15)


def test_a_view_is_the_same_with_any_number_of_threads() -> None:
    """A loader's worker has one; without workers the process has them all. A resumed training may differ in that."""
    image, rng = np.asarray(photograph(500, 380)), np.random.default_rng(4)
    drawn = [draw_view(500, 380, EVERYTHING, 224, rng) for _ in range(8)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.cat([views_of(image, [one], 224) for one in drawn]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
