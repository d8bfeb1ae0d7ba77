"""Phase 4 on nothing but unlabelled images: no labels, no splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import explora_recipe, striped_image
from refusals import refused
from transformers import AutoModel

from natix_hf.errors import UsageError
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import read_json
from natix_hf.runs.verify import run_problems


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures without labels, as a dash-cam leaves it."""
    folder, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    for number in range(40):
        striped_image(number % 2, rng).save(folder / f"frame{number:03}.png")
    return folder


@pytest.mark.parametrize("objective", ["mae", "dinov2"])
def test_no_labels_and_no_splits_at_all(objective: str, tmp_path: Path, frames: Path, pretrained: Path) -> None:
    recipe = explora_recipe(tmp_path, None, pretrained, objective=objective, use_labeled_data=False)
    run = run_recipe(recipe, [4], tmp_path / "run", overrides=[f"phase4.unlabelled=[{frames}]"])
    folder = run / "phase4_explora"
    manifest = read_json(folder / "manifest.json")
    assert manifest["metrics"]["images"] == manifest["metrics"]["unlabelled"] == 40
    assert manifest["metrics"]["best_score"] is None and manifest["metrics"]["best_step"] == 6  # the last one is kept
    history = json.loads((folder / "self_supervised_history.json").read_text(encoding="utf-8"))
    probes = [row for row in history if "eval_spread" in row]
    assert [row["step"] for row in probes] == [0, 3, 6] and not any("eval_linear_auroc" in row for row in probes)
    assert sum(manifest["rows"][role]["count"] for role in manifest["rows"]) == 0
    assert len(read_json(folder / "unlabelled.json")["rows"]) == 40
    assert AutoModel.from_pretrained(folder / "backbone") and run_problems(run) == []
    run_recipe(recipe, [4], run, overrides=[f"phase4.unlabelled=[{frames}]"])  # current: nothing to do
    assert read_json(folder / "manifest.json") == manifest


def test_unlabelled_rows_decide_the_digest(
    tmp_path: Path, frames: Path, pretrained: Path, parquet_source: Path
) -> None:
    recipe = explora_recipe(tmp_path, parquet_source, pretrained, use_labeled_data=False)
    digests = []
    for name, more in {"with": [f"phase4.unlabelled=[{frames}]"], "without": []}.items():
        run = run_recipe(recipe, [4], tmp_path / name, overrides=more)
        digests.append(read_json(run / "phase4_explora" / "manifest.json")["files"]["unlabelled.json"]["sha256"])
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("phases", "overrides", "words"),
    [
        ([1], [], "phase 1"),
        ([4, 2], ["phase4.use_labeled_data=false"], "phase 2"),
        ([4], [], "phase4.use_labeled_data=false"),
        ([4], ["phase4.use_labeled_data=false"], "phase4.unlabelled"),
        ([4], ["phase4.use_labeled_data=false", "phase4.unlabelled=[nowhere]"], "no folder or file nowhere"),
    ],
)
def test_what_needs_labels_says_so(
    phases: list[int], overrides: list[str], words: str, tmp_path: Path, pretrained: Path
) -> None:
    recipe = explora_recipe(tmp_path, None, pretrained)
    refused(UsageError, lambda: run_recipe(recipe, phases, tmp_path / "run", overrides=overrides), words)
    assert not (tmp_path / "run").exists()
