"""`natix-hf deploy streetvision`: what a miner would fail on is one line each; nothing is written without --write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import bind, describe, edit
from conftest import TINY, Command, striped_image
from facts import tells
from local_hub import LocalHub
from PIL import Image

from natix_hf.bundle.build import build_bundle
from natix_hf.bundle.inference import ImageList, Inference
from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.policy import Policy
from natix_hf.bundle.push import push_bundle
from natix_hf.bundle.streetvision import bundle_checks, rehearse
from natix_hf.calibration import Calibration
from natix_hf.labels import LabelNames
from natix_hf.models.classifier import build_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.results.answers import save_candidate
from natix_hf.subnet.submission import five_fields

HOTKEY, OTHER = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"
REPO = "lab/roadwork"


def made(
    target: Path, images: list[Image.Image], fold: Any = "decision", labels: LabelNames | None = None, size: int = 224
) -> Path:
    config = ModelConfig(None, None, {"initializer_range": 0.2} | TINY["vit"] | {"patch_size": 16}, image_size=size)
    model = build_classifier(config, seed=0, **({} if labels is None else {"labels": labels}))
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.1 * torch.randn_like(weights) * (weights.abs().max() == 0))
    candidate = save_candidate(target.with_name(f"{target.name}_candidate"), model, make_processor(config))
    inference = Inference(candidate.model, "cpu")
    z = inference.logits(ImageList(images, inference.preprocess))
    inner = np.sort(z)
    widest = int(np.diff(inner).argmax())
    names = {} if labels is None else {"labels": labels}
    policy = Policy(
        float(inner[widest : widest + 2].mean()), candidate.sha256, "", Calibration("temperature", 0.6), fold, **names
    )
    build_bundle(
        target, candidate.model, policy, evaluation={"rows": 0}, card="# card\n",
        model_card=five_fields("m", "d", "1.0.0", HOTKEY), plots=[], lineage={"champion": "x"}, images=images,
        expected_logits=z,
    )  # fmt: skip
    return target


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(7)
    ends = [[striped_image(label, rng, (300, 224)) for label in (0, 1)] for _ in range(12)]
    return [Image.blend(none, some, n / 11) for n, (none, some) in enumerate(ends)]


@pytest.fixture(scope="module")
def ready(images: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("ready") / "bundle", images)


@pytest.fixture
def own(ready: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(ready, tmp_path / "own"))


@pytest.fixture
def published(ready: Path, hub: LocalHub) -> str:
    return push_bundle(ready, REPO).commit


@pytest.fixture
def pictures(images: list[Image.Image], tmp_path: Path) -> Path:
    folder = tmp_path / "pictures" / "inner"
    folder.mkdir(parents=True)
    for n, image in enumerate(images):
        image.save(folder / f"{n}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    return folder.parent


def checkout(folder: Path, repo: str = "natix/other") -> Path:
    facts = json.loads((Path(__file__).parents[1] / "miner" / "official_keys.json").read_text(encoding="utf-8"))
    configs = folder / "base_miner" / "detectors" / "configs"
    configs.mkdir(parents=True)
    values = {"hf_repo": repo} | facts["ViT_roadwork.yaml"]["values"]
    text = "".join(f"{key}: '{value}'  # as it is\n" for key, value in values.items())
    (configs / "ViT_roadwork.yaml").write_text(text, encoding="utf-8")
    code = "ViT Roadwork AutoModelForImageClassification AutoImageProcessor use_fast=True"
    (configs.parent / "vit_detector.py").write_text(code, encoding="utf-8")
    env = dict.fromkeys(facts["miner.env"]["read_by_start_miner"], "x") | facts["miner.env"]["values"]
    env |= {"MINER_AXON_PORT": "8091"}
    env |= {"IMAGE_DETECTOR_DEVICE": "cpu", "NETUID": "72", "SUBTENSOR_NETWORK": "finney"}
    env |= {"MODEL_URL": f"https://huggingface.co/{REPO}"}
    (folder / "miner.env").write_text("".join(f"{key}={value}\n" for key, value in env.items()), encoding="utf-8")
    (folder / "register.sh").write_text('[ "$#" -ne 5 ]\n', encoding="utf-8")
    return folder


def states(folder: Path, **given: Any) -> dict[str, str]:
    """What is not ok, by what was looked at."""
    bundle = load_bundle(folder)
    return {
        check.what: check.line for check in bundle_checks(bundle.folder, bundle.policy, **given) if check.state != "ok"
    }


def test_from_a_published_bundle_to_a_checkout_that_serves_it(
    published: str, pictures: Path, tmp_path: Path, command: Command
) -> None:
    miner = checkout(tmp_path / "miner")
    config = next(miner.rglob("ViT_roadwork.yaml"))
    before = config.read_bytes()
    given = ("deploy", "streetvision", REPO, "--miner-repo", miner, "--images", pictures, "--hotkey", HOTKEY)
    code, out, err = command(*given)
    assert code == 1 and config.read_bytes() == before and tells(err.strip(), "1 of")
    assert f"+hf_repo: '{REPO}'  # as it is" in out and "-hf_repo: 'natix/other'  # as it is" in out
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith(("ok", "wrong", "warning"))}
    assert tells(lines["repository"], REPO, published[:12])
    assert tells(lines["rehearsal"], "ok", "12 pictures", "decides 0 otherwise")
    assert tells(lines["picture"], "broken.jpg") and "notes.txt" not in out
    assert f"./register.sh UID WALLET_NAME HOTKEY_NAME miner {REPO}\n" in out  # as this checkout's script takes it
    code, out, err = command(*given, "--write")
    assert (code, err) == (0, "")
    assert config.read_bytes() == before.replace(b"natix/other", REPO.encode())
    assert [path.read_bytes() for path in config.parent.glob("*.before*")] == [before]
    assert command(*given)[0] == 0


def test_a_model_that_is_not_ready_is_written_nowhere(
    ready: Path, published: str, tmp_path: Path, command: Command
) -> None:
    miner = checkout(tmp_path / "miner")
    config = next(miner.rglob("ViT_roadwork.yaml"))
    before = config.read_bytes()
    for reference, more in ((ready, ()), (REPO, ("--hotkey", OTHER))):
        code, out, _ = command("deploy", "streetvision", reference, "--miner-repo", miner, "--write", *more)
        assert code == 1 and "nothing was written" in out
        assert config.read_bytes() == before and len(list(config.parent.iterdir())) == 1


def test_a_folder_is_told_to_be_pushed(ready: Path, command: Command) -> None:
    code, out, _ = command("deploy", "streetvision", ready)
    [line] = [line for line in out.splitlines() if line.startswith("wrong")]
    assert code == 1 and tells(line, "repository", str(ready), "natix-hf push")


def test_what_the_miner_would_not_get(published: str, ready: Path, hub: LocalHub, command: Command) -> None:
    def line(*more: str) -> str:
        code, out, _ = command("deploy", "streetvision", REPO, *more)
        assert code == 1
        return next(line for line in out.splitlines() if " repository " in line)

    hub.repo(REPO).private = True
    assert tells(line(), "wrong", "without a token", "public")
    hub.repo(REPO).private = False
    later = hub.commit(REPO, {".gitattributes": b"# moved\n"})
    assert tells(line("--revision", published), "wrong", published[:12], later[:12])
    hub.stop()
    assert tells(line("--revision", published), "unknown")  # the cache holds it; the check is not made up


@pytest.mark.parametrize("fold", ["none", "calibration"])
def test_what_is_not_folded_is_told_with_what_it_costs(
    fold: Any, images: list[Image.Image], pictures: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(made(tmp_path / "plain", images, fold), device="cpu")
    [(what, line)] = states(bundle.folder).items()
    [at] = 1 / (1 + np.exp(-np.array([bundle.policy.folded_threshold])))
    assert what == "decision" and tells(line, fold, f"{at:.4f}", "phase6.fold=decision")
    asked = rehearse(bundle, sorted(pictures.rglob("*.png")))
    answers = [bundle.predict([image])[0].label == "Roadwork" for image in views(pictures)]
    z = np.concatenate([bundle.logits([image]) for image in views(pictures)])
    slope = 0.6 if fold == "calibration" else 1.0
    assert asked.flipped == int(np.sum((slope * z > 0) != answers)) > 0
    assert asked.worst < 1e-6
    assert [check.state for check in asked.checks(True) if check.what == "rehearsal"] == ["warning"]


def views(pictures: Path) -> list[Image.Image]:
    from natix_hf.subnet.challenge import challenge_image

    return [challenge_image(Image.open(path), 0, 0) for path in sorted(pictures.rglob("*.png"))]


def test_other_pixels_than_the_bundles_are_noticed(own: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a processor of the box resizes otherwise: the scores are not those promised."""
    bundle = load_bundle(own, device="cpu")
    ask = bundle.logits
    monkeypatch.setattr(bundle, "logits", lambda images: ask(images) + 0.03)
    asked = rehearse(bundle, sorted(pictures.rglob("*.png"))[:3])
    assert 1e-3 < asked.worst < 0.1 and [check.state for check in asked.checks(True)][1] == "wrong"


