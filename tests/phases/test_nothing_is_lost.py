"""A run that is asked for something wrong, or cut off, keeps what it had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import FINISHED, write_parquet_source
from refusals import refused

from natix_hf.errors import DataError, RunError, UsageError
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import write_json
from natix_hf.runs.graph import PHASES
from natix_hf.runs.verify import find_problems


def manifest(run: Path, number: int) -> bytes:
    return (run / PHASES[number].folder / "manifest.json").read_bytes()


@pytest.mark.parametrize("override", ["model.config.patch_size=13", "phase1.seed=-1", "phase1.eval_strategy=steps"])
def test_a_mistyped_override_deletes_nothing(override: str, finished_run: Path, tiny_recipe_file: Path) -> None:
    before = [manifest(finished_run, n) for n in FINISHED]
    with pytest.raises(UsageError):
        run_recipe(str(tiny_recipe_file), run_dir=finished_run, overrides=[override])
    assert [manifest(finished_run, n) for n in FINISHED] == before
    assert find_problems(str(finished_run)) == []


def test_a_failed_attempt_with_other_settings_gives_the_old_result_back(
    finished_run: Path, tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [manifest(finished_run, n) for n in FINISHED]
    with monkeypatch.context() as patch:
        patch.setattr(
            "natix_hf.results.answers.train_classifier", lambda *_, **__: (_ for _ in ()).throw(RunError("no"))
        )
        with pytest.raises(RunError):
            run_recipe(str(tiny_recipe_file), run_dir=finished_run, overrides=["phase1.learning_rate=1e-3"])
    assert not (finished_run / "phase1_baseline" / "manifest.json").exists(), "what is unfinished has no manifest"
    run_recipe(str(tiny_recipe_file), run_dir=finished_run)
    assert [manifest(finished_run, n) for n in FINISHED] == before, "nothing was trained again"
    assert find_problems(str(finished_run)) == []


def test_a_kill_while_finishing_does_not_cost_the_training(
    tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run_recipe(str(tiny_recipe_file), [], run)  # phase 0; then phase 1 is killed
    with monkeypatch.context() as patch:
        patch.setattr(
            "natix_hf.runs.attempt.write_manifest", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            run_recipe(str(tiny_recipe_file), [1], run)
    with monkeypatch.context() as patch:
        patch.setattr("natix_hf.results.answers.train_classifier", None)
        run_recipe(str(tiny_recipe_file), [1], run)
    assert not (run / "phase1_baseline" / "checkpoints").exists()
    assert find_problems(str(run)) == []


def test_a_source_that_changed_under_a_run_is_noticed(tmp_path: Path, tiny_recipe_file: Path) -> None:
    """Rows are known by their place: equal ids and sizes say nothing about the pictures."""
    source = write_parquet_source(tmp_path / "source", seed=1)
    run = tmp_path / "run"
    run_recipe(str(tiny_recipe_file), [], run, overrides=[f"data.source={source}"])
    splits = json.loads((run / "phase0_data" / "splits.json").read_text())
    from natix_hf.data.rows import load_image_data
    from natix_hf.data.splits import read_splits
    from natix_hf.recipe import load_recipe

    write_parquet_source(tmp_path / "source", seed=2)
    config = load_recipe(str(tiny_recipe_file), [f"data.source={source}"]).data
    call = lambda: load_image_data(config, read_splits(run / "phase0_data" / "splits.json"))  # noqa: E731
    refused(DataError, call, splits["ids"][0], source, "new run")


def test_a_missing_upstream_is_found_before_the_images_are_read(tiny_recipe_file: Path, tmp_path: Path) -> None:
    call = lambda: run_recipe(str(tiny_recipe_file), [2], tmp_path / "run")  # noqa: E731
    refused(UsageError, call, "phase 2", "phase 1", "--phases 1")
    assert not (tmp_path / "run").exists()


def test_slices_are_the_business_of_phase_6_alone(finished_run: Path, tiny_recipe_file: Path) -> None:
    before = [manifest(finished_run, n) for n in (0, 1, 2)]
    run_recipe(str(tiny_recipe_file), run_dir=finished_run, overrides=["data.slices=[]"])
    assert [manifest(finished_run, n) for n in (0, 1, 2)] == before
    assert json.loads((finished_run / "phase6_export" / "evaluation.json").read_text())["slices"] == {}


def test_tensorboard_curves_outlive_the_checkpoints(tiny_recipe_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    overrides = ["phase1.report_to=tensorboard", "phase1.num_train_epochs=1"]
    run = run_recipe(str(tiny_recipe_file), [1], tmp_path / "run", overrides=overrides)
    assert list((run / "tensorboard" / "phase1_baseline").rglob("events.out.tfevents.*"))
    assert find_problems(str(run)) == [], "they name the host, so no manifest holds them"


def test_leftovers_of_a_killed_write_are_named_and_swept(finished_run: Path, tiny_recipe_file: Path) -> None:
    for place in ("phase1_baseline/.tmp-model-dead/model.safetensors", "phase6_export/bundle/.tmp-evil.pkl"):
        (finished_run / place).parent.mkdir(exist_ok=True)
        (finished_run / place).write_bytes(b"x")
    problems = " ".join(find_problems(str(finished_run)))
    assert ".tmp-model-dead" in problems and ".tmp-evil.pkl" in problems
    run_recipe(str(tiny_recipe_file), run_dir=finished_run, overrides=["phase1.num_train_epochs=1"])
    assert find_problems(str(finished_run)) == []


def test_the_run_file_and_the_phases_name_one_recipe(finished_run: Path) -> None:
    (finished_run / "phase6_export" / "manifest.json").unlink()
    content = json.loads((finished_run / "run.json").read_text())
    write_json(finished_run / "run.json", content | {"recipe": "other"})
    problems = find_problems(str(finished_run))
    assert any("run.json" in problem and "'other'" in problem and "'tiny'" in problem for problem in problems)
