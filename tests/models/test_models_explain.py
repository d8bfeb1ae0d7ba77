"""Heatmaps of models: against an exact linear model, planted objects, and weights that know nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IN_A_ROW, STAGED, TINY
from refusals import refused
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageClassification

from natix_hf.errors import UsageError
from natix_hf.models import explain
from natix_hf.models.architectures import ARCHITECTURES
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.explain import Explainer, OutOfTime, check_method, heat_of, share_of
from natix_hf.models.preprocess import make_processor
from natix_hf.provenance.files import write_json

PX, CELL = 28, 7
every_one = pytest.mark.parametrize("name", TINY)


def save(folder: Path, name: str, steps: int, tint: float = 0.8) -> Path:
    """A model that has learned, in so many steps, whether there is an orange or a blue cell in a tinted picture."""
    depths = {"depths": [1, 1]} if name in STAGED else {}
    config = ModelConfig(config=TINY[name] | {"initializer_range": 0.1, "patch_size": CELL} | depths, image_size=PX)
    model, rng = build_classifier(config, seed=0).train(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        views, labels, _ = planted(32, rng, tint)
        optimizer.zero_grad()
        cross_entropy(model(pixel_values=torch.from_numpy(views)).logits, torch.from_numpy(labels)).backward()
        optimizer.step()
    model.save_pretrained(folder)
    make_processor(config).save_pretrained(folder)
    return folder


def planted(count: int, rng: np.random.Generator, tint: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of noise, float32 [n, 3, S, S], with an orange cell (label 1) or a blue one; and the place of the cell."""
    views = rng.normal(0, 0.3, (count, 3, PX, PX)) + tint * rng.normal(size=(count, 3, 1, 1))
    places, labels = rng.integers(0, PX // CELL, (count, 2)), np.arange(count) % 2
    for view, (row, column), label in zip(views, places, labels, strict=True):
        orange = np.array([1.5, 0.5, -1.5] if label else [-1.5, 0.5, 1.5])
        view[:, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] += orange[:, None, None]
    return views.astype(np.float32), labels, places


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made: dict[str, Explainer] = {}

    def explainer(name: str) -> Explainer:
        if name not in made:
            # a ConvNeXt V2 learns slowly, and needs the easier pictures
            tint = 0.0 if name == "convnextv2" else 0.8
            made[name] = Explainer(save(tmp_path_factory.mktemp("planted") / name, name, 60, tint))
        return made[name]

    yield explainer


def answered_yes(explainer: Explainer, view: np.ndarray) -> bool:
    with torch.inference_mode():
        no, yes = explainer.model(pixel_values=torch.from_numpy(view[None])).logits[0].tolist()
    return bool(yes > no)


def hits(explainer: Explainer, method: str, tint: float, count: int = 20) -> tuple[int, int]:
    """In how many of the views the hottest place lies in the planted cell, and in how many anything is hot."""
    views, _, places = planted(count, np.random.default_rng(7), tint)
    found, hot = 0, 0
    for view, place in zip(views, places, strict=True):
        evidence = explainer.evidence(view, answered_yes(explainer, view), method)
        share = share_of(evidence, abs(explainer.logit(view))) if method == "gradient" else 1.0
        heat = heat_of(evidence, PX, share)
        assert heat.shape == (PX, PX) and heat.dtype == np.float32 and heat.min() >= 0 and heat.max() <= 1
        if heat.max() == 1:
            hot += 1
            found += [at // CELL for at in np.unravel_index(heat.argmax(), heat.shape)] == place.tolist()
    return found, hot


@every_one
def test_the_hottest_place_is_the_planted_one(name: str, trained: Any) -> None:
    """Of 16 places; by chance 1 in 16. A model may take the one answer for what it says unless it sees the other
    colour: then no place speaks for it, and none may look as if it did."""
    found, hot = hits(trained(name), "gradient", 0.0 if name == "convnextv2" else 0.8)
    assert hot >= 8 and found >= 0.85 * hot


def test_a_colour_that_is_all_over_the_blurred_picture_is_found_too(tmp_path: Path) -> None:
    """A model that goes by a colour alone: begun from the picture's own colours, not one heat was right."""
    assert hits(Explainer(save(tmp_path, "dinov2", 60, 0.0)), "gradient", 0.0) == (20, 20)


def test_evidence_that_is_little_beside_the_answer_is_faint() -> None:
    evidence = np.array([[0.02, -3.0], [0.03, 0.0]])
    for distance, share in ((0.0, 1.0), (0.4, 1.0), (0.5, 1.0), (1.0, 0.5), (50.0, 0.01)):
        assert share_of(evidence, distance) == pytest.approx(share)
        assert heat_of(evidence, 8, share_of(evidence, distance)).max() == pytest.approx(share)
    assert share_of(-np.ones((2, 2)), 1.0) == 0 == share_of(np.zeros((2, 2)), 0.0)


@pytest.mark.parametrize("name", ["vit", "dinov2_with_registers"])
def test_rollout_finds_what_the_cls_token_must_attend_to(name: str, tmp_path: Path) -> None:
    assert hits(Explainer(save(tmp_path, name, 60, 0.0)), "rollout", 0.0)[0] >= 17


@every_one
def test_weights_that_know_nothing_give_another_heat(name: str, trained: Any, tmp_path: Path) -> None:
    """Adebayo et al. 2018: with the heat of an edge detector the correlation would be near 1."""
    known, fresh = trained(name), Explainer(save(tmp_path, name, 0))
    views, _, _ = planted(12, np.random.default_rng(3), 0.0)
    alike = [spearmanr(known.evidence(v, True).ravel(), fresh.evidence(v, True).ravel())[0] for v in views]
    assert abs(float(np.mean(alike))) < 0.4


def test_a_linear_model_is_explained_exactly(trained: Any) -> None:
    """Of a linear model integrated gradients are the weight times the difference; the blur is scipy's."""
    explainer, rng = trained("vit"), np.random.default_rng(1)
    weight, view = rng.normal(size=(3, PX, PX)), rng.normal(size=(3, PX, PX)).astype(np.float32)
    w = torch.from_numpy(weight).float()
    linear = Explainer.__new__(Explainer)
    linear.__dict__ |= explainer.__dict__

    def model(pixel_values: torch.Tensor) -> Any:
        z = (pixel_values * w).sum(dim=(1, 2, 3))
        return SimpleNamespace(logits=torch.stack([-0.25 * z, 0.75 * z], dim=1))

    config = explainer.model.config
    linear.model = model
    model.config = config  # type: ignore[attr-defined]
    settings = explainer.preprocess.processor
    mean, std = (np.asarray(settings[key])[:, None, None] for key in ("image_mean", "image_std"))
    # reach: 3 standard deviations, as many px as the code takes
    sigma = 0.1 * PX
    blurred = np.stack([gaussian_filter(band.astype(float), sigma, mode="nearest", radius=9) for band in view])
    colour = view.mean(axis=(1, 2), keepdims=True)
    begin = (blurred + colour + -mean / std + (1 - mean) / std) / 4
    moved = (weight * (view - begin)).sum(axis=0).reshape(4, CELL, 4, CELL).sum(axis=(1, 3))
    np.testing.assert_allclose(linear.evidence(view, True), moved, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(linear.evidence(view, False), -linear.evidence(view, True))


@every_one
def test_with_many_steps_the_evidence_adds_up(name: str, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To what the picture has beyond the mean of its beginnings. 8 steps give the same order of places."""
    explainer = trained(name)
    [view], _, _ = planted(1, np.random.default_rng(5), 0.8)
    few = explainer.evidence(view, True)
    monkeypatch.setattr(explain, "_STEPS", 1024)
    monkeypatch.setattr(explain, "_AT_ONCE", 128)
    many = explainer.evidence(view, True)
    pixels = torch.from_numpy(view)
    with torch.inference_mode():
        asked = torch.stack([pixels, *explainer.starts(pixels).values()])
        z = explainer.model(pixel_values=asked).logits @ torch.tensor([-1.0, 1.0])
    wanted, size = float(z[0] - z[1:].mean()), float(z.abs().max())
    assert abs(many.sum() - wanted) < 1e-3 * size
    assert spearmanr(few.ravel(), many.ravel())[0] > 0.7 and few.argmax() == many.argmax()


@pytest.mark.parametrize("name", IN_A_ROW)
def test_rollout_is_a_product_of_attention(name: str, trained: Any, tmp_path: Path) -> None:
    """By hand, token by token, in float64; and every row of it sums to 1, so the patches' shares to at most 1."""
    explainer, view = trained(name), planted(1, np.random.default_rng(2), 0.0)[0][0]
    same = save_only(tmp_path, explainer)
    model = AutoModelForImageClassification.from_pretrained(same, attn_implementation="eager").eval()
    with torch.inference_mode():
        layers = model(pixel_values=torch.from_numpy(view[None]), output_attentions=True).attentions
    tokens = layers[0].shape[-1]
    flow = np.zeros(tokens)
    flow[0] = 1.0  # what the cls token of the last block is made of, walked backwards
    for layer in reversed(layers):
        step = layer[0].mean(dim=0).double().numpy()
        came = [sum(flow[i] * step[i, j] for i in range(tokens)) for j in range(tokens)]
        flow = 0.5 * flow + 0.5 * np.array(came)
    found = explainer.evidence(view, True, "rollout")
    assert found.shape == (4, 4) and 0 < found.sum() <= 1
    np.testing.assert_allclose(found.ravel(), flow[-16:], rtol=1e-5)


def test_the_same_whatever_the_caller_does_meanwhile(trained: Any, tmp_path: Path) -> None:
    explainer, view = trained("dinov2"), planted(1, np.random.default_rng(4), 0.0)[0][0]
    alone = {method: explainer.evidence(view, True, method) for method in ("gradient", "rollout")}
    with torch.inference_mode():
        np.testing.assert_array_equal(explainer.evidence(view, True), alone["gradient"])
        made_here = Explainer(save_only(tmp_path, explainer))
        np.testing.assert_array_equal(made_here.evidence(view, True), alone["gradient"])
    with torch.no_grad():
        np.testing.assert_array_equal(explainer.evidence(view, True), alone["gradient"])
        assert not torch.is_grad_enabled()
    found: list[bool] = []

    def ask(method: str) -> None:
        found.append(np.array_equal(explainer.evidence(view, True, method), alone[method]))

    threads = [threading.Thread(target=ask, args=(method,)) for method in alone for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in explainer.model.parameters())


@pytest.mark.parametrize(("px", "tokens_at_once"), [(224, 4 * 65), (448, 257), (672, 577)])
def test_a_large_view_takes_fewer_at_a_time_and_no_attention_is_kept(
    px: int, tokens_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of tokens x tokens in every layer and picture took several times the memory of training at 518 px."""
    config = ModelConfig(config=TINY["dinov2"] | {"patch_size": 28}, image_size=px)
    build_classifier(config, seed=0).save_pretrained(tmp_path)
    make_processor(config).save_pretrained(tmp_path)
    explainer, seen = Explainer(tmp_path), []
    forward = explainer.model.forward

    def counted(**given: Any) -> Any:
        seen.append(len(given["pixel_values"]) * ((px // 28) ** 2 + 1))
        assert explainer.model.config._attn_implementation != "eager"
        return forward(**given)

    monkeypatch.setattr(explainer.model, "forward", counted)
    assert explainer.evidence(np.zeros((3, px, px), np.float32), True).shape == (px // 28, px // 28)
    assert set(seen) == {tokens_at_once}
    assert sum(seen) == 32 * ((px // 28) ** 2 + 1)


def test_no_pass_begins_when_the_time_is_over(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer, view, passes = trained("dinov2"), planted(1, np.random.default_rng(4), 0.0)[0][0], []
    now = iter(range(100))
    monkeypatch.setattr(explain.time, "monotonic", lambda: next(now))
    forward = explainer.model.forward
    monkeypatch.setattr(explainer.model, "forward", lambda **given: passes.append(1) or forward(**given))
    with pytest.raises(OutOfTime):
        explainer.evidence(view, True, until=3)
    assert len(passes) == 3
    assert explainer.evidence(view, True, until=1000).shape == (4, 4)


def save_only(folder: Path, explainer: Explainer) -> Path:
    explainer.model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", explainer.preprocess.processor)
    return folder


def test_no_heat_where_nothing_speaks_for_the_answer() -> None:
    for evidence in (np.zeros((2, 2)), -np.ones((2, 2)), np.full((2, 2), np.nan)):
        heat = heat_of(evidence, 8)
        assert heat.shape == (8, 8) and heat.dtype == np.float32 and not heat.any()
    assert heat_of(np.array([[1e-300, 0.0], [0.0, -5.0]]), 8).max() == 1


def test_what_cannot_be_explained_is_refused_in_one_line(trained: Any) -> None:
    for wrong in ("Gradient", "", None, 3, ["gradient"]):
        refused(UsageError, lambda wrong=wrong: check_method(wrong), "method", "gradient", "rollout")
    for name in STAGED:
        known, view = trained(name), np.zeros((3, PX, PX), np.float32)
        refused(UsageError, lambda known=known: known.evidence(view, True, "rollout"), name, "gradient")  # noqa: B023
    for name in ("resnet", "beit"):
        refused(UsageError, lambda name=name: check_method("gradient", name), name, *ARCHITECTURES)
