"""DIET: which image is a view of. The loss against a slow one by hand, what is trained, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import IN_A_ROW, striped_image, tiny_backbone
from refusals import refused
from torch.utils.data import default_collate

from natix_hf import ExploraTrainer
from natix_hf.data.config import AugmentConfig
from natix_hf.data.plain import rows_of
from natix_hf.data.views import TrainViews, choose_place, finished
from natix_hf.errors import RecipeError
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.ssl import apply_explora, diet
from natix_hf.ssl.diet import Diet
from natix_hf.ssl.diet_config import DietConfig
from natix_hf.ssl.explora import plain_backbone
from natix_hf.ssl.probe import backbone_features

IMAGES = 11


def batch(n: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, IMAGES, (n,), generator=generator)
    return {"pixel_values": torch.randn(n, 3, 28, 28, generator=generator), "row": rows}


@pytest.mark.parametrize("model_type", IN_A_ROW)
@pytest.mark.parametrize("smoothing", [0.0, 0.8])
def test_the_loss_by_hand(model_type: str, smoothing: float) -> None:
    """Term by term in float64, on the very features that the probe reads."""
    objective = Diet(tiny_backbone(model_type), DietConfig(label_smoothing=smoothing), IMAGES, 0).eval()
    inputs = batch()
    views: Any = [{"pixel_values": picture} for picture in inputs["pixel_values"]]
    features = backbone_features(objective.backbone(), views, range(5), batch_size=2)
    weights = objective.head.weight.detach().numpy().astype(np.float64)
    total, right = 0.0, 0
    for own, row in zip(features.astype(np.float64), inputs["row"].tolist(), strict=True):
        logits = [float((weights[image] * own).sum()) for image in range(IMAGES)]
        most = max(logits)
        log_sum = most + math.log(sum(math.exp(value - most) for value in logits))
        right += logits[row] == most
        for image, value in enumerate(logits):
            target = smoothing / IMAGES + (1 - smoothing) * (image == row)
            total -= target * (value - log_sum)
    found = objective(**inputs)
    assert float(found["loss"].detach()) == pytest.approx(total / 5, rel=1e-5)
    assert float(found["told"]) == pytest.approx(right / 5) and 0.1 < float(found["feature_std"]) < 2


@pytest.mark.parametrize("explora", [False, True], ids=["all", "explora"])
@pytest.mark.parametrize("model_type", IN_A_ROW)
def test_every_trainable_parameter_gets_a_gradient(model_type: str, explora: bool) -> None:
    """DDP would wait for one that gets none: a pooler and a mask token are unused."""
    backbone = tiny_backbone(model_type)
    objective = Diet(apply_explora(backbone, rank=4) if explora else backbone, DietConfig(), IMAGES, 0)
    objective(**batch())["loss"].backward()
    trained = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    assert "head.weight" in trained and all(gradient is not None for gradient in trained.values())
    still = {name for name, gradient in trained.items() if not gradient.any()}  # type: ignore[union-attr]
    assert {name for name in still if "lora_A" not in name} == set()
    assert objective.untrained_state() == {} and plain_backbone(objective.backbone()) is backbone


def test_the_layer_comes_from_the_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    heads = [Diet(tiny_backbone("vit"), DietConfig(), IMAGES, seed).head.weight for seed in (0, 0, 1)]
    torch.set_rng_state(before)
    Diet(backbone := tiny_backbone("vit"), DietConfig(), IMAGES, 5)
    state = torch.get_rng_state()
    Diet(backbone, DietConfig(), IMAGES, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert heads[0].shape == (IMAGES, 64)


def images(count: int) -> Any:
    rng = np.random.default_rng(0)
    return datasets.Dataset.from_dict({"image": [striped_image(i % 2, rng) for i in range(count)]})


@pytest.mark.parametrize("place", ["workers", "device"])
def test_views_are_train_views_with_the_number_of_their_row(place: Any) -> None:
    rows = rows_of(images(6), "train", "image", None)
    processor = make_processor(ModelConfig(config={"model_type": "dinov2", "patch_size": 7}, image_size=28))
    given = AugmentConfig(flip=False, rotate=3.0, jitter=0.1)
    settings = DietConfig(jitter=0.2, grey=1.0, blur=0.0, crop_scale=[0.4, 0.5])
    views: Any = Diet.views(rows, processor, 7, given, 3, diet=settings)
    as_drawn = replace(given, crop_scale=[0.4, 0.5], jitter=0.2, grey=1.0)
    plain = TrainViews(rows, as_drawn, 28, processor.image_mean, processor.image_std, 3)
    keys = [(0, 4), (2, 0), (1, 4)]
    found = []
    for each in (views, plain):
        choose_place(each, place, torch.device("cpu"))
        found.append(finished(each, default_collate(each.__getitems__(keys))))
    assert torch.equal(found[0]["pixel_values"], found[1]["pixel_values"])
    assert found[0]["row"].tolist() == [4, 0, 4] and found[0].keys() == {"pixel_values", "row"}
    assert not hasattr(views, "draw") and len(views) == 6
    exam: Any = Diet.views(rows, processor, 7, "challenge", 3, diet=settings)
    assert exam.views.config == replace(AugmentConfig(), crop_scale=[0.4, 0.5], jitter=0.2, grey=1.0, blur=0.0)


def test_it_learns_the_images_from_python(tmp_path: Path) -> None:
    """32 pictures: chance is 1/32. What is left is a plain backbone, proven, without the layer."""
    args = {"max_steps": 60, "learning_rate": 1e-2, "per_device_train_batch_size": 32, "logging_steps": 10,
            "dataloader_num_workers": 0, "output_dir": str(tmp_path), "weight_decay": 0.0}  # fmt: skip
    weak = DietConfig(label_smoothing=0.1, crop_scale=[0.9, 1.0], jitter=0.1, grey=0.0, blur=0.0)
    trainer = ExploraTrainer(
        tiny_backbone("dinov2"), "diet", images(32), args, rank=4, probe_steps=0, settings={"diet": weak},
        augment=AugmentConfig(flip=False, rotate=0.0),
    )  # fmt: skip
    trainer.train()
    history = [row for row in trainer.state.log_history if "loss" in row]
    assert history[0]["loss"] > history[-1]["loss"] + 1 and history[-1]["loss"] < math.log(32) - 1
    assert history[-1]["told"] > 16 / 32
    assert trainer.proof is not None and trainer.proof["max_difference"] <= 1e-4
    assert {*trainer.merged().state_dict()} == {*tiny_backbone("dinov2").state_dict()}


def test_a_large_layer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(diet, "tell", told.append)
    monkeypatch.setattr(diet, "_LARGE", 4 * 4 * 64 * IMAGES)
    Diet(tiny_backbone("vit"), DietConfig(), IMAGES - 1, 0)
    assert told == []
    Diet(tiny_backbone("vit"), DietConfig(), IMAGES, 0)
    assert len(told) == 1 and str(IMAGES) in told[0] and "11.3 kB" in told[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("label_smoothing", 1.0), ("label_smoothing", -0.1), ("crop_scale", [0.5, 0.2]), ("crop_scale", [0.5]),
     ("jitter", 1.0), ("grey", 1.1), ("blur", -1.0)],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(key: str, value: Any) -> None:
    refused(RecipeError, lambda: DietConfig(**{key: value}), f"phase4.diet.{key}", value)
