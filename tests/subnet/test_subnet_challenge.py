"""The exam against hand-written slow references: geometry exact, integer operations within one grey level."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from natix_hf.subnet.challenge import (
    DISTORTIONS,
    LEVELS,
    SIZE,
    Challenge,
    apply_challenge,
    cached_picture,
    challenge_image,
    challenge_jpeg,
    draw_challenge,
    jpeg,
)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A coloured gradient with noise and hard edges: every fault of geometry or colour shows."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, 255 - (x + y) / 2], axis=-1)
    pixels[height // 3 : height // 2, width // 4 : width // 3] = (250, 120, 5)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def only(name: str, strength: int, image: Image.Image, seed: int = 0) -> np.ndarray:
    """One distortion of an image that is 224 px already."""
    challenge = Challenge(0.0, (0, 0, SIZE), {name: strength})
    return np.asarray(apply_challenge(image, challenge, generator(seed))).astype(np.int64)


# Geometry.


def slowly_rotated(image: Image.Image, degrees: float) -> np.ndarray:
    """Every pixel asks where it came from: nearest neighbour, black fill, no expansion, counter-clockwise."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    out = np.zeros_like(pixels)
    angle = math.radians(degrees)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5 - width / 2, row + 0.5 - height / 2
            from_x = math.cos(angle) * x - math.sin(angle) * y + width / 2
            from_y = math.sin(angle) * x + math.cos(angle) * y + height / 2
            if 0 <= from_x < width and 0 <= from_y < height:
                out[row, column] = pixels[int(from_y), int(from_x)]
    return out


@pytest.mark.parametrize(
    ("width", "height", "degrees"), [(90, 60, -20.0), (60, 90, 7.7), (71, 71, 19.9), (240, 224, -3.3)]
)
def test_rotation_is_exact(width: int, height: int, degrees: float) -> None:
    """No flip either, and black beyond the edge."""
    image = picture(width, height)
    rotated, side = Image.fromarray(slowly_rotated(image, degrees)), min(width, height)
    for left, top, size in ((0, 0, side), (width - side // 2, height - side // 2, side // 2)):
        expected = rotated.crop((left, top, left + size, top + size)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        found = apply_challenge(image, Challenge(degrees, (left, top, size)), generator())
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(("width", "height", "box"), [
    (400, 300, (50, 0, 300)), (300, 400, (0, 50, 300)), (301, 224, (38, 0, 224)), (224, 224, (0, 0, 224)),
    (100, 50, (25, 0, 50)), (303, 224, (40, 0, 224)),
])  # fmt: skip
def test_level_0_is_the_centre_square(width: int, height: int, box: tuple[int, int, int]) -> None:
    image = picture(width, height)
    assert draw_challenge(width, height, 0, generator()) == Challenge(0.0, box)
    left, top, side = box
    expected = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    found = apply_challenge(image, draw_challenge(width, height, 0, generator()), generator())
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def slowly_saved(image: Image.Image) -> Image.Image:
    """JPEG 75 with chroma at half size, to bytes and back."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=75, subsampling="4:2:0")
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def slowly_squeezed(image: Image.Image, axes: tuple[int, int]) -> np.ndarray:
    """A square of 1024 px by Lanczos, one axis after the other, without looking at the aspect."""
    pixels = np.asarray(image).astype(np.float64)
    for axis in axes:
        was = pixels.shape[axis]
        wide = max(1.0, was / 1024) * 3
        lines = []
        for place in range(1024):
            centre = (place + 0.5) * was / 1024
            near = np.arange(max(0, int(centre - wide + 0.5)), min(was, int(centre + wide + 0.5)))
            x = (near - centre + 0.5) * 3 / wide
            weights = np.sinc(x) * np.sinc(x / 3) * (np.abs(x) < 3)
            lines.append(np.tensordot(weights / weights.sum(), np.take(pixels, near, axis), (0, axis)))
        pixels = np.rint(np.clip(np.stack(lines, axis), 0, 255))
    return pixels


def sent(cached: Image.Image, level: int, seed: int) -> bytes:
    """What is sent of a picture that lies in the validator's cache."""
    rng = np.random.default_rng([seed, level])
    view = apply_challenge(cached, draw_challenge(cached.width, cached.height, level, rng), rng)
    buffer = io.BytesIO()
    view.save(buffer, "JPEG", quality=75, subsampling="4:2:0")
    return buffer.getvalue()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [(224, 224), (321, 250)])
def test_a_real_picture_is_saved_at_full_size_first(size: tuple[int, int], level: int) -> None:
    image = picture(*size)
    expected = sent(slowly_saved(image), level, 7)
    assert challenge_jpeg(image, level, 7) == expected
    found = challenge_image(image, level, 7)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(Image.open(io.BytesIO(expected))))
    assert sent(image, level, 7) != expected  # the first JPEG shows


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [(1024, 1024), (300, 200), (1, 3)])
def test_a_generated_picture_is_kept_as_it_is(size: tuple[int, int], level: int) -> None:
    image = picture(*size)
    assert challenge_jpeg(image, level, 7, generated=True) == sent(image, level, 7)
    assert cached_picture(image, generated=True).tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(1280, 720), (900, 1100), (1025, 40)])
