"""`phase1.teacher`: runs, bundles and ensembles as teachers of a run, and teachers that would leak labels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO, TINY_RECIPE, explora_recipe, striped_image, write_parquet_source, write_recipe
from refusals import refused

from natix_hf.data.asked import ask
from natix_hf.data.config import DataConfig
from natix_hf.data.rows import load_image_data
from natix_hf.errors import UsageError
from natix_hf.models.classifier import build_classifier, save_model
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import read_json
from natix_hf.report.page import write_report
from natix_hf.results.candidate import Candidate
from natix_hf.results.teachers import _DECISION, _RUN
from natix_hf.runs.folders import RUN_FILE
from natix_hf.runs.graph import PHASES
from natix_hf.runs.teachers import _find
from natix_hf.runs.verify import run_problems
from natix_hf.trainers.distil_config import DistilConfig
from natix_hf.trainers.roadwork import RoadworkTrainer
from natix_hf.trainers.teacher import Answers, teacher_of

QUICK = ["phase1.num_train_epochs=1", "phase1.seed=3"]


def student(recipe: Path, run: Path, *overrides: str, phases: Any = (1,)) -> Path:
    return run_recipe(str(recipe), list(phases), run, overrides=[*QUICK, *overrides])


def test_a_run_teaches_and_everything_speaks_of_it(
    finished_run: Path, tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = student(tiny_recipe_file, tmp_path / "run", f"phase1.teacher={finished_run}", phases=(1, 2, 6))
    manifest = read_json(run / "phase1_baseline" / "manifest.json")
    taught, speed = manifest["metrics"]["taught"], manifest["metrics"]["speed"]
    teacher = Candidate(finished_run / "phase1_baseline")
    assert manifest["teacher"]["0/model.safetensors"] == teacher.sha256
    [fact] = taught["teachers"]
    assert (fact["name"], fact["sha256"], fact["splits_known"]) == ("finished", teacher.sha256, True)
    told = read_json(finished_run / "phase1_baseline" / "manifest.json")["metrics"]["val_select_mcc_optimistic"]
    assert fact["val_select_mcc_optimistic"] == pytest.approx(told)
    assert speed["student"] > 0 and len(speed["teachers"]) == 1
    card = (run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    for text in (card, page):
        assert fact["sha256"][:12] in text and "Nothing is known" not in text
    assert run_problems(run) == []
    before = read_json(run / "phase1_baseline" / "manifest.json")
    student(tiny_recipe_file, run, f"phase1.teacher={finished_run}")
    assert read_json(run / "phase1_baseline" / "manifest.json") == before, "current"
    moved = shutil.move(finished_run, tmp_path / "elsewhere")
    student(tiny_recipe_file, run, f"phase1.teacher={moved}")
    assert read_json(run / "phase1_baseline" / "manifest.json") == before, "the same teacher at another place"

    # Another run with the same data: the same answers, which nobody computes again. Without a teacher, other weights.
    def nobody(*_: Any) -> None:
        raise AssertionError("the answers were not kept")

    with monkeypatch.context() as patch:
        patch.setattr(Answers, "_compute", nobody)
        again = student(tiny_recipe_file, tmp_path / "again", f"phase1.teacher={moved}")
    plain = student(tiny_recipe_file, tmp_path / "plain")
    assert Candidate(again / "phase1_baseline").sha256 == Candidate(run / "phase1_baseline").sha256
    assert Candidate(plain / "phase1_baseline").sha256 != Candidate(run / "phase1_baseline").sha256

    # Another processor beside the same weights answers otherwise: the phase is no longer current.
    processor = Path(moved) / "phase1_baseline" / "model" / "preprocessor_config.json"
    processor.write_text(processor.read_text(encoding="utf-8").replace("0.485", "0.4851"), encoding="utf-8")
    with pytest.raises(UsageError):
        student(tiny_recipe_file, run, f"phase1.teacher={moved}")


def test_a_bundle_answers_as_the_run_it_was_made_of(_finished_run: Path, parquet_source: Path, tmp_path: Path) -> None:
    """What is folded into its head is undone; and these are the logits that the run has stored."""
    shutil.copytree(_finished_run / "phase6_export" / "bundle", tmp_path / "bundle")
    data = load_image_data(DataConfig(source=str(parquet_source), group_by="video_info.vid_id"))
    asked = ask(data.role("val_select"))
    stored = Candidate(_finished_run / "phase1_baseline").stored_logits("val_select", None)
    assert stored.asked.ids == asked.ids
    for reference in (_finished_run, tmp_path / "bundle", _finished_run / "phase1_baseline" / "model"):
        teacher = _find(str(reference), None, None)
        inference = teacher.inference()
        pixels = [inference.preprocess(picture)[None] for picture in asked.pictures_of(range(9))]
        folded = np.concatenate([inference.answer(picture)[0] for picture in pixels])
        np.testing.assert_allclose((folded + teacher.shift) / teacher.slope, stored.logits[:9], atol=1e-4)
        assert (teacher.shift != 0) == (reference.name == "bundle")
        assert (teacher.trained_in is None) == (reference.name == "bundle"), "far from its run nothing is known"
    inside = _find(str(_finished_run / "phase6_export" / "bundle"), None, None)
    assert inside.trained_in is not None and inside.trained_in.samefile(_finished_run)


def test_pictures_without_labels_are_taught_too(
    _finished_run: Path, tiny_recipe_file: Path, parquet_source: Path, tmp_path: Path
) -> None:
    """By an ensemble of which nothing is known of one member. A picture that stands in val or test is left out."""
    shutil.copytree(_finished_run / "phase6_export" / "bundle", tmp_path / "bundle")
    rng, frames = np.random.default_rng(5), tmp_path / "frames"
    frames.mkdir()
    for number in range(9):
        striped_image(number % 2, rng).save(frames / f"{number}.png")
    data = load_image_data(DataConfig(source=str(parquet_source), group_by="video_info.vid_id"))
    next(iter(data.role("test").images())).save(frames / "of_test.png")
    given = [f"phase1.teacher=[{_finished_run},{tmp_path / 'bundle'}]", f"phase1.distil.unlabelled=[{frames}]"]
    run = student(tiny_recipe_file, tmp_path / "run", *given, phases=(1, 2, 6))
    taught = read_json(run / "phase1_baseline" / "manifest.json")["metrics"]["taught"]
    assert taught["unlabelled"] == 9 and [fact["splits_known"] for fact in taught["teachers"]] == [True, False]
    assert taught["val_select_mcc_optimistic"] == pytest.approx(taught["teachers"][0]["val_select_mcc_optimistic"])
    card = (run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "Nothing is known of the rows that bundle has learned from" in card and "9 further images" in card
    assert "Nothing is known" in write_report(run).read_text(encoding="utf-8")
    log = (run / "run.log").read_text(encoding="utf-8")
    assert "of_test.png" in log and "the mean of these" in log and "bundle" in log
    # One optimizer step more an epoch than with the labelled rows alone: 72 + 9 in batches of 16.
    assert read_json(run / "phase1_baseline" / "manifest.json")["metrics"]["steps"] == 6


def test_a_teacher_that_has_learned_what_is_measured_is_refused(
    _finished_run: Path, tiny_recipe_file: Path, tmp_path: Path
) -> None:
    """The same rows, divided with another seed. Whichever way the run's model is named."""
    for reference in (_finished_run, _finished_run / "phase6_export/bundle", _finished_run / "phase1_baseline/model"):
        refused(UsageError, lambda reference=reference: student(
            tiny_recipe_file, tmp_path / "run", f"phase1.teacher={reference}", "data.seed=9"),
            "phase1.teacher", "finished", "rows that this run measures on", "train/")  # fmt: skip
    assert not (tmp_path / "run" / "phase1_baseline" / "manifest.json").exists()


