"""What a miner really runs: torch 2.6.0 and torchvision beside transformers 4.45.2, with the fast processor.

And `read_policy.py` in both of the miner's environments.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import striped_image
from PIL import Image
from test_official_miner import ENVIRONMENT, MODELS, answers_of, make_bundle, make_candidate, offline, run_miner

from natix_hf.bundle.load import load_bundle
from natix_hf.selective.classifier import SelectiveClassifier
from natix_hf.subnet.official import CLASSIFIERS

FAST = ENVIRONMENT.with_name(".venv-miner-fast")
pytestmark = pytest.mark.xdist_group("official_miner")
needs_fast = pytest.mark.skipif(
    not (FAST / "installed").is_file(), reason="the miner's environment with torchvision is not made: make test-miner"
)
AGREE = 1.5e-5  # of logits, as ../shared/subnet.md has it


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(7)
    paths = [folder / f"{n:02}.jpg" for n in range(20)]
    for n, path in enumerate(paths):
        none, roadwork = (striped_image(label, rng, (224, 224)) for label in (0, 1))
        Image.blend(none, roadwork, n / 19).save(path, quality=75)
    return paths


@pytest.fixture(scope="module")
def asked(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Every model's bundle, one more of 64 px, and what the fast box made of them."""
    folder = tmp_path_factory.mktemp("fast")
    sizes = dict.fromkeys(("vit", "dinov2", "convnextv2", "swinv2"), 224) | {"64 px": 64}
    bundles = {}
    for name, size in sizes.items():
        fields = MODELS.get(name, MODELS["vit"])
        candidate = make_candidate(folder / f"{name}_candidate", fields, size=size)
        make_bundle(folder / name, candidate, images, "none")
        bundles[name] = folder / name
    repos = list(map(str, bundles.values()))
    done = run_miner(images, folder / "out", repos, offline(folder / "home"), FAST)
    said = answers_of(done, ("torchvision",))
    return {name: (bundles[name], said[n]) for n, name in enumerate(bundles)}


@needs_fast
@pytest.mark.parametrize("name", ["vit", "dinov2", "convnextv2", "swinv2", "64 px"])
def test_the_fast_processor_sees_the_same_at_224_px_only(
    name: str, asked: dict[str, tuple[Path, dict[str, Any]]], images: list[Path]
) -> None:
    folder, said = asked[name]
    assert said["missing_keys"] == said["unexpected_keys"] == said["mismatched_keys"] == []
    assert said["fast_processor"] == said["processor"] == "ViTImageProcessorFast"
    scores = np.array(said["scores"])
    z = load_bundle(folder, device="cpu").logits(images)
    known = np.abs(z) < 4  # beyond, a score in float32 does not hold a logit to 1e-5
    assert known.sum() >= 5
    worst = float(np.abs(np.log(scores / (1 - scores)) - z)[known].max())
    print(f"{name}: logits differ by at most {worst:.1e}")
    assert worst <= AGREE if name != "64 px" else 1e-3 < worst < 0.5


@needs_fast
def test_the_list_of_classifiers_is_that_of_the_release() -> None:
    script = "import json; from transformers.models.auto import modeling_auto as m; "
    script += "print(json.dumps(sorted(m.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)))"
    done = subprocess.run([FAST / "bin" / "python", "-I", "-c", script], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) == CLASSIFIERS


@pytest.mark.parametrize("box", [ENVIRONMENT, FAST], ids=["slow", "fast"])
@pytest.mark.parametrize("fold", ["decision", "calibration", "none"])
def test_read_policy_answers_there_as_the_package_does_here(
    fold: str, box: Path, images: list[Path], tmp_path: Path
) -> None:
    if not (box / "installed").is_file():
        pytest.skip(f"{box.name} is not made: make test-miner")
    make_bundle(tmp_path / "bundle", make_candidate(tmp_path / "candidate", MODELS["vit"]), images, fold)
    logits = np.concatenate([np.random.default_rng(3).normal(0, 3, 200), [-700.0, 700.0, 0.0]])
    scores = (1 / (1 + np.exp(-logits[:200]))).tolist()
    lists = [[{"label": "Roadwork", "score": s}, {"label": "None", "score": 1 - s}] for s in scores]
    done = subprocess.run(
        [box / "bin" / "python", "-I", Path(__file__).with_name("read_there.py"), tmp_path / "bundle"],
        input=json.dumps({"logits": logits.tolist(), "scores": scores, "lists": lists}),
        cwd=tmp_path, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["heavy"] == [] and found["python"] == [3, 11]
    here = SelectiveClassifier.load(tmp_path / "bundle")
    for kind, values, are_scores in (("logits", logits, False), ("scores", scores, True), ("lists", scores, True)):
        expected, answer = here.predict(values, probabilities=are_scores), found["answers"][kind]
        np.testing.assert_allclose(answer["probability"], expected.probability, rtol=1e-12, atol=1e-300)
        assert answer["decision"] == expected.decision.tolist() and answer["accepted"] == expected.accepted.tolist()
        assert 0 < sum(label == "Roadwork" for label in answer["label"]) < len(values)