def test_a_large_generated_picture_is_squeezed(size: tuple[int, int]) -> None:
    image = picture(*size)
    found = cached_picture(image, generated=True)
    assert found.size == (1024, 1024)
    off = [np.abs(np.asarray(found) - slowly_squeezed(image, axes)).max() for axes in ((0, 1), (1, 0))]
    assert min(off) <= 1  # Pillow takes the cheaper order
    for level in (0, 3):
        view = challenge_image(image, level, 3, generated=True)
        np.testing.assert_array_equal(np.asarray(view), np.asarray(Image.open(io.BytesIO(sent(found, level, 3)))))


def test_what_no_jpeg_can_hold_is_refused() -> None:
    long = Image.new("RGB", (65_501, 2))
    refused(ValueError, lambda: challenge_image(long, 0, 0), "65501 x 2", "JPEG", "65,500")
    assert challenge_image(long, 0, 0, generated=True).size == (224, 224)
    assert challenge_image(Image.new("RGB", (65_500, 2)), 1, 0).size == (224, 224)


def test_jpeg_is_there_and_back() -> None:
    image = picture(90, 70)
    np.testing.assert_array_equal(np.asarray(jpeg(image)), np.asarray(slowly_saved(image)))


@pytest.mark.parametrize(
    ("width", "height", "share"), [(1920, 1080, 0.382), (640, 480, 0.476), (1000, 1000, 0.6), (1080, 1920, 0.382)]
)
def test_the_area_that_is_kept(width: int, height: int, share: float) -> None:
    """Ten draws of 0.2 to 1 of the area; the first whose square fits, else the centre square. Summed over sides."""
    most, area = min(width, height), width * height
    sides = np.arange(1, most + 1)
    low, high = (np.clip((sides + half) ** 2 / area, 0.2, 1) for half in (-0.5, 0.5))
    chances = (high - low) / 0.8
    misses = (1 - chances.sum()) ** 10
    kept_shares = sides**2 / area
    expected = (1 - misses) * (chances * kept_shares).sum() / chances.sum() + misses * kept_shares[-1]
    assert expected == pytest.approx(share, abs=6e-4)
    rng = generator(1)
    kept = np.array([draw_challenge(width, height, 1, rng).crop[2] ** 2 / area for _ in range(8_000)])
    assert kept.mean() == pytest.approx(expected, abs=4 * kept.std() / math.sqrt(8_000))
    assert kept.min() >= 0.1985 and kept.max() <= kept_shares[-1]


