"""Warnings: every weakness is planted, and named; nothing is said of a sound run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from facts import tells

from natix_hf.calibration import Promise
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import write_json
from natix_hf.provenance.manifest import manifest_digest, manifest_seal
from natix_hf.report.facts import RunFacts, read_run
from natix_hf.report.findings import find_promise, find_warnings
from natix_hf.results.figures import Figure, GroupCounts

Interval = tuple[float | None, float | None]


def _put(facts: RunFacts, path: str, value: Any) -> None:
    """Plants a value in the results, as in `evaluation.groups.few`."""
    facts.results = _replaced(facts.results, path.split("."), value)


def _replaced(holder: Any, keys: list[str], value: Any) -> Any:
    if not keys:
        return value
    if isinstance(holder, dict):
        return {**holder, keys[0]: _replaced(holder.get(keys[0]), keys[1:], value)}
    return replace(holder, **{keys[0]: _replaced(getattr(holder, keys[0]), keys[1:], value)})


def _sound(run: Path) -> RunFacts:
    """The facts of a run without its accidental weaknesses."""
    facts = read_run(run)
    for path in ("evaluation.groups.few", "calibration.groups.few", "decision.val_select_groups.few"):
        _put(facts, path, False)
    _put(facts, "evaluation.as_found.intervals.mcc", (0.1, 0.2))
    _put(facts, "calibration.ece_reduction_percent", 10.0)
    _put(facts, "calibration.no_optimum", False)
    for phase in facts.phases.values():
        phase.manifest["git"] = None
    _promise(facts, 0.1, (0.0, 0.2))
    return facts


def _promise(facts: RunFacts, risk: float | None, interval: Interval, **control: Any) -> None:
    made = {"feasible": True, "guarantee": "g", "loss": "error", "alpha": 0.15, "delta": 0.1, "classwise": False}
    _put(facts, "policy.promise", Promise(**made | control))
    _put(facts, "evaluation.selective.risks", {"error": Figure(risk, interval)})


def test_a_sound_run_has_no_warning(_whole_run: Path) -> None:
    assert find_warnings(_sound(_whole_run)) == []


SHARE = "15%"


@pytest.mark.parametrize(
    ("risk", "interval", "held", "beyond_doubt"),
    [
        (0.15, (0.0, 0.3), True, False),  # at most: the bound itself holds
        (0.151, (0.1, 0.3), False, False),
        (0.3, (0.2, 0.4), False, True),
        (None, (None, None), None, False),
    ],
)
def test_the_promise_on_test(
    _whole_run: Path, risk: float | None, interval: Interval, held: bool | None, beyond_doubt: bool
) -> None:
    facts = _sound(_whole_run)
    _promise(facts, risk, interval)
    promise, warnings = find_promise(facts), find_warnings(facts)
    assert promise.feasible and (promise.held, promise.beyond_doubt) == (held, beyond_doubt)
    assert tells(promise.words, SHARE) and len(warnings) == (not held)
    if held is False:
        assert tells(warnings[0], SHARE)
        _promise(facts, 0.2, (0.1 if beyond_doubt else 0.19, 0.3))
        assert find_warnings(facts) != warnings  # what chance explains, and what it does not, are two sentences


def test_each_promise_has_its_words(_whole_run: Path) -> None:
    facts, words = _sound(_whole_run), []
    for control in (*({"loss": loss} for loss in ("error", "fnr", "fpr")), {"classwise": True},
                    {"loss": "fnr", "classwise": True}):  # fmt: skip
        _promise(facts, 0.1, (0.0, 0.2), **control)
        words.append(find_promise(facts).words)
        assert tells(words[-1], SHARE)
    assert len(set(words)) == 5
    assert all("either" in line for line in words[3:]) and "None" in words[1] and "Roadwork" in words[2]


def test_one_risk_of_two_above_breaks_the_promise(_whole_run: Path) -> None:
    facts = _sound(_whole_run)
    _promise(facts, 0.1, (0.0, 0.2), classwise=True)
    _put(facts, "evaluation.selective.risks.error of None", Figure(0.5, (0.4, 0.6)))
    assert find_promise(facts).held is False and find_promise(facts).beyond_doubt


def test_what_could_not_be_promised(_whole_run: Path) -> None:
    facts = _sound(_whole_run)
    _promise(facts, 0.1, (0.0, 0.2), feasible=False, guarantee="none: 45 are needed")
    assert find_promise(facts).held is None and tells(find_promise(facts).words, SHARE)
    (warning,) = find_warnings(facts)
    assert tells(warning, "none: 45 are needed")
    _put(facts, "policy.promise", Promise())
    assert tells(find_promise(facts).words, "phase 5") and find_warnings(facts) == []


WEAK: dict[str, tuple[Callable[[Any], None], tuple[Any, ...]]] = {
    "few test groups": (lambda f: _put(f, "evaluation.groups", GroupCounts(16, 7, 9, True)), ("test", 7, 9)),
    "few val_select groups": (
        lambda f: _put(f, "decision.val_select_groups", GroupCounts(55, 5, 50, True)), ("val_select", 5)),
    "few val_calib groups": (lambda f: _put(f, "calibration.groups", GroupCounts(56, 50, 6, True)), ("val_calib", 6)),
    "no better than chance": (lambda f: _put(f, "evaluation.as_found.intervals.mcc", (-0.01, 0.3)), ("MCC",)),
    "no temperature": (lambda f: _put(f, "calibration.no_optimum", True), ("temperature",)),
    "worse calibrated": (lambda f: _put(f, "calibration.ece_reduction_percent", -3.0), ("ECE",)),
    "miner": (lambda f: f.bundle_config.update(model_type="dinov3_vit"), ("dinov3_vit", "4.45.2")),
    "noise": (lambda f: f.phases[0].manifest["section"]["data"].update(label_noise=0.02), ("2%", "label_noise")),
    "dropped": (lambda f: f.dropped.update({"twin of a test row": 3}), (3, "twin of a test row")),
    "look-alikes": (lambda f: f.read.update(near_duplicates_across_splits=1234, groups={"count": 9, "from": "none"}),
                    ("1,234", "data.group_by", "test")),
    "dirty": (lambda f: f.phases[4].manifest.update(git={"commit": "c", "dirty": True}), ("phase 4",)),
    "versions": (lambda f: f.phases[6].manifest["packages"].update(torch="9.9"), ("torch", "9.9", "phase 6")),
    "leaks": (lambda f: f.leaks.extend(["a", "b", "c", "d", "e"]), ("a; b; c", "2 more")),
}  # fmt: skip


@pytest.mark.parametrize("name", WEAK)
def test_a_weakness_is_named(name: str, _whole_run: Path) -> None:
    facts = _sound(_whole_run)
    plant, told = WEAK[name]
    plant(facts)
    (warning,) = find_warnings(facts)
    assert tells(warning, *told)


def test_a_leak_in_the_files_is_found(whole_run: Path) -> None:
    path = whole_run / "phase0_data" / "splits.json"
    splits = json.loads(path.read_text(encoding="utf-8"))
    test, train = splits["roles"].index("test"), splits["roles"].index("train")
    splits["sha256"][train] = splits["sha256"][test]
    write_json(path, splits)
    facts = read_run(whole_run)
    assert len(facts.leaks) == 1 and splits["ids"][test] in facts.leaks[0]
    assert facts.leaks[0] in find_warnings(facts)[0]


def test_a_phase_made_from_other_results_is_named(finished_run: Path, tiny_recipe_file: Path) -> None:
    before = find_warnings(read_run(finished_run))
    run_recipe(str(tiny_recipe_file), [2], finished_run, overrides=["phase2.objective=balanced_accuracy"])
    added = [warning for warning in find_warnings(read_run(finished_run)) if warning not in before]
    assert any("phase 6" in warning for warning in added)


def test_a_manifest_that_was_edited_is_named(finished_run: Path) -> None:
    path = finished_run / "phase2_threshold" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, manifest | {"seed": 77})
    facts = read_run(finished_run)
    assert facts.results.decision is None and tells(find_warnings(facts)[0], "phase2_threshold", "natix-hf verify")
    honest = manifest | {"seed": 77}
    honest |= {"digest": manifest_digest(honest)}
    write_json(path, honest | {"seal": manifest_seal(honest)})
    assert read_run(finished_run).results.decision is not None
