"""`bundle.explain`: the answer is that of `predict`, whatever it is given; the heat is of the view."""

from __future__ import annotations

import io
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import striped_image
from facts import tells
from PIL import Image
from refusals import refused

from natix_hf.bundle.explain import overlay, view_of
from natix_hf.bundle.load import load_bundle
from natix_hf.data.images import centre_square
from natix_hf.errors import DataError, UsageError, VerificationError
from natix_hf.models.explain import Explainer

PX = 28


@pytest.fixture
def picture() -> Image.Image:
    return striped_image(1, np.random.default_rng(5), (60, 40))


def test_the_answer_is_that_of_predict_whatever_is_given(bundle: Path, picture: Image.Image, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    path, buffer = tmp_path / "a.png", io.BytesIO()
    picture.save(path)
    picture.save(buffer, format="PNG")
    [known] = loaded.predict([picture])
    kinds: list[Any] = [path, str(path), picture, np.asarray(picture), buffer.getvalue(), {"bytes": buffer.getvalue()}]
    kinds += [io.BytesIO(buffer.getvalue()), {"bytes": None, "path": str(path)}]
    for method in ("gradient", "rollout"):
        first = loaded.explain(kinds[0], method)
        for kind in kinds[1:] if method == "gradient" else []:
            found = loaded.explain(kind, method)
            assert found.prediction == known
            np.testing.assert_array_equal(found.heat, first.heat)
        assert first.prediction == known and first.method == method
        assert first.heat.shape == (PX, PX) and first.heat.dtype == np.float32
        assert first.heat.min() >= 0 and 0 < first.heat.max() <= 1
    with path.open("rb") as file:  # which can be read once
        assert loaded.explain(file).prediction == known


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (2000, 40), (28, 28), (500, 300)])
def test_any_size_is_shown_as_the_model_sees_it(bundle: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    found = load_bundle(bundle).explain(image)
    seen = centre_square(image).resize((PX, PX), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(found.view, dtype=int) - np.asarray(seen, dtype=int)).max() <= 1
    shown = found.picture()
    assert shown.size == (224, 224) and shown.mode == "RGB"


def test_what_cannot_be_read_is_said_as_by_predict(bundle: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    for bad in (tmp_path / "broken.jpg", tmp_path / "absent.jpg", None, b"", {"bytes": None, "path": None}):
        with pytest.raises(DataError) as by_predict:
            loaded.predict([bad])
        refused(DataError, lambda bad=bad: loaded.explain(bad), str(by_predict.value))
    for wrong in (3, ["a.jpg", "b.jpg"], object()):
        refused(UsageError, lambda wrong=wrong: loaded.explain(wrong), "image")
    refused(UsageError, lambda: loaded.explain(tmp_path / "absent.jpg", "saliency"), "method", "gradient", "rollout")


def test_answers_stay_as_they_are_while_others_are_explained(bundle: Path, picture: Image.Image) -> None:
    """Threads that predict and threads that explain share one bundle, which they find fresh."""
    known, loaded = load_bundle(bundle).predict([picture] * 3), load_bundle(bundle)
    one = load_bundle(bundle).explain(picture)  # an answer alone may differ from one of three in the last digits
    wrong: list[str] = []

    def predict() -> None:
        for _ in range(10):
            if loaded.predict([picture] * 3) != known:
                wrong.append("answer")

    def explain() -> None:
        for _ in range(3):
            found = loaded.explain(picture)
            if found.prediction != one.prediction or not np.array_equal(found.heat, one.heat):
                wrong.append("heat")

    threads = [threading.Thread(target=work) for work in (predict, explain) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_answer_in_bfloat16_is_explained_in_float32_and_says_so(bundle: Path, picture: Image.Image) -> None:
    rounded, exact = load_bundle(bundle, precision="bfloat16"), load_bundle(bundle)
    found, wanted = rounded.explain(picture), exact.explain(picture)
    assert found.prediction == rounded.predict([picture])[0]
    assert found.prediction.label == wanted.prediction.label, "choose another picture"
    np.testing.assert_array_equal(found.heat, wanted.heat)
    tells(found.told, "bfloat16", "float32", found.prediction.label)
    assert "float32" not in wanted.told


def test_the_heat_is_of_the_model_that_answers(bundle: Path, picture: Image.Image) -> None:
    """Not of another one that lies there by now."""
    loaded = load_bundle(bundle)
    weights = bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\x80?")
    refused(VerificationError, lambda: loaded.explain(picture), weights)


def test_the_heat_is_towards_the_answer_that_was_given(bundle: Path) -> None:
    loaded, rng = load_bundle(bundle), np.random.default_rng(2)
    seen = set()
    for n in range(8):
        picture = striped_image(n % 2, rng)
        found = loaded.explain(picture)
        seen.add(found.prediction.label)
        pixels = np.asarray(loaded.preprocess(picture))
        wanted = Explainer(bundle, "cpu").evidence(pixels, found.prediction.label == loaded.policy.labels.yes)
        np.testing.assert_allclose(found.evidence, wanted, rtol=1e-4, atol=1e-6)
        positive = np.clip(found.evidence, 0, None)
        tells(found.told, found.prediction.label, *(["lacks"] if found.heat.max() < 1 else []))
        if not found.heat.any():
            continue
        hottest = np.unravel_index(found.heat.argmax(), found.heat.shape)
        cell = PX // len(positive)
        assert positive[hottest[0] // cell, hottest[1] // cell] == positive.max()
    assert seen == {loaded.policy.labels.no, loaded.policy.labels.yes}, "both answers are tried"


def test_without_pytorch_it_says_what_is_missing(
    bundle: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_bundle(bundle)
    monkeypatch.setitem(sys.modules, "natix_hf.models.explain", None)
    refused(UsageError, lambda: loaded.explain(picture), "PyTorch", "pip install")


def test_the_picture_stays_visible_and_hot_is_not_cold() -> None:
    """By sight: brightness follows the picture, and the hottest place is yellow."""
    ramp = np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (32, 1))
    heat = np.zeros((32, 32), np.float32)
    heat[8:12, 8:12] = 1.0
    shown = np.asarray(overlay(Image.fromarray(ramp).convert("RGB"), heat)).astype(float)
    grey = shown.mean(axis=2)[200]  # a row without heat
    assert np.all(np.diff(grey[::16]) > 0) and grey[-1] - grey[0] > 150
    red, green, blue = shown[70, 70]
    assert red > blue + 60 and green > blue + 60, "yellow"


def test_a_view_is_what_was_preprocessed(bundle: Path) -> None:
    preprocess = load_bundle(bundle).preprocess
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (PX, PX, 3), dtype=np.uint8))
    np.testing.assert_array_equal(view_of(np.asarray(preprocess(image)), preprocess.processor), np.asarray(image))