def test_crops_lie_inside_and_everywhere() -> None:
    rng = generator(2)
    for width, height in ((1920, 1080), (300, 300), (97, 41), (1, 1), (5000, 20)):
        for _ in range(100):
            left, top, side = draw_challenge(width, height, 1, rng).crop
            assert 0 <= left <= width - side and 0 <= top <= height - side and 1 <= side <= min(width, height)
    drawn = [draw_challenge(100, 100, 3, rng) for _ in range(3000)]
    crops, angles = [each.crop for each in drawn], [each.degrees for each in drawn]
    assert {0, 1} <= {left for left, _, _ in crops} and any(left + side == 100 for left, _, side in crops)
    assert -20 <= min(angles) < -19.8 and 19.8 < max(angles) <= 20 and abs(np.mean(angles)) < 0.8


# Distortions, strength by strength.


def slowly_saturated(pixels: np.ndarray, share: float) -> np.ndarray:
    """OpenCV's YCrCb of floats, its video range, chroma scaled around .5, and back; decimals cut off."""
    out = np.zeros_like(pixels)
    for place in np.ndindex(pixels.shape[:2]):
        r, g, b = (float(value) for value in pixels[place])
        y = 0.299 * r + 0.587 * g + 0.114 * b
        cb, cr = 0.564 * (b - y) + 0.5, 0.713 * (r - y) + 0.5
        y_video = (y * 219 + 16) / 255
        cb_video, cr_video = ((c * 224 + 16) / 255 for c in (cb, cr))
        cb_video, cr_video = (0.5 + (c - 0.5) * share for c in (cb_video, cr_video))
        y = (y_video * 255 - 16) / 219
        cb, cr = ((c * 255 - 16) / 224 - 0.5 for c in (cb_video, cr_video))
        out[place] = [int(v) for v in (y + 1.403 * cr, y - 0.714 * cr - 0.344 * cb, y + 1.773 * cb)]
    return out


@pytest.mark.parametrize(("strength", "share"), [(1, 0.4), (2, 0.3)])
def test_saturation(strength: int, share: float) -> None:
    image = picture(224, 224)
    expected = slowly_saturated(np.asarray(image).astype(np.int64), share)
    assert np.abs(only("saturation", strength, image) - expected).max() <= 1


@pytest.mark.parametrize(("strength", "factor"), [(1, 0.85), (2, 0.725)])
def test_contrast(strength: int, factor: float) -> None:
    image = picture(224, 224)
    expected = (np.asarray(image).astype(np.float32) * np.float32(factor)).astype(int)
    np.testing.assert_array_equal(only("contrast", strength, image), expected)