def test_other_frames_of_a_group_leak_too(_finished_run: Path, parquet_source: Path, tmp_path: Path) -> None:
    """Other pictures, under the same names of groups. Names alone say nothing; with a picture in common they do."""
    import datasets

    source = write_parquet_source(tmp_path / "source", seed=11)
    recipe = write_recipe(
        tmp_path / "tiny.yaml", TINY_RECIPE | {"data": {**TINY_RECIPE["data"], "source": str(source), "seed": 9}}
    )
    run = student(recipe, tmp_path / "unrelated", f"phase1.teacher={_finished_run}")
    ours, theirs = (read_json(folder / "phase0_data" / "splits.json") for folder in (run, _finished_run))
    assert set(theirs["groups"]) & set(ours["groups"]) and not set(theirs["sha256"]) & set(ours["sha256"])
    files = [str(next((folder / "data").glob("*.parquet"))) for folder in (source, parquet_source)]
    more, one = (datasets.Dataset.from_parquet(file, cache_dir=str(tmp_path / "cache")) for file in files)
    shared = theirs["roles"].index("test")  # the teacher has not learned from the picture itself
    joined = datasets.concatenate_datasets([more, one.select([shared])])
    joined.to_parquet(files[0])
    refused(UsageError, lambda: student(recipe, tmp_path / "related", f"phase1.teacher={_finished_run}"),
            "phase1.teacher", "group of its row train/")  # fmt: skip


