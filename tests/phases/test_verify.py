"""`verify`: damage to any file is found and named; leaks are found even where every checksum was made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundles import bind, describe, edit, redescribe
from facts import tells
from refusals import refused
from safetensors.torch import load_file, save_file

from natix_hf.errors import UsageError
from natix_hf.provenance.files import describe_files, file_sha256, json_sha256, list_files, write_json, write_text
from natix_hf.provenance.manifest import manifest_digest, manifest_seal
from natix_hf.provenance.owner import OWNER
from natix_hf.results.logits import read_logits, write_logits
from natix_hf.results.looks import Looks
from natix_hf.runs.graph import PHASES
from natix_hf.runs.verify import find_problems

FILES = [
    "run.json",
    "phase0_data/manifest.json", "phase0_data/rows_read.json", "phase0_data/splits.json",
    "phase1_baseline/manifest.json", "phase1_baseline/rows_read.json", "phase1_baseline/history.json",
    "phase1_baseline/logits/val_select.parquet", "phase1_baseline/model/config.json",
    "phase1_baseline/model/model.safetensors", "phase1_baseline/model/preprocessor_config.json",
    "phase1_baseline/plots/training.png", "phase1_baseline/baseline.json", "phase1_baseline/baseline_key.json",
    "phase2_threshold/manifest.json", "phase2_threshold/rows_read.json", "phase2_threshold/threshold.json",
    "phase2_threshold/sweep.parquet", "phase2_threshold/plots/threshold.png",
    "phase6_export/manifest.json", "phase6_export/rows_read.json", "phase6_export/evaluation.json",
    "phase6_export/logits/test.parquet", "phase6_export/logits/test_columns.parquet",
    "phase6_export/plots/test_scores.png",
    "phase6_export/examples/examples.json",
    "phase6_export/bundle/README.md", "phase6_export/bundle/bundle_manifest.json", "phase6_export/bundle/config.json",
    "phase6_export/bundle/evaluation.json", "phase6_export/bundle/model.safetensors",
    "phase6_export/bundle/plots/test_scores.png", "phase6_export/bundle/plots/threshold.png",
    "phase6_export/bundle/policy.json", "phase6_export/bundle/preprocessor_config.json",
    "phase6_export/bundle/read_policy.py",
]  # fmt: skip


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_an_untouched_run_is_intact(finished_run: Path) -> None:
    assert find_problems(str(finished_run)) == []
    assert find_problems(str(finished_run / "phase6_export" / "bundle")) == []
    others = {Path(name) for name in list_files(finished_run) if name not in {*FILES, "run.log", "report.html"}}
    others = {path for path in others if path.parent.name != OWNER}
    assert all(path.parent == Path("phase6_export/examples") and path.suffix == ".jpg" for path in others)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


# One kind of damage for each file, in turn; every kind for one file.
DAMAGED = [(name, (_flip, _truncate, _empty, Path.unlink)[i % 4]) for i, name in enumerate(FILES)]
DAMAGED += [("phase1_baseline/model/config.json", damage) for damage in (_flip, _truncate, _empty, Path.unlink)]


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_damage_is_found_and_named(name: str, damage: Callable[[Path], None], finished_run: Path) -> None:
    damage(finished_run / name)
    problems = find_problems(str(finished_run))
    assert any(str(finished_run / name) in problem for problem in problems), problems


def test_every_field_of_a_manifest_counts(finished_run: Path) -> None:
    path = finished_run / "phase1_baseline" / "manifest.json"
    manifest = _read(path)
    assert {"run_id", "schema", "metrics", "git", "packages", "host", "started", "duration_s"} <= set(manifest)
    for key, value in manifest.items():
        write_json(path, manifest | {key: {"other": 1} if isinstance(value, dict) else "other"})
        problems = find_problems(str(finished_run))
        assert any(str(path) in problem or "run.json" in problem for problem in problems), key


@pytest.mark.parametrize("folder", ["phase0_data", "phase1_baseline/model", "phase6_export", "phase6_export/bundle"])
def test_a_file_that_nobody_wrote(folder: str, finished_run: Path) -> None:
    """An adapter beside a merged model is attached when it is loaded: a stranger is never harmless."""
    stranger = finished_run / folder / "adapter_model.safetensors"
    stranger.write_bytes(b"")
    assert any(str(stranger) in problem for problem in find_problems(str(finished_run)))


def test_a_list_of_looks_that_was_changed(finished_run: Path) -> None:
    Looks([], json_sha256([])).write(finished_run)
    path = finished_run / Looks.FILE
    assert find_problems(str(finished_run)) == []
    for changed in (path.read_text() + " ", path.read_text().replace("[]", "[1]"), "{"):
        path.write_text(changed)
        (problem,) = find_problems(str(finished_run))
        assert str(path) in problem


def test_a_run_without_a_finished_phase(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "run.json", {"schema": 1, "run_id": "new", "recipe": "tiny"})
    refused(UsageError, lambda: find_problems(str(tmp_path / "new")), tmp_path / "new")


def test_a_phase_at_work_is_no_damage(finished_run: Path) -> None:
    folder = finished_run / "phase6_export"
    (folder / "manifest.json").unlink()
    assert any(str(folder / "manifest.json") in problem for problem in find_problems(str(finished_run)))
    write_json(folder / "in_progress.json", {"attempt": "x"})
    assert not any(str(folder / "manifest.json") in problem for problem in find_problems(str(finished_run)))


def test_a_run_may_be_moved(finished_run: Path, tmp_path: Path) -> None:
    moved = finished_run.rename(tmp_path / "elsewhere")
    assert find_problems(str(moved)) == []


# Planted: what a careful attacker, or a bug, would leave. Every checksum is made anew: only meaning is left to check.


def _redo_bundle(run: Path) -> None:
    bundle = run / "phase6_export" / "bundle"
    edit(bundle / "policy.json", model_sha256=file_sha256(bundle / "model.safetensors"))
    bind(bundle)
    describe(bundle)
    redescribe(run)


def test_the_attackers_helper_leaves_no_trace_of_its_own(finished_run: Path) -> None:
    _redo_bundle(finished_run)
    assert find_problems(str(finished_run)) == []


def _first(splits: dict[str, Any], role: str) -> int:
    return splits["roles"].index(role)


def _move_row(splits: dict[str, Any]) -> list[list[str]]:
    i = _first(splits, "train")
    splits["roles"][i] = "test"
    return [["row", splits["ids"][i], "train", "phase1_baseline", "test", "splits.json"]]


def _move_group(splits: dict[str, Any]) -> list[list[str]]:
    group = splits["groups"][_first(splits, "test")]
    moved = [i for i, g in enumerate(splits["groups"]) if g == group]
    for i in moved:
        splits["roles"][i] = "train"
    return [["row", splits["ids"][i], "test", "phase6_export", "train", "splits.json"] for i in moved]


def _drop_row(splits: dict[str, Any]) -> list[list[str]]:
    i = _first(splits, "test")
    row = splits["ids"][i]
    for column in ("ids", "roles", "groups", "labels", "sha256"):
        del splits[column][i]
    return [["row", row, "test", "phase6_export", "splits.json"]]


def _same_picture(splits: dict[str, Any]) -> list[list[str]]:
    i, j = _first(splits, "train"), _first(splits, "test")
    splits["sha256"][i] = splits["sha256"][j]
    return [["picture", splits["sha256"][j], splits["ids"][i], splits["ids"][j], "train", "test"]]


def _same_group(splits: dict[str, Any]) -> list[list[str]]:
    i, j = _first(splits, "val_select"), _first(splits, "val_calib")
    splits["groups"][i] = splits["groups"][j]
    return [["group", splits["groups"][j], splits["ids"][i], "val_select", "val_calib"]]


def _listed_twice(splits: dict[str, Any]) -> list[list[str]]:
    i = _first(splits, "test")
    for column in ("ids", "roles", "groups", "labels", "sha256"):
        splits[column].append(splits[column][i])
    return [["row", splits["ids"][i], "twice"]]


@pytest.mark.parametrize("plant", [_move_row, _move_group, _drop_row, _same_picture, _same_group, _listed_twice])
def test_planted_leaks(plant: Callable[[dict[str, Any]], list[list[str]]], finished_run: Path) -> None:
    path = finished_run / "phase0_data" / "splits.json"
    splits = _read(path)
    expected = plant(splits)
    write_json(path, splits)
    redescribe(finished_run)
    problems = find_problems(str(finished_run))
    for facts in expected:
        assert any(all(fact in problem for fact in facts) for problem in problems), problems
    assert not any("sha256" in problem or "run phase" in problem for problem in problems)


@pytest.mark.parametrize(
    ("number", "role"), [(0, "train"), (1, "val_calib"), (1, "test"), (2, "train"), (2, "test"), (6, "val_calib")]
)
def test_a_phase_that_read_what_it_must_not(number: int, role: str, finished_run: Path) -> None:
    folder = finished_run / PHASES[number].folder
    splits = _read(finished_run / "phase0_data" / "splits.json")
    rows = _read(folder / "rows_read.json")
    rows[role] = [i for i, r in zip(splits["ids"], splits["roles"], strict=True) if r == role]
    write_json(folder / "rows_read.json", rows)
    redescribe(finished_run)
    (problem,) = find_problems(str(finished_run))
    assert tells(problem, PHASES[number].folder, role, "must not")


@pytest.mark.parametrize("content", [{}, [], {"train": [], "val_select": []}])
def test_rows_that_are_hidden(content: Any, finished_run: Path) -> None:
    """The list of rows is emptied, its checksum made anew, the manifest's digest of the rows left as it was."""
    folder = finished_run / "phase1_baseline"
    write_json(folder / "rows_read.json", content)
    manifest = _read(folder / "manifest.json")
    manifest["files"] = describe_files(folder, manifest["files"])
    manifest["digest"] = manifest_digest(manifest)
    write_json(folder / "manifest.json", manifest)
    assert any("rows" in problem and "phase1_baseline" in problem for problem in find_problems(str(finished_run)))