def slowly_resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Bilinear between the nearest four pixels, edges repeated, as OpenCV resizes; rounded."""
    was = pixels.shape[0]
    out = np.zeros((size, size, 3))
    for row, column in np.ndindex(size, size):
        y, x = ((place + 0.5) * was / size - 0.5 for place in (row, column))
        y0, x0 = math.floor(y), math.floor(x)
        for dy, wy in ((0, 1 - (y - y0)), (1, y - y0)):
            for dx, wx in ((0, 1 - (x - x0)), (1, x - x0)):
                out[row, column] += wy * wx * pixels[min(max(y0 + dy, 0), was - 1), min(max(x0 + dx, 0), was - 1)]
    return np.rint(out)


@pytest.mark.parametrize(("strength", "factor"), [(1, 2), (2, 3)])
def test_resampling(strength: int, factor: int) -> None:
    image = picture(224, 224)
    expected = slowly_resized(slowly_resized(np.asarray(image).astype(float), 224 // factor), 224)
    assert np.abs(only("resampling", strength, image) - expected).max() <= 1


@pytest.mark.parametrize(("strength", "size"), [(1, 7), (2, 9)])
def test_blur(strength: int, size: int) -> None:
    image = picture(224, 224)
    pixels = np.asarray(image).astype(float)
    weights = [math.exp(-((i - size // 2) ** 2) / (2 * (size / 6) ** 2)) for i in range(size)]
    padded = np.pad(pixels, ((size // 2,) * 2, (size // 2,) * 2, (0, 0)), mode="reflect")
    expected = np.zeros_like(pixels)
    for i in range(size):
        for j in range(size):
            expected += weights[i] * weights[j] / sum(weights) ** 2 * padded[i : i + 224, j : j + 224]
    assert np.abs(only("blur", strength, image) - expected).max() <= 1


@pytest.mark.parametrize(("strength", "variance"), [(1, 0.001), (2, 0.002)])
def test_noise(strength: int, variance: float) -> None:
    """Its covariance is that of independent noise on Y, Cb and Cr in video range, carried over to R, G, B."""
    grey = Image.new("RGB", (224, 224), (128, 128, 128))
    added = np.concatenate([only("noise", strength, grey, seed).reshape(-1, 3) - 128 for seed in range(12)]) + 0.5
    scale = 255 * math.sqrt(variance) * np.array([255 / 219, 255 / 224, 255 / 224])
    to_rgb = np.array([[1, 0, 1.403], [1, -0.344, -0.714], [1, 1.773, 0]])
    expected = to_rgb @ np.diag(scale**2) @ to_rgb.T + np.eye(3) / 12  # and what cutting off decimals adds
    np.testing.assert_allclose(np.cov(added.T), expected, rtol=0.02, atol=0.6)
    assert np.abs(added.mean(axis=0)).max() < 0.1
    assert not np.array_equal(only("noise", strength, grey, 0), only("noise", strength, grey, 1))


def test_noise_stays_in_range() -> None:
    for colour in ((0, 0, 0), (255, 255, 255)):
        view = only("noise", 2, Image.new("RGB", (224, 224), colour))
        assert view.min() >= 0 and view.max() <= 255 and np.abs(view - colour[0]).max() < 200  # no wrap-around


@pytest.mark.parametrize("name", ["saturation", "contrast", "resampling", "noise", "blur"])
def test_strength_0_is_nothing(name: str) -> None:
    image = picture(224, 224)
    np.testing.assert_array_equal(only(name, 0, image), np.asarray(image))


def test_strengths_are_drawn_as_stated() -> None:
    rng, n = generator(3), 4000
    for level, most in ((2, 1), (3, 2)):
        names = ["saturation", "contrast", "resampling"] + (["noise", "blur"] if level == 3 else [])
        drawn = [draw_challenge(50, 40, level, rng).strengths for _ in range(n)]
        assert all(list(each) == names for each in drawn)
        for name in names:
            counts = np.bincount([each[name] for each in drawn], minlength=most + 1)
            assert len(counts) == most + 1
            assert np.abs(counts / n - 1 / (most + 1)).max() < 0.03
        pairs = np.corrcoef(np.array([list(each.values()) for each in drawn]).T)
        assert np.abs(pairs - np.eye(len(names))).max() < 0.06  # each by itself
    assert draw_challenge(50, 40, 1, rng).strengths == {} == DISTORTIONS[0]


def test_distortions_come_in_their_order() -> None:
    image = picture(224, 224)
    both = apply_challenge(image, Challenge(0.0, (0, 0, 224), {"contrast": 2, "resampling": 2}), generator())
    first = Image.fromarray(only("contrast", 2, image).astype(np.uint8))
    np.testing.assert_array_equal(np.asarray(both), only("resampling", 2, first))


# The whole.


@pytest.mark.parametrize("level", LEVELS)
def test_the_seed_decides_everything(level: int) -> None:
    image = picture(330, 250).convert("CMYK")
    once, again, other = (challenge_image(image, level, seed) for seed in (11, 11, 12))
    np.testing.assert_array_equal(np.asarray(once), np.asarray(again))
    assert once.size == (224, 224) and once.mode == "RGB"
    assert np.array_equal(np.asarray(once), np.asarray(other)) == (level == 0)
    refused(ValueError, lambda: challenge_image(image, 4, 0), "level", 4)
    for arguments in ((-1, 0), (level, -1)):  # numpy has no such seed
        refused(ValueError, lambda arguments=arguments: challenge_image(image, *arguments), "negative")