def test_a_score_that_is_no_number_is_not_the_promised_one(
    own: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    nothing = [{"label": "Roadwork", "score": float("nan")}]
    monkeypatch.setattr(transformers, "pipeline", lambda *_, **__: lambda view: nothing)
    asked = rehearse(load_bundle(own, device="cpu"), sorted(pictures.rglob("*.png"))[:3])
    assert np.isnan(asked.worst)
    assert [check.state for check in asked.checks(True) if check.what == "rehearsal"] == ["wrong"]


def test_pictures_of_which_none_can_be_read(own: Path, pictures: Path) -> None:
    checks = rehearse(load_bundle(own, device="cpu"), [pictures / "inner" / "broken.jpg"]).checks(True)
    assert [(check.what, check.state) for check in checks] == [("rehearsal", "wrong"), ("picture", "warning")]
    assert tells(checks[0].line, "--images") and all("nan" not in check.line for check in checks)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"version": "1.0"}, ["version", "X.Y.Z"]), ({"version": 1}, ["version"]),
        ({"submission_time": 0}, ["submission_time"]), ({"submission_time": "1"}, ["submission_time"]),
        ({"submission_time": 4102444800}, ["submission_time"]), ({"model_name": " "}, ["model_name"]),
        ({"submitted_by": HOTKEY[:-1] + "Z"}, ["submitted_by", "hotkey"]), ({"submitted_by": None}, ["submitted_by"]),
        ({"surprise": 1}, ["submitted_by", "submission_time"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_model_card_is_named(change: dict[str, Any], facts: list[str], own: Path) -> None:
    edit(own / "model_card.json", **change)
    describe(own)
    found = states(own)
    assert set(found) == {"model_card.json"} and tells(found["model_card.json"], *facts)


def test_no_model_card_and_another_hotkey(own: Path) -> None:
    assert states(own) == states(own, hotkey=HOTKEY) == {}
    assert tells(states(own, hotkey=OTHER)["model_card.json"], HOTKEY, OTHER)
    (own / "model_card.json").unlink()
    describe(own)
    assert tells(states(own)["model_card.json"], "phase6.submitted_by")


def test_labels_architecture_and_size(images: list[Image.Image], tmp_path: Path, _finished_run: Path) -> None:
    named = made(tmp_path / "named", images, labels=LabelNames(no="no", yes="yes"))
    assert tells(states(named)["labels"], "yes", "Roadwork", "data.labels")
    small = made(tmp_path / "small", images, size=64)
    assert tells(states(small)["image size"], "64", "224", "model.image_size=224")
    bundle = load_bundle(small)
    (config := json.loads((small / "config.json").read_text(encoding="utf-8")))["model_type"] = "dinov3_vit"
    (small / "config.json").write_text(json.dumps(config), encoding="utf-8")
    bind(small)
    found = {check.what: check for check in bundle_checks(small, bundle.policy)}
    assert found["architecture"].state == "wrong" and tells(found["architecture"].line, "dinov3_vit", "4.45.2")


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        (("--write",), ["--write", "--miner-repo"]), (("--hotkey", "5abc"), ["--hotkey", "5abc"]),
        (("--miner-repo", "gone"), ["gone"]), (("--images", "gone"), ["gone", "--images"]),
    ],
)  # fmt: skip
def test_bad_usage(more: tuple[str, ...], facts: list[str], ready: Path, command: Command) -> None:
    code, _, err = command("deploy", "streetvision", ready, *more)
    assert code == 2 and tells(err.strip(), *facts)