def test_a_stale_upstream(finished_run: Path) -> None:
    path = finished_run / "phase2_threshold" / "threshold.json"
    write_json(path, _read(path) | {"objective": "f1"})
    redescribe(finished_run, 2)
    (problem,) = find_problems(str(finished_run))
    assert tells(problem, "phase6_export", "phase2_threshold", "run phase 6 again")


@pytest.mark.parametrize(
    ("missing", "below"), [("phase1_baseline", "phase2_threshold"), ("phase2_threshold", "phase6_export")]
)
def test_a_missing_upstream(missing: str, below: str, finished_run: Path) -> None:
    shutil.rmtree(finished_run / missing)
    problems = find_problems(str(finished_run))
    assert any(line.startswith(below) and missing in line and "missing" in line for line in problems)


def _change_tensor(run: Path, name: str, change: Callable[[Any], Any]) -> list[str]:
    path = run / "phase6_export" / "bundle" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name]).clone()}, path, metadata={"format": "pt"})
    _redo_bundle(run)
    return find_problems(str(run))


@pytest.mark.parametrize("tensor", ["classifier.weight", "classifier.bias", "dinov2.layernorm.weight"])
def test_other_weights_in_the_bundle(tensor: str, finished_run: Path) -> None:
    def more(values: Any) -> Any:
        values.view(-1)[0] += 1e-3
        return values

    (problem,) = _change_tensor(finished_run, tensor, more)
    assert tells(problem, tensor, "bundle")


