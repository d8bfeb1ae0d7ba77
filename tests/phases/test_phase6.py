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

from natix_hf.data.asked import Asked
from natix_hf.phases import phase6_evaluate
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import list_files
from natix_hf.results.logits import read_logits, write_logits


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every forward pass over test."""
    seen: list[int] = []
    real = phase6_evaluate.compute_answers
    monkeypatch.setattr(phase6_evaluate, "compute_answers", lambda *args: seen.append(1) or real(*args))
    return seen


def _recipe(folder: Path, source: Path, model: dict[str, Any]) -> str:
    content = TINY_RECIPE | {
        "data": TINY_RECIPE["data"] | {"source": str(source)},
        "model": model | {"image_size": 28},
        "phase1": TINY_RECIPE["phase1"] | {"num_train_epochs": 1},
    }
    return str(write_recipe(folder / "tiny.yaml", content))


@pytest.mark.parametrize(("architecture", "loads"), [("dinov2", True), ("dinov3_vit", False)])
def test_who_cannot_load_it_is_told(
    architecture: str, loads: bool, parquet_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers has no class for a DINOv3: each block of code on its card must bring one along."""
    recipe = _recipe(tmp_path, parquet_source, {"config": TINY[architecture]})
    bundle = run_recipe(recipe, [1, 2, 6], tmp_path / "run") / "phase6_export" / "bundle"
    lines, card = capsys.readouterr().out.splitlines(), (bundle / "README.md").read_text(encoding="utf-8")
    assert any("warning" in line and "4.45.2" in line and architecture in line for line in lines) == (not loads)
    assert ("**cannot load this model**" in card) == (not loads)
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 2
    striped_image(1, np.random.default_rng(0), (28, 28)).save(tmp_path / "image.jpg")
    for block, printed in zip(blocks if not loads else [], ("Prediction(", "'label': 'Roadwork'"), strict=not loads):
        code = block.replace("PATH_OR_REPO_ID", bundle.as_posix())
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert printed in done.stdout, done.stderr


def test_another_policy_is_measured_on_the_same_answers(
    finished_run: Path, tiny_recipe_file: Path, looks: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(tiny_recipe_file)
    before = (finished_run / "phase6_export" / "logits" / "test.parquet").read_bytes()
    run_recipe(recipe, [5, 6], finished_run, overrides=["phase5.risk.alpha=0.3"])
    assert looks == [] and "champion" in capsys.readouterr().out
    assert (finished_run / "phase6_export" / "logits" / "test.parquet").read_bytes() == before
    evaluation = json.loads((finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["selective"]["promised"] == 0.3


def test_damaged_answers_are_not_used(finished_run: Path, tiny_recipe_file: Path, looks: list[int]) -> None:
    recipe = str(tiny_recipe_file)
    path = finished_run / "phase6_export" / "logits" / "test.parquet"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + b"x")
    run_recipe(recipe, [6], finished_run)
    assert looks == [1] and path.read_bytes() == before


def test_what_a_learned_gate_reads_is_kept_too(
    finished_run: Path, tiny_recipe_file: Path, tmp_path: Path, looks: list[int], monkeypatch: pytest.MonkeyPatch,
    upstream_by_hand: None,
) -> None:
    """Without it a gate would need a second look."""
    from natix_hf.models.gate import Gate, save_gate
    from natix_hf.results.gate import GateReport

    gate = tmp_path / "gate.safetensors"
    save_gate(gate, Gate(66, 3))
    report = GateReport("learned", "correctness", "c" * 64, 9, None, None, "it wins")

    def learned(context: Any) -> Path:
        report.write(context.upstream(3))
        (context.folder.parent / "phase3_gate" / "in_progress.json").touch()  # it has no manifest
        return gate

    recipe = str(tiny_recipe_file)
    monkeypatch.setattr(phase6_evaluate, "learned_gate", learned)
    run_recipe(recipe, [6], finished_run, overrides=["phase6.version=1.0.0"])
    assert looks == [1]  # the margin had kept no features
    first = json.loads((finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    run_recipe(recipe, [6], finished_run, overrides=["phase6.version=1.0.1"])
    assert looks == [1]
    again = json.loads((finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    np.testing.assert_equal(again, first)


@pytest.mark.parametrize("best", [True, False])
def test_the_card_says_which_weights_were_kept(best: bool, finished_run: Path, tiny_recipe_file: Path) -> None:
    """All epochs but the first come too late here: every one of them has an MCC of 1."""
    recipe = str(tiny_recipe_file)
    run_recipe(recipe, [1, 2, 6], finished_run, overrides=[f"phase1.load_best_model_at_end={str(best).lower()}"])
    manifest = json.loads((finished_run / "phase1_baseline" / "manifest.json").read_text(encoding="utf-8"))
    metrics = manifest["metrics"]
    assert 0 < metrics["best_step"] < metrics["steps"]
    card = (finished_run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    assert f"The weights of step {metrics['best_step' if best else 'steps']} were kept." in card


def test_no_path_is_published_though_the_folder_is_gone(
    parquet_source: Path, pretrained: Path, tmp_path: Path
) -> None:
    """Nobody needs the backbone's folder once it is trained; its path names a person."""
    backbone, source = tmp_path / "home" / "alice" / "weights", tmp_path / "home" / "alice" / "frames"
    shutil.copytree(pretrained, backbone)
    shutil.copytree(parquet_source, source)
    recipe = _recipe(tmp_path, source, {"backbone": str(backbone)})
    run = run_recipe(recipe, [1, 2], tmp_path / "run")
    shutil.rmtree(backbone)
    run_recipe(recipe, [6], run)
    bundle = run / "phase6_export" / "bundle"
    for name in list_files(bundle):
        assert b"alice" not in (bundle / name).read_bytes(), name
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert " weights.\n" in card and "\nframes, split by group" in card


@pytest.mark.parametrize(("what", "again"), [("labels", 1), ("ids", 1), ("groups", 0)])
def test_answers_are_used_for_the_rows_that_are_test_now(
    what: str, again: int, finished_run: Path, tiny_recipe_file: Path, looks: list[int]
) -> None:
    """An attempt that was cut off left answers about other rows. A group is no part of an answer."""
    recipe = str(tiny_recipe_file)
    path = finished_run / "phase6_export" / "logits" / "test.parquet"
    threshold = json.loads((finished_run / "phase2_threshold" / "threshold.json").read_text(encoding="utf-8"))
    table = read_logits(path, threshold["candidate_sha256"])
    right = json.loads((finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    (finished_run / "phase6_export" / "manifest.json").unlink()
    other = {
        "labels": Asked(table.ids, table.groups, 1 - table.labels),
        "ids": Asked(table.ids[::-1], table.groups, table.labels),
        "groups": Asked(table.ids, np.asarray(["one"] * len(table.ids)), table.labels),
    }
    write_logits(path, replace(table, asked=other[what]))
    run_recipe(recipe, [6], finished_run)
    found = json.loads((finished_run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    assert len(looks) == again and found == right
