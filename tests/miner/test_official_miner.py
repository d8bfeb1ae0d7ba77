"""Bundles in the hands of the subnet's official miner: transformers 4.45.2, in an environment of its own.

`miner.py` runs there, in processes that these tests start. This one makes the bundles and says what they must answer.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, striped_image
from local_hub import LocalHub
from PIL import Image

from natix_hf.bundle.build import build_bundle
from natix_hf.bundle.inference import ImageList, Inference
from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.policy import Policy
from natix_hf.bundle.push import push_bundle
from natix_hf.calibration import Calibration
from natix_hf.models.architectures import ARCHITECTURES
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.results.answers import save_candidate
from natix_hf.results.candidate import Candidate

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-miner"
pytestmark = [
    pytest.mark.skipif(
        not (ENVIRONMENT / "installed").is_file(),
        reason="the official miner's environment is not made: make test-miner makes it and runs these tests",
    ),
    pytest.mark.xdist_group("official_miner"),
]

REPO = "lab/roadwork"
CARD = "---\nlibrary_name: transformers\n---\n# card\n"
MODELS: dict[str, dict[str, Any]] = {
    "vit": TINY["vit"] | {"patch_size": 16},
    "dinov2": TINY["dinov2"],
    "dinov2 at 518": TINY["dinov2"] | {"image_size": 518},  # as Meta's: the positions are interpolated to 224
    # Four stages, as the public ones have; windows that are shifted and, in the last stage, one window for all.
    "convnextv2": TINY["convnextv2"]
    | {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "num_stages": 4, "patch_size": 4},
    "swinv2": TINY["swinv2"]
    | {"depths": [2, 2, 2, 1], "num_heads": [2, 2, 4, 4], "pretrained_window_sizes": [0, 0, 0, 6]}
    | {"patch_size": 4, "window_size": 7},
}
UNKNOWN = [name for name, found in ARCHITECTURES.items() if not found.known_to_the_miner]
# By what is folded. A temperature of 1.7; Platt where its intercept counts.
CALIBRATIONS: dict[Any, Calibration] = {
    "decision": Calibration("temperature", 1 / 1.7),
    "calibration": Calibration("platt", 1 / 1.7, -0.6),
    "none": Calibration("temperature", 1 / 1.7),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty images as the subnet sends them, 224 pixels square, JPEG quality 75: from one class to the other."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(7)
    paths = [folder / f"{n:02}.jpg" for n in range(20)]
    for n, path in enumerate(paths):
        none, roadwork = (striped_image(label, rng, (224, 224)) for label in (0, 1))
        Image.blend(none, roadwork, n / 19).save(path, quality=75)
    return paths


def run_miner(
    images: list[Path], out: Path, repos: list[str], environment: dict[str, str], box: Path = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    out.mkdir()
    command = [str(box / "bin" / "python"), "-I", str(Path(__file__).with_name("miner.py"))]
    command += [str(images[0].parent), str(out), *repos]
    return subprocess.run(
        command, cwd=out, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300
    )


def answers_of(done: subprocess.CompletedProcess[str], present: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What the miner said of each repository; it is the version that the subnet runs, and has nothing of ours."""
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["transformers"], said["present"]) == ("4.45.2", list(present))
    answers: list[dict[str, Any]] = said["answers"]
    return answers


def offline(home: Path) -> dict[str, str]:
    return os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def make_candidate(folder: Path, fields: dict[str, Any], backbone: Path | None = None, size: int = 224) -> Candidate:
    """A random model that answers differently to different images."""
    source = str(backbone) if backbone else None
    config = ModelConfig(source, None, {"initializer_range": 0.2} | fields, image_size=size)
    model = build_classifier(config, seed=0)
    with torch.no_grad():
        for weights in model.parameters():  # what starts at zero, such as ConvNeXt V2's GRN, takes part too
            weights.add_(0.1 * torch.randn_like(weights) * (weights.abs().max() == 0))
    return save_candidate(folder, model, make_processor(config))


def make_bundle(target: Path, candidate: Candidate, images: list[Path], fold: Any) -> Policy:
    """The candidate's bundle, with a threshold away from 0 and amid the images, where no rounding flips an answer."""
    inference = Inference(candidate.model, "cpu")
    z = inference.logits(ImageList(images, inference.preprocess))
    inner = np.sort(z)[3:-3]
    gaps = np.where(np.abs(inner[1:] + inner[:-1]) > 0.4, np.diff(inner), 0)
    widest = int(gaps.argmax())
    assert gaps[widest] > 1e-2
    policy = Policy(
        threshold_logit=float(inner[widest : widest + 2].mean()), candidate_sha256=candidate.sha256, model_sha256="",
        calibration=CALIBRATIONS[fold], fold=fold,
    )  # fmt: skip
    return build_bundle(
        target, candidate.model, policy, evaluation={"rows": 0}, card=CARD, model_card=None, plots=[],
        lineage={"champion": "x"}, images=images, expected_logits=z, onnx=fold == "decision",  # it ignores the file
    )  # fmt: skip


def promised(policy: Policy, z: np.ndarray) -> np.ndarray:
    """The scores of "Roadwork" that the card promises for the candidate's logits."""
    calibration = CALIBRATIONS[policy.fold]
    logits = {
        "decision": (z - policy.threshold_logit) * calibration.slope,
        "calibration": z * calibration.slope + calibration.intercept,
        "none": z,
    }[policy.fold]
    return np.asarray(1 / (1 + np.exp(-logits)))