def test_what_taught_a_teacher_counts_too(_finished_run: Path, tiny_recipe_file: Path, tmp_path: Path) -> None:
    """A teacher with other pictures, whose own teacher has learned what is measured here; or nobody knows what."""
    source = write_parquet_source(tmp_path / "source", seed=11)
    content = TINY_RECIPE | {"data": {**TINY_RECIPE["data"], "source": str(source), "group_by": None}}
    recipe = write_recipe(tmp_path / "tiny.yaml", content)
    bundle = shutil.copytree(_finished_run / "phase6_export" / "bundle", tmp_path / "bundle")
    for number, reference in enumerate((_finished_run, bundle)):
        between = student(recipe, tmp_path / f"between-{number}", f"phase1.teacher={reference}", phases=(1, 2))
        given = [f"phase1.teacher={between}", "data.seed=9"]
        if reference is bundle:
            run = student(tiny_recipe_file, tmp_path / "run", *given)
            assert f"bundle, which taught {between.name}" in (run / "run.log").read_text(encoding="utf-8")
            taught = read_json(run / "phase1_baseline" / "manifest.json")["metrics"]["taught"]
            assert taught["teachers"][0]["splits_known"] is False
        else:
            refused(UsageError, lambda given=given: student(tiny_recipe_file, tmp_path / "none", *given),
                    "phase1.teacher", between.name, "run finished, which it comes from")  # fmt: skip


def test_a_start_that_has_learned_what_is_measured_is_refused(
    _finished_run: Path, tiny_recipe_file: Path, tmp_path: Path
) -> None:
    """Whether PROFIT continues it or it gets a fresh classifier layer. Another question is another matter."""
    profit = ["phase1.profit={}", "phase1.max_steps=2"]
    start = ["model.config={}", f"model.backbone={_finished_run}"]
    for given in ([], profit):
        refused(UsageError, lambda given=given: student(
            tiny_recipe_file, tmp_path / "run", *start, *given, "data.seed=9"),
            "model.backbone", "finished", "rows that this run measures on", "train/")  # fmt: skip
    student(tiny_recipe_file, tmp_path / "same rows", *start, *profit)
    student(tiny_recipe_file, tmp_path / "asks", *start, "data.seed=9", "data.labels={no: Nothing, yes: Cones}")
    bundle = shutil.copytree(_finished_run / "phase6_export" / "bundle", tmp_path / "bundle")
    far = student(tiny_recipe_file, tmp_path / "far", start[0], f"model.backbone={bundle}", *profit, "data.seed=9")
    logs = {run: (tmp_path / run / "run.log").read_text(encoding="utf-8") for run in ("same rows", "asks", "far")}
    assert {run for run, log in logs.items() if "nothing is known" in log} == {far.name}


def test_a_teacher_of_sharper_pictures_than_the_copies_is_told(tiny_recipe_file: Path, tmp_path: Path) -> None:
    """With the answers to whole pictures alone there is nothing to tell."""
    config = ModelConfig(config=TINY_RECIPE["model"]["config"], image_size=56)
    save_model(tmp_path / "large", build_classifier(config, seed=0), make_processor(config))
    for number, given in enumerate((["data.cache_px=28"], ["data.cache_px=56"], ["phase1.adapter=none"])):
        run = student(tiny_recipe_file, tmp_path / str(number), f"phase1.teacher={tmp_path / 'large'}", *given)
        log = (run / "run.log").read_text(encoding="utf-8")
        assert ("large sees 56 px" in log and "data.cache_px=56" in log) == (number == 0)


