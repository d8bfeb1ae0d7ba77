"""Means of weights: the greedy choice on random members, and folders that can or cannot be averaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from refusals import refused
from safetensors.torch import load_file, save_file

import natix_hf
from natix_hf.errors import MergeMismatchError, UsageError
from natix_hf.metrics import select_threshold
from natix_hf.models import soup
from natix_hf.models.classifier import build_classifier, load_classifier, save_model
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.models.soup import average_models, average_problem, greedy_soup, interpolate_models


@pytest.mark.parametrize("seed", range(40))
def test_a_greedy_soup_is_at_least_as_good_as_its_best_member(seed: int) -> None:
    """Random linear classifiers on random rows, some useless, some equal; against the recipe written out slowly."""
    rng = np.random.default_rng(seed)
    rows, width, count = int(rng.integers(20, 200)), int(rng.integers(1, 6)), int(rng.integers(1, 7))
    features, truth = rng.normal(size=(rows, width)), rng.normal(size=width)
    labels = (features @ truth + rng.normal(size=rows) > 0).astype(np.int64)
    labels[:2] = 0, 1
    members = [truth * rng.choice([-1, 0, 1, 1]) + rng.normal(size=width) * rng.uniform(0, 3) for _ in range(count)]
    if count > 2:
        members[1] = members[0].copy()
    tried: list[int] = []

    def score(some: Sequence[np.ndarray]) -> float:
        tried.append(len(some))
        return select_threshold(features @ np.mean(some, axis=0), labels).value

    chosen = greedy_soup(members, score)
    alone = [score([member]) for member in members]
    assert score(chosen) >= max(alone)
    assert tried[:count] == [1] * count and len(tried) == count + (count - 1) + count + 1
    best, wanted = -np.inf, []
    for i in sorted(range(count), key=lambda i: (-alone[i], i)):
        value = select_threshold(features @ (sum([*wanted, members[i]]) / (len(wanted) + 1)), labels).value
        if value >= best or not wanted:
            best, wanted = value, [*wanted, members[i]]
    assert [id(member) for member in chosen] == [id(member) for member in wanted]


def test_a_score_that_is_no_number() -> None:
    for members, score in (([], 1.0), ([1, 2], float("nan"))):
        with pytest.raises(ValueError, match="soup"):
            greedy_soup(members, lambda some, score=score: score)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three models of one start."""
    config = ModelConfig(config=TINY["vit"], image_size=28)
    found = []
    for number in range(3):
        model, folder = build_classifier(config, seed=0), tmp_path / f"model-{number}"
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        save_model(folder, model, make_processor(config))
        found.append(folder)
    return found


def test_the_mean_is_saved_as_a_plain_model(folders: list[Path], tmp_path: Path) -> None:
    to = natix_hf.average_models([str(folder) for folder in folders], tmp_path / "soup")
    assert sorted(path.name for path in to.iterdir()) == sorted(path.name for path in folders[0].iterdir())
    states = [load_classifier(folder).state_dict() for folder in folders]
    for name, tensor in load_classifier(to).state_dict().items():
        mean = np.mean([state[name].numpy().astype(np.float64) for state in states], axis=0)
        np.testing.assert_array_equal(tensor.numpy(), mean.astype(np.float32))
    assert average_problem(to, folders) is None
    assert "not the mean" in str(average_problem(to, folders[:2]))
    alone = average_models(folders[:1], tmp_path / "alone")
    assert load_file(alone / "model.safetensors").keys() == load_file(folders[0] / "model.safetensors").keys()


def test_the_head_is_not_interpolated(folders: list[Path], tmp_path: Path) -> None:
    start, trained, *_ = folders
    for share in (0, 3, 10):
        interpolate_models(start, trained, tmp_path / "between", share, 10)
        between, a, b = (load_file(f / "model.safetensors") for f in (tmp_path / "between", start, trained))
        for name, tensor in between.items():
            wanted = (a[name].double() * (10 - share) + b[name].double() * share) / 10
            assert torch.equal(tensor, b[name] if name.startswith("classifier.") else wanted.float())
        assert torch.equal(between["classifier.weight"], b["classifier.weight"])


def test_a_file_that_does_not_hold_the_mean(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the weights had gone wrong on their way to the disk."""
    real = soup.mean_tensor
    monkeypatch.setattr(soup, "mean_tensor", lambda *args: real(*args) + 1e-6)
    refused(MergeMismatchError, lambda: average_models(folders, tmp_path / "soup"), tmp_path / "soup", "mean")
    assert not (tmp_path / "soup").exists(), "nobody takes it for the mean"


def _other_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "relu"}))


def _other_processor(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.0, 0.0, 0.0]}))


def _change(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"classifier.bias": change(tensors["classifier.bias"])}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "facts"),
    [
        (_other_config, ("config.json", "hidden_act", "relu")),
        (_other_processor, ("preprocessor_config.json", "image_mean")),
        (lambda folder: _change(folder, lambda bias: bias[:1].clone()), ("classifier.bias", "[1]")),
        (lambda folder: _change(folder, lambda bias: bias.half()), ("classifier.bias", "F16")),
        (lambda folder: _change(folder, lambda bias: bias * torch.nan), ("classifier.bias", "NaN")),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), ("preprocessor_config.json",)),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), ("model.safetensors",)),
        (shutil.rmtree, ("model.safetensors",)),
    ],
    ids=["config", "processor", "shape", "type", "diverged", "no processor", "damaged", "gone"],
)  # fmt: skip
def test_folders_that_cannot_be_averaged(
    damage: Callable[[Path], object], facts: tuple[str, ...], folders: list[Path], tmp_path: Path
) -> None:
    damage(folders[2])
    refused(UsageError, lambda: average_models(folders, tmp_path / "soup"), folders[2], *facts)
    assert not (tmp_path / "soup").exists()
    refused(UsageError, lambda: average_models([], tmp_path / "soup"), "at least one")


def test_a_soup_replaces_nothing_but_a_soup(folders: list[Path], tmp_path: Path) -> None:
    """Neither a member, however it is written, nor a folder that holds more than a model."""
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    for to in (folders[0], folders[1].parent / "." / folders[0].name / ".." / folders[1].name):
        refused(UsageError, lambda to=to: average_models(folders, to), to, "member", "another folder")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("kept")
    for to, held in ((tmp_path, "model-0"), (tmp_path / "notes", "mine.txt"), (tmp_path / "notes/mine.txt", "mine")):
        refused(UsageError, lambda to=to: average_models(folders, to), to, held, "new one")
    assert {path: path.read_bytes() for path in before} == before and (tmp_path / "notes" / "mine.txt").is_file()
    (tmp_path / "soup").mkdir()
    for some in (folders[:2], folders):
        assert average_problem(average_models(some, tmp_path / "soup"), some) is None
