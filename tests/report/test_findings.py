"""Warnings: every weakness is planted, and named; nothing is said of a sound run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_RECIPE, write_recipe

from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import write_json
from natix_hf.provenance.manifest import manifest_digest, manifest_seal
from natix_hf.report.facts import RunFacts, read_run
from natix_hf.report.findings import find_promise, find_warnings


def _sound(run: Path) -> RunFacts:
    """The facts of a run without its accidental weaknesses."""
    facts = read_run(run)
    assert facts.evaluation is not None and facts.calibration is not None and facts.decision is not None
    facts.evaluation["groups"]["few"] = facts.calibration["groups"]["few"] = False
    facts.decision["val_select_groups"]["few"] = False
    facts.evaluation["as_found"]["intervals"]["mcc"] = [0.1, 0.2]
    facts.calibration |= {"ece_reduction_percent": 10.0, "no_optimum": False}
    for phase in facts.phases.values():
        phase.manifest["git"] = None
    _promise(facts, 0.1, [0.0, 0.2])
    return facts


def _promise(facts: RunFacts, risk: float | None, interval: list[float | None], **control: Any) -> None:
    promised = {"feasible": True, "guarantee": "g", "loss": "error", "alpha": 0.15, "delta": 0.1, "classwise": False}
    facts.policy = (facts.policy or {}) | {"risk_control": promised | control}
    assert facts.evaluation is not None
    facts.evaluation["selective"]["risks"] = {"error": {"value": risk, "interval": interval}}


def test_a_sound_run_has_no_warning(whole_run: Path) -> None:
    assert find_warnings(_sound(whole_run)) == []


@pytest.mark.parametrize(
    ("risk", "interval", "held", "words"),
    [
        (0.15, [0.0, 0.3], True, None),  # at most: the bound itself holds
        (0.151, [0.1, 0.3], False, "above the 15\N{NO-BREAK SPACE}% that were promised, by no more than chance"),
        (0.3, [0.2, 0.4], False, "above the 15\N{NO-BREAK SPACE}% that were promised, beyond what chance"),
        (None, [None, None], None, "test says nothing about the promise"),
    ],
)
def test_the_promise_on_test(
    whole_run: Path, risk: float | None, interval: list[float | None], held: bool | None, words: str | None
) -> None:
    facts = _sound(whole_run)
    _promise(facts, risk, interval)
    promise, warnings = find_promise(facts), find_warnings(facts)
    assert promise.feasible and promise.held is held
    assert promise.words == "At most 15\N{NO-BREAK SPACE}% of the accepted answers are wrong"
    assert len(warnings) == (words is not None) and (words or "") in "".join(warnings)


@pytest.mark.parametrize(
    ("control", "words"),
    [
        ({"loss": "fnr"}, "At most 15\N{NO-BREAK SPACE}% of the accepted pictures with roadwork are answered None"),
        ({"loss": "fpr"}, "of the accepted pictures without roadwork are answered Roadwork"),
        ({"classwise": True}, "of the accepted answers of either kind are wrong"),
        ({"loss": "fnr", "classwise": True}, "of the accepted pictures of either kind are answered wrongly"),
    ],
)
def test_the_promise_in_words(whole_run: Path, control: dict[str, Any], words: str) -> None:
    facts = _sound(whole_run)
    _promise(facts, 0.1, [0.0, 0.2], **control)
    assert words in find_promise(facts).words


def test_one_risk_of_two_above_breaks_the_promise(whole_run: Path) -> None:
    facts = _sound(whole_run)
    _promise(facts, 0.1, [0.0, 0.2], classwise=True)
    assert facts.evaluation is not None
    facts.evaluation["selective"]["risks"]["error of None"] = {"value": 0.5, "interval": [0.4, 0.6]}
    assert find_promise(facts).held is False and find_promise(facts).beyond_doubt


def test_what_could_not_be_promised(whole_run: Path) -> None:
    facts = _sound(whole_run)
    _promise(facts, 0.1, [0.0, 0.2], feasible=False, guarantee="none: 45 are needed")
    assert find_promise(facts).held is None and "no threshold could be certified" in find_promise(facts).words
    assert find_warnings(facts) == ["The promise: none: 45 are needed"]
    facts.policy = {"risk_control": {"feasible": False, "guarantee": "none", "thresholds": None}}
    assert "phase 5 was no part of this bundle" in find_promise(facts).words and find_warnings(facts) == []


WEAK: dict[str, tuple[Callable[[Any], None], str]] = {
    "few test groups": (
        lambda f: f.evaluation["groups"].update(few=True, positive_groups=7, negative_groups=9),
        "test has 7 with roadwork and 9 without",
    ),
    "few val_select groups": (
        lambda f: f.decision.update(val_select_groups={"few": True, "positive_groups": 5, "negative_groups": 50}),
        "val_select, which chose threshold and champion, has 5 of the rarer class",
    ),
    "few val_calib groups": (
        lambda f: f.calibration.update(groups={"few": True, "positive_groups": 50, "negative_groups": 6}),
        "val_calib, which calibration and promise were measured on, has 6",
    ),
    "no better than chance": (
        lambda f: f.evaluation["as_found"]["intervals"].update(mcc=[-0.01, 0.3]),
        "no better than chance",
    ),
    "no temperature": (lambda f: f.calibration.update(no_optimum=True), "No temperature fits"),
    "worse calibrated": (lambda f: f.calibration.update(ece_reduction_percent=-3.0), "did not lower the ECE"),
    "miner": (lambda f: f.bundle_config.update(model_type="dinov3_vit"), "cannot load a dinov3_vit"),
    "noise": (
        lambda f: f.phases[0].manifest["section"]["data"].update(label_noise=0.02),
        "2\N{NO-BREAK SPACE}% of the train labels were flipped",
    ),
    "dropped": (lambda f: f.dropped.update({"twin of a test row": 3}), "3 rows were left out: 3 x twin of a test row"),
    "dirty": (
        lambda f: f.phases[4].manifest.update(git={"commit": "c", "dirty": True}),
        "Code with uncommitted changes ran in phase 4",
    ),
    "versions": (
        lambda f: f.phases[6].manifest["packages"].update(torch="9.9"),
        "different versions of torch",
    ),
    "leaks": (lambda f: f.leaks.extend(["a", "b", "c", "d", "e"]), "a; b; c, and 2 more"),
}


@pytest.mark.parametrize("name", WEAK)
def test_a_weakness_is_named(name: str, whole_run: Path) -> None:
    facts = _sound(whole_run)
    plant, words = WEAK[name]
    plant(facts)
    warnings = find_warnings(facts)
    assert len(warnings) == 1 and words in warnings[0], warnings


def test_a_leak_in_the_files_is_found(whole_run: Path) -> None:
    path = whole_run / "phase0_data" / "splits.json"
    splits = json.loads(path.read_text(encoding="utf-8"))
    test, train = splits["roles"].index("test"), splits["roles"].index("train")
    splits["sha256"][train] = splits["sha256"][test]
    write_json(path, splits)
    facts = read_run(whole_run)
    assert len(facts.leaks) == 1 and splits["ids"][test] in facts.leaks[0]
    assert facts.leaks[0] in find_warnings(facts)[0]


def test_a_phase_made_from_other_results_is_named(finished_run: Path, tmp_path: Path) -> None:
    section = json.loads((finished_run / "phase0_data" / "manifest.json").read_text(encoding="utf-8"))["section"]
    recipe = str(write_recipe(tmp_path / "tiny.yaml", {**TINY_RECIPE, "data": section["data"]}))
    run_recipe(recipe, [2], finished_run, overrides=["phase2.objective=balanced_accuracy"])
    warnings = find_warnings(read_run(finished_run))
    assert "Made from other results than those here now, so to be run again: phase 6" in warnings


def test_a_manifest_that_was_edited_is_named(finished_run: Path) -> None:
    path = finished_run / "phase2_threshold" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, manifest | {"seed": 77})
    facts = read_run(finished_run)
    assert facts.decision is None and "phase2_threshold is damaged: natix-hf verify says more" in find_warnings(facts)
    honest = manifest | {"seed": 77}
    honest |= {"digest": manifest_digest(honest)}
    write_json(path, honest | {"seal": manifest_seal(honest)})
    assert read_run(finished_run).decision is not None