@pytest.mark.parametrize("what", ["nowhere", "itself", "no champion", "labels", "damaged", "changed"])
def test_what_cannot_teach_is_refused_before_any_work(
    what: str, finished_run: Path, tiny_recipe_file: Path, tmp_path: Path
) -> None:
    run, overrides, facts = tmp_path / "run", [f"phase1.teacher={finished_run}"], ["phase1.teacher"]
    if what == "nowhere":
        overrides, facts = [f"phase1.teacher={tmp_path / 'nowhere'}"], ["nowhere"]
    elif what == "itself":
        run, facts = finished_run, ["phase1.teacher", "this run"]
    elif what == "no champion":
        shutil.rmtree(finished_run / "phase2_threshold")
        facts += ["champion", "phase 2"]
    elif what == "labels":
        overrides += ["data.labels.yes=Cones", "data.labels.no=Nothing"]
        facts += ["Roadwork", "Cones"]
    else:
        name = "model.safetensors" if what == "damaged" else "config.json"
        path = finished_run / "phase1_baseline" / "model" / name
        path.write_bytes(path.read_bytes() + b" ")
        facts = [name]
    refused(UsageError, lambda: student(tiny_recipe_file, run, *overrides), *facts)
    assert what == "itself" or not run.exists()


def test_the_names_of_the_layout_are_those_of_runs() -> None:
    assert (_RUN, _DECISION) == (RUN_FILE, PHASES[2].folder)


def test_from_python(bundle: Path, parquet_source: Path, pretrained: Path, tmp_path: Path) -> None:
    import datasets

    [file] = (parquet_source / "data").glob("*.parquet")
    rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache")).shuffle(seed=0)
    rows = rows.cast_column("label", datasets.ClassLabel(names=["None", "Roadwork"]))
    args = {"num_train_epochs": 2, "output_dir": str(tmp_path / "out"), "dataloader_num_workers": 0}
    given = {"train_dataset": rows.select(range(40)), "eval_dataset": rows.select(range(40, 60)), "quiet": True}
    trainer = RoadworkTrainer(str(pretrained), args, **given, adapter="lora", teacher=bundle, distil={"mix": 0.8})
    trainer.train()
    assert (trainer._row_loss.mix, trainer._row_loss.temperature) == (0.8, 2.0) and trainer.proof is not None
    assert trainer._stage is not None and trainer._stage.taught is not None
    assert trainer._stage.taught["teachers"][0]["sha256"] == teacher_of(str(bundle)).sha256
    for alone in ({"mix": 0.8}, DistilConfig(mix=0.8)):
        refused(UsageError, lambda alone=alone: RoadworkTrainer(str(pretrained), args, **given, distil=alone),
                "distil", "teacher")  # fmt: skip
    refused(UsageError, lambda: RoadworkTrainer(
        str(pretrained), args, **given, teacher=bundle, distil={"unlabelled": ["x"]}), "unlabelled")  # fmt: skip
    others = rows.select(range(40)).cast_column("label", datasets.ClassLabel(names=["a", "b"]))
    named = given | {"train_dataset": others}
    model = build_classifier(ModelConfig(backbone=str(pretrained), image_size=28), seed=0)
    for start in (str(pretrained), model):  # the names of the rows count, not those of a classifier
        refused(UsageError, lambda start=start: RoadworkTrainer(start, args, **named, teacher=bundle),
                "RoadworkTrainer.teacher", "Roadwork", "b (yes)")  # fmt: skip


def test_phase_4_learns_from_it_too_and_its_control_is_phase_1(
    _finished_run: Path, parquet_source: Path, pretrained: Path, tmp_path: Path
) -> None:
    recipe = Path(explora_recipe(tmp_path, parquet_source, pretrained, objective="mae"))
    given = f"phase1.teacher={_finished_run}"
    run = student(recipe, tmp_path / "run", given, phases=(1, 4))
    manifest = read_json(run / "phase4_explora" / "manifest.json")
    assert manifest["metrics"]["control"] == {"from": "phase1_baseline"} and manifest["teacher"]
    taught = manifest["metrics"]["supervised"]["taught"]
    assert taught["teachers"][0]["name"] == "finished" and taught["student"]["parameters"] > 0
    assert run_problems(run) == [] and write_report(run).is_file()


def test_a_teacher_on_the_hub_is_pinned(published: Any, tiny_recipe_file: Path, tmp_path: Path) -> None:
    run = student(tiny_recipe_file, tmp_path / "run", f"phase1.teacher={REPO}")
    manifest = read_json(run / "phase1_baseline" / "manifest.json")
    [origin] = manifest["hub"]["teachers"].values()
    assert origin["repo"] == REPO and len(origin["commit"]) == 40 and "teacher" not in manifest
    assert manifest["metrics"]["taught"]["teachers"][0]["name"] == REPO
