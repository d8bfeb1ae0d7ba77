"""Phase 6: one look at test for each champion, and a word about who can load the bundle."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TINY_RECIPE, striped_image, write_recipe

from natix_hf.phases import phase6_export
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import list_files
from natix_hf.results.logits import read_logits, write_logits

WARNING = "warning: the subnet's official miner (transformers 4.45.2) cannot load a"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every forward pass over test."""
    seen: list[int] = []
    real = phase6_export.compute_answers
    monkeypatch.setattr(phase6_export, "compute_answers", lambda *args: seen.append(1) or real(*args))
    return seen


@pytest.mark.parametrize(("architecture", "loads"), [("dinov2", True), ("dinov2_with_registers", False)])
def test_who_cannot_load_it_is_told(
    architecture: str, loads: bool, parquet_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        **TINY_RECIPE,
        "data": {**TINY_RECIPE["data"], "source": str(parquet_source)},
        "model": {"config": TINY[architecture], "image_size": 28},
        "phase1": {**TINY_RECIPE["phase1"], "num_train_epochs": 1},
    }
    run = run_recipe(str(write_recipe(tmp_path / "tiny.yaml", content)), [1, 2, 6], tmp_path / "run")
    assert (f"{WARNING} {architecture}" in capsys.readouterr().out) == (not loads)
    card = (run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    assert ("**cannot load this model**" in card) == (not loads)


def test_the_code_on_the_card_of_a_dinov3_runs_where_nothing_was_imported(
    parquet_source: Path, tmp_path: Path
) -> None:
    """transformers has no such class: each block must bring it along."""
    content = {
        **TINY_RECIPE,
        "data": {**TINY_RECIPE["data"], "source": str(parquet_source)},
        "model": {"config": TINY["dinov3_vit"], "image_size": 28},
        "phase1": {**TINY_RECIPE["phase1"], "num_train_epochs": 1},
    }
    run = run_recipe(str(write_recipe(tmp_path / "tiny.yaml", content)), [1, 2, 6], tmp_path / "run")
    bundle = run / "phase6_export" / "bundle"
    striped_image(1, np.random.default_rng(0), (28, 28)).save(tmp_path / "image.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (bundle / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    for block, printed in zip(blocks, ("Prediction(", "'label': 'Roadwork'"), strict=True):
        code = block.replace("PATH_OR_REPO_ID", bundle.as_posix())
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert printed in done.stdout, done.stderr


def test_another_policy_is_measured_on_the_same_answers(
    finished_run: Path, tmp_path: Path, looks: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    section = json.loads((finished_run / "phase0_data" / "manifest.json").read_text(encoding="utf-8"))["section"]
    recipe = str(write_recipe(tmp_path / "tiny.yaml", {**TINY_RECIPE, "data": section["data"]}))
    before = (finished_run / "phase6_export" / "logits" / "test.parquet").read_bytes()
    run_recipe(recipe, [5, 6], finished_run, overrides=["phase5.risk.alpha=0.3"])
    assert looks == [] and "test was answered by this champion before" in capsys.readouterr().out
    assert (finished_run / "phase6_export" / "logits" / "test.parquet").read_bytes() == before
    evaluation = json.loads((finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["selective"]["promised"] == 0.3


def test_damaged_answers_are_not_used(finished_run: Path, tmp_path: Path, looks: list[int]) -> None:
    section = json.loads((finished_run / "phase0_data" / "manifest.json").read_text(encoding="utf-8"))["section"]
    recipe = str(write_recipe(tmp_path / "tiny.yaml", {**TINY_RECIPE, "data": section["data"]}))
    path = finished_run / "phase6_export" / "logits" / "test.parquet"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + b"x")
    run_recipe(recipe, [6], finished_run)
    assert looks == [1] and path.read_bytes() == before


def test_what_a_learned_gate_reads_is_kept_too(
    finished_run: Path, tmp_path: Path, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it a gate would need a second look."""
    from natix_hf.models.gate import Gate, save_gate
    from natix_hf.provenance.files import write_json

    gate = tmp_path / "gate.safetensors"
    save_gate(gate, Gate(66, 3))
    report = {"method": "correctness"}

    def learned(context: Any) -> Path:
        write_json(context.upstream(3) / "gate.json", report)
        return gate

    section = json.loads((finished_run / "phase0_data" / "manifest.json").read_text(encoding="utf-8"))["section"]
    recipe = str(write_recipe(tmp_path / "tiny.yaml", {**TINY_RECIPE, "data": section["data"]}))
    monkeypatch.setattr(phase6_export, "learned_gate", learned)
    run_recipe(recipe, [6], finished_run, overrides=["phase6.version=1.0.0"])
    assert looks == [1]  # the margin had kept no features
    first = json.loads((finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    run_recipe(recipe, [6], finished_run, overrides=["phase6.version=1.0.1"])
    assert looks == [1]
    again = json.loads((finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    np.testing.assert_equal(again, first)


@pytest.mark.parametrize("best", [True, False])
def test_the_card_says_which_weights_were_kept(best: bool, finished_run: Path, tmp_path: Path) -> None:
    """All epochs but the first come too late here: every one of them has an MCC of 1."""
    section = json.loads((finished_run / "phase0_data" / "manifest.json").read_text(encoding="utf-8"))["section"]
    recipe = str(write_recipe(tmp_path / "tiny.yaml", {**TINY_RECIPE, "data": section["data"]}))
    run_recipe(recipe, [1, 2, 6], finished_run, overrides=[f"phase1.load_best_model_at_end={str(best).lower()}"])
    manifest = json.loads((finished_run / "phase1_baseline" / "manifest.json").read_text(encoding="utf-8"))
    metrics = manifest["metrics"]
    assert 0 < metrics["best_step"] < metrics["steps"]
    card = (finished_run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    assert f"Kept: the weights of step {metrics['best_step' if best else 'steps']}." in card


def test_no_path_is_published_though_the_folder_is_gone(
    parquet_source: Path, pretrained: Path, tmp_path: Path
) -> None:
    """Nobody needs the backbone's folder once it is trained; its path names a person."""
    backbone, source = tmp_path / "home" / "alice" / "weights", tmp_path / "home" / "alice" / "frames"
    shutil.copytree(pretrained, backbone)
    shutil.copytree(parquet_source, source)
    content = {
        **TINY_RECIPE,
        "data": {**TINY_RECIPE["data"], "source": str(source)},
        "model": {"backbone": str(backbone), "image_size": 28},
        "phase1": {**TINY_RECIPE["phase1"], "num_train_epochs": 1},
    }
    recipe = str(write_recipe(tmp_path / "tiny.yaml", content))
    run = run_recipe(recipe, [1, 2], tmp_path / "run")
    shutil.rmtree(backbone)
    run_recipe(recipe, [6], run)
    bundle = run / "phase6_export" / "bundle"
    for name in list_files(bundle):
        assert b"alice" not in (bundle / name).read_bytes(), name
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert " weights.\n" in card and "\nframes, divided by group" in card


@pytest.mark.parametrize(("what", "again"), [("labels", 1), ("ids", 1), ("groups", 0)])
def test_answers_are_used_for_the_rows_that_are_test_now(
    what: str, again: int, finished_run: Path, tmp_path: Path, looks: list[int]
) -> None:
    """An attempt that was cut off left answers about other rows. A group is no part of an answer."""
    section = json.loads((finished_run / "phase0_data" / "manifest.json").read_text(encoding="utf-8"))["section"]
    recipe = str(write_recipe(tmp_path / "tiny.yaml", {**TINY_RECIPE, "data": section["data"]}))
    path = finished_run / "phase6_export" / "logits" / "test.parquet"
    threshold = json.loads((finished_run / "phase2_threshold" / "threshold.json").read_text(encoding="utf-8"))
    table = read_logits(path, threshold["candidate_sha256"])
    right = json.loads((finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    (finished_run / "phase6_export" / "manifest.json").unlink()
    other = {
        "labels": replace(table, labels=1 - table.labels),
        "ids": replace(table, ids=table.ids[::-1]),
        "groups": replace(table, groups=np.asarray(["one"] * len(table.ids))),
    }
    write_logits(path, other[what])
    run_recipe(recipe, [6], finished_run)
    found = json.loads((finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    assert len(looks) == again and found == right