def test_weights_of_another_shape(finished_run: Path) -> None:
    problems = _change_tensor(finished_run, "classifier.bias", lambda bias: bias[:1])
    assert any("model.safetensors" in problem and "[1]" in problem for problem in problems)


def test_another_threshold_folded_consistently(finished_run: Path) -> None:
    path = finished_run / "phase6_export" / "bundle" / "policy.json"
    policy = _read(path)
    policy["threshold_logit"] += 2.0
    policy["folded_shift"] = policy["threshold_logit"] * policy["calibration"]["slope"]
    write_json(path, policy)
    shift = lambda bias: bias + bias.new_tensor([1.0, -1.0])  # noqa: E731
    (problem,) = _change_tensor(finished_run, "classifier.bias", shift)
    assert tells(problem, path, "threshold", "phase2_threshold")


def test_a_candidate_of_other_weights(finished_run: Path) -> None:
    _flip(finished_run / "phase1_baseline" / "model" / "model.safetensors")
    redescribe(finished_run)
    assert any("candidate" in problem and "weights" in problem for problem in find_problems(str(finished_run)))


# Answers that were changed, with every checksum made anew: what was decided and measured no longer follows from them.


def _change_logits(path: Path, by: float) -> None:
    table = read_logits(path, pq.read_schema(path).metadata[b"candidate_sha256"].decode())
    write_logits(path, replace(table, logits=np.roll(table.logits, 7) + by))


def _change_confidences(path: Path, by: float) -> None:
    content = pq.read_table(path)
    pq.write_table(content.set_column(1, "confidence", pa.array(content["confidence"].to_numpy()[::-1] + by)), path)


def _change_card(path: Path, by: float) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if line.startswith("| recall |"))
    lines[at] = "| recall | 0.999 | 0.999 |\n"
    write_text(path, "".join(lines))


def _change_metadata(path: Path, by: float) -> None:
    text = path.read_text(encoding="utf-8")
    at = text.index("value: ", text.index("type: mcc"))
    write_text(path, f"{text[:at]}value: 0.9876{text[text.index(chr(10), at) :]}")


def _change_gate(path: Path, by: float) -> None:
    gate = _read(path)
    gate["compared"]["aurc"]["learned"] -= 0.01
    write_json(path, gate)


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("phase1_baseline/logits/val_select.parquet", _change_logits, "threshold.json"),
        ("phase3_gate/val_select_cross_fitted.parquet", _change_confidences, "gate.json"),
        ("phase3_gate/gate.json", _change_gate, "gate.json"),
        ("phase5_scrc/logits/val_calib.parquet", _change_logits, "calibration.json"),
        ("phase6_export/logits/test.parquet", _change_logits, "evaluation.json"),
        ("phase6_export/bundle/README.md", _change_card, "recall"),
        ("phase6_export/bundle/README.md", _change_metadata, "mcc"),
    ],
    ids=lambda value: value.replace("/", "-") if isinstance(value, str) else "",
)
def test_results_that_do_not_follow_from_the_answers(
    name: str, change: Callable[[Path, float], None], found: str, whole_run: Path
) -> None:
    _redo_bundle(whole_run)
    assert find_problems(str(whole_run)) == []
    change(whole_run / name, 0.37)
    _redo_bundle(whole_run)
    assert any(found in problem for problem in find_problems(str(whole_run)))


def test_a_result_of_other_methods_is_said_to_be_unchecked(finished_run: Path) -> None:
    path = finished_run / "phase2_threshold" / "manifest.json"
    manifest = _read(path) | {"methods": 0}
    write_json(path, manifest | {"seal": manifest_seal(manifest)})
    notes: list[str] = []
    assert find_problems(str(finished_run), notes.append) == []
    assert len(notes) == 1 and "phase2_threshold" in notes[0]
