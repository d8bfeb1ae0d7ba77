"""Answers with names of the user's own, from the recipe to what a stock pipeline says of the bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import bind, edit
from conftest import TINY_RECIPE, Command, png_bytes, refused, striped_image, write_parquet_source, write_recipe
from facts import tells
from PIL import Image

from natix_hf.bundle.build import write_bundle_manifest
from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.names import READ_POLICY
from natix_hf.errors import VerificationError
from natix_hf.labels import LabelNames
from natix_hf.pipeline import run_recipe
from natix_hf.recipe import load_recipe
from natix_hf.report.page import render_report
from natix_hf.runs.collected import read_results
from natix_hf.runs.freshness import why_not_current
from natix_hf.runs.graph import PHASES
from natix_hf.runs.verify import find_problems

NAMES = {"no": "intact", "yes": "cracked"}
QUESTION = "Is the tile cracked?"
MEASURED = {"n_resamples": 100}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    source = write_parquet_source(folder / "tiles", groups=150, unclear=3)
    data = {"group_by": "video_info.vid_id", "slices": ["scene_level_tags.weather"], "source": str(source)}
    data |= {"labels": NAMES, "question": QUESTION, "target_prior": 0.5}
    risk = {"alpha": 0.6, "delta": 0.3, "classwise": True}
    content = {**TINY_RECIPE, "data": data, "phase5": MEASURED | {"risk": risk}}
    return write_recipe(folder / "tiles.yaml", content)


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run_recipe(str(recipe), [1, 2, 5, 6], tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _bundle(run: Path) -> Path:
    return run / "phase6_export" / "bundle"


def test_every_file_has_the_names_and_none_the_subnets(own: Path) -> None:
    assert find_problems(str(own)) == find_problems(str(_bundle(own))) == []
    for path in [*_bundle(own).rglob("*"), own / "report.html", *own.rglob("*.json")]:
        if path.is_file() and path.name != READ_POLICY:  # the same bytes in every bundle, whatever it answers
            assert b"oadwork" not in path.read_bytes(), path
    for model in (own / "phase1_baseline" / "model", _bundle(own)):
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        assert config["id2label"] == {"0": "intact", "1": "cracked"}
        assert config["label2id"] == {"intact": 0, "cracked": 1}
    policy = json.loads((_bundle(own) / "policy.json").read_text(encoding="utf-8"))
    assert policy["labels"] == NAMES and set(policy["risk_control"]["thresholds"]) == set(NAMES.values())
    assert all(f'"{name}"' in policy["risk_control"]["guarantee"] for name in NAMES.values())
    results = read_results(own)
    assert results.evaluation is not None and results.examples is not None and results.policy is not None
    assert set(results.evaluation.selective.risks) == {"error of cracked", "error of intact"}
    shown = [row for kind in results.examples.kinds for row in kind.rows]
    assert shown and {row.label for row in shown} | {row.answer for row in shown} == set(NAMES.values())
    assert {row.decision for row in shown} <= {*NAMES.values(), "abstain"}


def test_page_and_card_name_question_and_answers(own: Path) -> None:
    card = (_bundle(own) / "README.md").read_text(encoding="utf-8")
    assert tells(card.replace("\n", " "), QUESTION, "`cracked` (yes) or `intact` (no)", "name: cracked or intact",
                 "labelled cracked", "labelled `cracked`", "answers cracked, intact")  # fmt: skip
    assert "streetvision" not in card and "subnet" not in card
    page = (own / "report.html").read_text(encoding="utf-8")
    assert tells(page.replace("\n", " "), QUESTION, '"cracked" (yes) and "intact" (no)', "P(cracked)",
                 "TPR: share of cracked found", "TNR: share of intact confirmed", 'labelled "cracked"')  # fmt: skip
    shutil.rmtree(own / "phase6_export")
    assert tells(render_report(own).replace("\n", " "), QUESTION, "labelled cracked")
    shutil.rmtree(own / "phase1_baseline")
    assert "labelled cracked" in render_report(own)  # as the recipe has them: no model holds them yet


def test_predict_pipeline_and_page_agree(own: Path, tmp_path: Path, command: Command) -> None:
    from transformers import pipeline

    rng = np.random.default_rng(5)
    pictures = [striped_image(label, rng, (28, 28)) for label in (0, 1) * 8]
    files = []
    for i, picture in enumerate(pictures):
        files.append(tmp_path / f"{i}.png")
        files[-1].write_bytes(png_bytes(picture))
    bundle = load_bundle(own)
    answers = bundle.predict(pictures)
    assert {answer.label for answer in answers} == set(NAMES.values())
    assert {answer.decision for answer in answers} <= {*NAMES.values(), "abstain"}
    z = bundle.logits(pictures)
    assert [answer.label == "cracked" for answer in answers] == bundle.policy.decide(z).tolist()
    classify = pipeline("image-classification", model=str(bundle.folder))
    for answer, scores in zip(answers, classify(pictures), strict=True):
        assert {row["label"] for row in scores} == set(NAMES.values())
        assert scores[0]["label"] == answer.label  # the decision is folded: the likelier label is the answer
    code, out, _ = command("predict", own, *files)
    assert code == 0 and "oadwork" not in out
    lines = out.splitlines()
    for answer, line in zip(answers, lines, strict=True):
        assert f"  {answer.decision:7s}  P(cracked) {answer.probability:.3f}" in line
    code, out, _ = command("predict", own, files[0], "--json")
    assert json.loads(out)["label"] == answers[0].label


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"id2label": {"0": "cracked", "1": "intact"}, "label2id": {"cracked": 0, "intact": 1}}),
        ("config.json", {"id2label": {"0": "None", "1": "Roadwork"}, "label2id": {"None": 0, "Roadwork": 1}}),
        ("config.json", {"id2label": {"0": "intact", "1": "abstain"}}),
        ("config.json", {"id2label": {"0": "intact", "1": "cracked", "2": "lost"}}),
        ("config.json", {"id2label": ["intact", "cracked"]}),
        ("policy.json", {"labels": {"no": "cracked", "yes": "intact"}}),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_config_and_policy_must_agree(file: str, change: dict[str, Any], verify: bool, own: Path) -> None:
    bundle = _bundle(own)
    lineage = json.loads((bundle / "bundle_manifest.json").read_text(encoding="utf-8"))["lineage"]
    edit(bundle / file, **change)
    write_bundle_manifest(bundle, lineage)
    (problem,) = find_problems(str(bundle))
    assert tells(problem, "config.json", "policy.json", "intact", "cracked")
    with refused(VerificationError, "config.json", "policy.json"):
        load_bundle(bundle, verify=verify)


def test_a_bundle_must_answer_as_its_run(own: Path) -> None:
    """Policy and config agree with each other here, but not with the champion."""
    bundle = _bundle(own)
    lineage = json.loads((bundle / "bundle_manifest.json").read_text(encoding="utf-8"))["lineage"]
    names = {"no": "whole", "yes": "broken"}
    policy = json.loads((bundle / "policy.json").read_text(encoding="utf-8"))
    cuts = policy["risk_control"]["thresholds"]
    policy["risk_control"]["thresholds"] = {"whole": cuts["intact"], "broken": cuts["cracked"]}
    edit(bundle / "policy.json", labels=names, risk_control=policy["risk_control"])
    edit(bundle / "config.json", id2label={"0": "whole", "1": "broken"}, label2id={"whole": 0, "broken": 1})
    bind(bundle)
    write_bundle_manifest(bundle, lineage)
    assert find_problems(str(bundle)) == []
    found = [problem for problem in find_problems(str(own)) if "names other answers" in problem]
    assert len(found) == 1 and "phase1_baseline" in found[0]


def test_names_train_again_and_a_question_does_not(own: Path, recipe: Path) -> None:
    def stale(*overrides: str) -> list[int]:
        changed = load_recipe(str(recipe), overrides)
        return [n for n in (0, 1, 2, 5, 6) if why_not_current(own, PHASES[n], changed) is not None]

    assert stale() == []
    assert stale("data.question=Broken?") == [6]
    assert stale("data.labels.yes=broken") == [1]  # and then all that is made from it


def test_a_bundle_for_the_subnet_with_other_names_is_warned_about(
    own: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from natix_hf.phases import phase6_export

    said: list[str] = []
    monkeypatch.setattr(phase6_export, "say", said.append)
    hotkey = "phase6.submitted_by=5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
    for overrides, warned in (([], False), ([hotkey], True), ([hotkey, "data.label_rule=scene_description"], True)):
        said.clear()
        changed = load_recipe(str(recipe), overrides)
        phase6_export._warn_of_the_miner(changed, "dinov2", LabelNames(**NAMES))
        assert len(said) == warned and (not warned or tells(said[0], '"Roadwork"', '"cracked"', "data.labels"))
        said.clear()
        phase6_export._warn_of_the_miner(changed, "dinov2", LabelNames())
        assert len(said) == warned and (not warned or tells(said[0], "28 px", "224", "model.image_size=224"))


def test_another_size_than_the_subnets_is_said_before_the_training(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from natix_hf import preflight

    said: list[str] = []
    monkeypatch.setattr(preflight, "say", said.append)
    hotkey = "phase6.submitted_by=5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
    names = ["data.labels.no=None", "data.labels.yes=Roadwork"]
    for overrides in ([], [hotkey], names, [hotkey, *names, "model.image_size=224"]):
        preflight.warn_of_the_size(load_recipe(str(recipe), overrides))
    assert said == []
    preflight.warn_of_the_size(load_recipe(str(recipe), [hotkey, *names]))
    assert len(said) == 1 and tells(said[0], "28 px", "224", "model.image_size=224")


def test_names_of_any_kind_in_plots_and_on_the_page(own: Path, tmp_path: Path) -> None:
    """The longest, with dollar signs and marks of HTML: nothing is cut off, nothing becomes a formula or a tag."""
    from natix_hf.results import plots

    names = LabelNames(no="_$x^$ <b>" + "w" * 51, yes="a|b " + "$y_$ " * 11 + "z")
    z, labels = np.linspace(-3, 3, 40), np.arange(40) % 2
    plots.test_scores(tmp_path / "scores.png", z, labels, 0.1, names)
    edge = np.asarray(Image.open(tmp_path / "scores.png").convert("L"))
    assert np.concatenate([edge[:, 0], edge[:, -1], edge[0], edge[-1]]).min() == 255
    config = own / "phase1_baseline" / "model" / "config.json"
    edit(config, id2label={"0": names.no, "1": names.yes})
    page = render_report(own)
    assert "<b>www" not in page and "&lt;b&gt;www" in page