@dataclass(frozen=True)
class Loaded:
    """A model's bundles, one a fold, and what the miner said of them."""

    folders: dict[str, Path]
    policies: dict[str, Policy]
    said: dict[str, dict[str, Any]]
    pixels: list[np.ndarray]


@pytest.fixture(scope="module", params=MODELS)
def loaded(request: pytest.FixtureRequest, images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("loaded")
    candidate = make_candidate(folder / "candidate", MODELS[request.param])
    folders = {fold: folder / fold for fold in CALIBRATIONS}
    policies = {fold: make_bundle(target, candidate, images, fold) for fold, target in folders.items()}
    out = folder / "out"
    said = answers_of(run_miner(images, out, list(map(str, folders.values())), offline(folder / "home")))
    pixels = [np.load(out / f"{n}.npy") for n in range(len(folders))]
    return Loaded(folders, policies, dict(zip(folders, said, strict=True)), pixels)


def require_a_clean_load(said: dict[str, Any]) -> None:
    assert said["missing_keys"] == said["unexpected_keys"] == said["mismatched_keys"] == []
    assert said["labels"] == ["None", "Roadwork"]
    assert said["fast_processor"].startswith("ViTImageProcessorFast requires the Torchvision library")
    assert said["processor"] == "ViTImageProcessor"


@pytest.mark.parametrize("fold", CALIBRATIONS)
def test_it_answers_as_the_policy_says(fold: str, loaded: Loaded, images: list[Path]) -> None:
    said, policy, bundle = loaded.said[fold], loaded.policies[fold], load_bundle(loaded.folders[fold], device="cpu")
    require_a_clean_load(said)
    z, scores = bundle.logits(images), np.array(said["scores"])
    np.testing.assert_allclose(scores, promised(policy, z), atol=1e-5, rtol=0)
    assert np.ptp(scores) > 0.05  # else anything would be within the tolerance
    labels = np.array([answer.label == "Roadwork" for answer in bundle.predict(images)])
    assert 3 <= labels.sum() <= len(labels) - 3
    assert ((z > 0) != labels).any()  # else folding the threshold would have nothing to do here
    if fold == "decision":
        np.testing.assert_array_equal(np.round(scores) == 1, labels)  # what the validator does
    else:
        np.testing.assert_array_equal(np.log(scores / (1 - scores)) > policy.folded_threshold, labels)


def test_an_image_of_224_pixels_is_neither_cropped_nor_resized(loaded: Loaded, images: list[Path]) -> None:
    image = np.asarray(Image.open(images[0]), dtype=np.float64)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for pixels in loaded.pixels:
        np.testing.assert_allclose(pixels[0], expected.transpose(2, 0, 1), atol=1e-6, rtol=0)


def test_it_loads_a_published_bundle(hub: LocalHub, images: list[Path], tmp_path: Path) -> None:
    """By the repository's name, with the old version's own client and no token."""
    folders = {name: tmp_path / name for name in ("vit", "dinov2")}
    for name, folder in folders.items():
        make_bundle(folder, make_candidate(tmp_path / f"{name}_candidate", MODELS[name]), images, "decision")
        push_bundle(folder, f"{REPO}-{name}")
    asked = len(hub.requests)
    repos = [f"{REPO}-{name}" for name in folders]
    done = run_miner(images, tmp_path / "out", repos, hub.environment(tmp_path / "home"))
    for said, folder in zip(answers_of(done), folders.values(), strict=True):
        require_a_clean_load(said)
        bundle = load_bundle(folder, device="cpu")
        np.testing.assert_allclose(said["scores"], promised(bundle.policy, bundle.logits(images)), atol=1e-5, rtol=0)
        labels = ["Roadwork" if np.round(score) == 1 else "None" for score in said["scores"]]
        assert labels == [answer.label for answer in bundle.predict(images)]
    fetched = {request.path.rsplit("/", 1)[1] for request in hub.requests[asked:] if request.status == 200}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= fetched


def test_a_backbone_that_was_trained_as_a_classifier(images: list[Path], tmp_path: Path) -> None:
    """transformers notes `problem_type` in the config of what it trains; of this one 4.45.2 makes the sigmoid of a
    label's own logit, where 5.23 answers the softmax."""
    before = make_candidate(tmp_path / "before", MODELS["vit"]).model
    config = json.loads((before / "config.json").read_text(encoding="utf-8"))
    trained = json.dumps(config | {"problem_type": "single_label_classification"})
    (before / "config.json").write_text(trained, encoding="utf-8")
    policy = make_bundle(tmp_path / "bundle", make_candidate(tmp_path / "after", {}, before), images, "decision")
    done = run_miner(images, tmp_path / "out", [str(tmp_path / "bundle")], offline(tmp_path / "home"))
    z = load_bundle(tmp_path / "bundle", device="cpu").logits(images)
    np.testing.assert_allclose(answers_of(done)[0]["scores"], promised(policy, z), atol=1e-5, rtol=0)


def test_every_architecture_is_asked_for() -> None:
    assert {config["model_type"] for config in MODELS.values()} == set(ARCHITECTURES) - set(UNKNOWN)


@pytest.mark.parametrize("model_type", UNKNOWN)
def test_it_cannot_load_what_the_card_says_it_cannot(model_type: str, images: list[Path], tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", make_candidate(tmp_path / "candidate", TINY[model_type]), images, "decision")
    done = run_miner(images, tmp_path / "out", [str(tmp_path / "bundle")], offline(tmp_path / "home"))
    assert done.returncode == 1
    first = next(line for line in done.stderr.splitlines() if line.startswith("ValueError:"))
    assert f"`{model_type}`" in first and "does not recognize this architecture" in first
