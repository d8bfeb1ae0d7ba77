"""The Python API: what is reachable, what it imports, and whole runs from Python."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import TINY_RECIPE, tiny_backbone, write_parquet_source
from facts import tells
from refusals import refused

import natix_hf
from natix_hf import apidoc
from natix_hf.errors import RecipeError, UsageError
from natix_hf.recipe import Recipe, parse_recipe

QUICK = {**TINY_RECIPE, "phase1": {**TINY_RECIPE["phase1"], "num_train_epochs": 1}}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> datasets.DatasetDict:
    folder = write_parquet_source(tmp_path_factory.mktemp("photographs"), groups=30, frames=2, official_test=12)
    found = datasets.load_dataset(str(folder))
    assert isinstance(found, datasets.DatasetDict)
    return found


def test_every_name_is_reachable_listed_and_explained() -> None:
    """In a fresh interpreter: listing imports nothing heavy, and each name is there."""
    code = (
        "import sys, json, natix_hf; names = dir(natix_hf); heavy = [m for m in ('torch', 'transformers', 'numpy')"
        " if m in sys.modules]; missing = [n for n in natix_hf.__all__ if n not in names];"
        "print(json.dumps([heavy, missing, [natix_hf.metrics.__name__, natix_hf.ssl.__name__]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, missing, modules = json.loads(done.stdout)
    assert (heavy, missing, modules) == ([], [], ["natix_hf.metrics", "natix_hf.ssl"])
    for name in natix_hf.__all__:
        assert inspect.getdoc(getattr(natix_hf, name)), name
    with pytest.raises(AttributeError):
        natix_hf.nonsense  # noqa: B018


def test_the_page_is_that_of_the_code() -> None:
    page = Path(__file__).parents[2] / "docs" / "api.md"
    assert page.read_text(encoding="utf-8") == apidoc.api_page(), "make docs"


@pytest.mark.parametrize("of", ["mapping", "recipe", "path"])
def test_a_run_from_python_is_that_of_the_shell(
    of: str, photographs: datasets.DatasetDict, tiny_recipe_file: Path, tmp_path: Path
) -> None:
    recipe: Any = {"mapping": QUICK, "recipe": parse_recipe(QUICK, name="mine"), "path": tiny_recipe_file}[of]
    given = None if of == "path" else photographs
    run = natix_hf.run(recipe, [1, 2, 5, 6], tmp_path / "run", given, {"phase1.seed": 3, "phase5.risk.alpha": 0.4})
    results = run.results
    assert results.decision is not None and results.evaluation is not None and results.promise is not None
    stored = json.loads((run.folder / "phase2_threshold" / "threshold.json").read_text(encoding="utf-8"))
    assert results.decision.threshold_logit == stored["threshold_logit"]
    assert results.promise.alpha == 0.4 and results.gate is None
    if of != "path":
        assert results.evaluation.rows == len(photographs["test"])  # the split that is called test
        assert json.loads((run.folder / "run.json").read_text())["recipe"] == ("mine" if of == "recipe" else "recipe")
    bundle = run.bundle()
    assert bundle.policy.threshold_logit == results.decision.threshold_logit
    [answer] = bundle.predict(photographs["test"][0]["image"])
    assert (answer.label == "Roadwork") == (answer.probability > answer.threshold)
    # The same call continues the run: every phase is current.
    before = (run.folder / "phase1_baseline" / "manifest.json").stat().st_mtime_ns
    natix_hf.run(recipe, [1, 2, 5, 6], tmp_path / "run", given, ["phase1.seed=3", "phase5.risk.alpha=0.4"])
    assert (run.folder / "phase1_baseline" / "manifest.json").stat().st_mtime_ns == before


def test_the_log_tells_what_the_screen_told(tiny_recipe_file: Path, tmp_path: Path, capsys: Any) -> None:
    natix_hf.run(tiny_recipe_file, [1], tmp_path / "run", overrides={"phase1.num_train_epochs": 1})
    shown = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    logged = (tmp_path / "run" / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition("  ")[2] for line in logged if line.partition("  ")[2].strip()] == shown
    assert shown[0].startswith("device") and any("optimistic" in line for line in shown)


@pytest.mark.parametrize(
    ("recipe", "dataset", "facts"),
    [
        ("nonsense", None, ["nonsense", "natix-hf recipes"]),
        ({"phase1": {"lr": 1}}, None, ["phase1.lr", "learning_rate"]),
        ({"phase7": {}}, None, ["phase7"]),
        ({"phase1": {"learning_rate": object()}}, None, ["YAML"]),
        (QUICK, [1, 2], ["list", "datasets.Dataset"]),
        (QUICK, datasets.Dataset.from_dict({"image": [], "label": []}), ["no rows"]),
        ({"data": {"source": [Path("nowhere"), "synthetic"]}}, None, ["data.source", "no folder or file nowhere"]),
    ],
)
def test_what_cannot_be_run_is_refused(recipe: Any, dataset: Any, facts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        natix_hf.run(recipe, [1], tmp_path / "run", dataset)
    assert tells(caught.value, *facts)


def test_a_key_takes_a_path(tmp_path: Path) -> None:
    given = {"data.source": tmp_path / "nowhere"}
    refused(UsageError, lambda: natix_hf.run(QUICK, [1], tmp_path / "run", overrides=given), str(tmp_path / "nowhere"))
    refused(RecipeError, lambda: natix_hf.run(QUICK, [1], overrides={"phase1.seed": object()}), "YAML")


def test_a_mapping_says_what_a_recipe_is(tmp_path: Path) -> None:
    assert parse_recipe(Recipe().mapping()) == Recipe()
    changed = parse_recipe({**QUICK, "phase4": {"rank": 3, "supervised": {"adapter": "lora", "max_steps": 4}}})
    assert parse_recipe(changed.mapping()) == changed
    with pytest.raises(RecipeError):
        natix_hf.run(Recipe(), overrides=["phase1"], run_dir=tmp_path / "run")


def test_from_a_trainer_to_a_bundle_in_one_call(photographs: datasets.DatasetDict, tmp_path: Path) -> None:
    tiny_backbone("dinov2", layers=2).save_pretrained(tmp_path / "backbone")
    arguments = {"num_train_epochs": 1, "output_dir": str(tmp_path / "out"), "dataloader_num_workers": 0}
    trainer = natix_hf.RoadworkTrainer(
        str(tmp_path / "backbone"), train_dataset=photographs["train"], eval_dataset=photographs["test"],
        adapter="lora", args=arguments,
    )  # fmt: skip
    with pytest.raises(UsageError) as caught:
        natix_hf.bundle_of(trainer, tmp_path / "early")
    assert tells(caught.value, "train()") and not (tmp_path / "early").exists()
    trainer.train()
    before = trainer.evaluate()["eval_nll"]
    bundle = natix_hf.bundle_of(
        trainer, tmp_path / "bundle", test_dataset=photographs["test"], group_by="video_info.vid_id"
    )
    assert trainer.evaluate()["eval_nll"] == before, "the trainer goes on as it was"
    answers = bundle.predict(photographs["test"]["image"])
    logits = trainer.predict(photographs["test"]).predictions
    z = logits[:, 1] - logits[:, 0]
    assert [answer.label == "Roadwork" for answer in answers] == (z > bundle.policy.threshold_logit).tolist()
    evaluation = json.loads((tmp_path / "bundle" / "evaluation.json").read_text(encoding="utf-8"))
    assert (evaluation["rows"], evaluation["groups"]["groups"]) == (len(photographs["test"]), 12)
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "optimistic" in card and "no risk was certified" in card
    with pytest.raises(UsageError) as caught:
        natix_hf.bundle_of(trainer, tmp_path / "bundle")
    assert tells(caught.value, "bundle", "exists")
    trainer.model.config.id2label = {0: "plain", 1: "striped"}  # as a ClassLabel names them
    renamed = natix_hf.bundle_of(trainer, tmp_path / "renamed").predict(photographs["test"]["image"])
    assert [a.label == "striped" for a in renamed] == [a.label == "Roadwork" for a in answers]
    assert {answer.label for answer in renamed} == {"plain", "striped"}
    assert "`striped` (yes) or `plain` (no)" in (tmp_path / "renamed" / "README.md").read_text(encoding="utf-8")
    trainer.model.config.id2label = {0: "plain", 1: "abstain"}
    with pytest.raises(UsageError) as caught:
        natix_hf.bundle_of(trainer, tmp_path / "refused")
    assert tells(caught.value, "bundle_of", "abstain") and not (tmp_path / "refused").exists()
