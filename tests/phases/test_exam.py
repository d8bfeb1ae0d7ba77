"""`data.exam`: epochs, threshold, gate, promise and figures describe answers to the exam."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY_RECIPE, striped_image, tiny_backbone, write_parquet_source, write_recipe
from PIL import Image
from refusals import refused

from natix_hf.bundle.examine import examine
from natix_hf.bundle.load import load_bundle
from natix_hf.data.asked import Asked
from natix_hf.data.config import DataConfig, Exam
from natix_hf.errors import DataError, RecipeError, UsageError, VerificationError
from natix_hf.metrics import select_threshold
from natix_hf.phases import phase2_threshold, phase6_evaluate
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import describe_files, write_json
from natix_hf.provenance.manifest import manifest_digest, manifest_seal
from natix_hf.provenance.stored import to_json
from natix_hf.recipe import parse_recipe
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.results.logits import SYNTHETIC_ANSWERS, read_logits
from natix_hf.results.synthetic_half import SyntheticHalf
from natix_hf.runs.graph import PHASES as PHASE_FOLDERS
from natix_hf.runs.verify import find_problems
from natix_hf.subnet.challenge import challenge_image
from natix_hf.subnet.expectation import mean_reward, reward_of_counts
from natix_hf.trainers import pretraining
from natix_hf.trainers.roadwork import RoadworkTrainer

PHASES = [1, 2, 3, 5, 6]
EXAM = ["data.exam=true", "data.exam_views=8"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet_source(
        tmp_path_factory.mktemp("exam"), groups=40, frames=2, official_test=20, unclear=4, seed=4
    )


@pytest.fixture(scope="module")
def recipe(source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    data = TINY_RECIPE["data"] | {"source": str(source), "target_prior": 0.5, "seed": 3}
    content = TINY_RECIPE | {"data": data}
    return str(write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", content))


@pytest.fixture(scope="module")
def exam_run(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    """Digests of the phases of a run on whole pictures, and that run after the exam was asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(tmp_path_factory.mktemp("cache")))
        run = run_recipe(recipe, PHASES, tmp_path_factory.mktemp("runs") / "exam")
        before = {path.parent.name: read(path)["digest"] for path in run.glob("*/manifest.json")}
        run_recipe(recipe, PHASES, run, overrides=EXAM)
    return before, run


def seed_of(seed: int, turn: int, row_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{turn}/{row_id}".encode()).digest()[:8], "big")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_all_but_the_division_is_made_anew(exam_run: tuple[dict[str, str], Path]) -> None:
    before, run = exam_run
    now = {path.parent.name: read(path)["digest"] for path in run.glob("*/manifest.json")}
    assert set(now) == set(before)
    assert {name for name in now if now[name] == before[name]} == {"phase0_data"}
    assert find_problems(str(run)) == []


# What planted models answer right after the first and after the second epoch.
PLANTED = {"whole pictures first": (True, False), "the exam first": (False, True)}


@pytest.mark.parametrize("adapter", ["full", "none", "auto"])
@pytest.mark.parametrize("planted", PLANTED)
def test_the_epoch_that_is_kept_is_the_best_one_on_what_is_asked(
    planted: str, adapter: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch answers whole pictures right and their exam views wrong, and the other the reverse."""
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path / "cache"))
    seen: dict[bool, set[bytes]] = {}
    overrides = [f"phase1.adapter={adapter}", "phase1.num_train_epochs=2", "phase1.early_stopping_patience=1"]

    def answer(self: Any, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        labels = inputs["labels"]
        shown = inputs["pixel_values" if "pixel_values" in inputs else "features"]
        seen.setdefault(exam, set()).update(value.numpy().tobytes() for value in shown)
        right = PLANTED[planted][0 if self.state.epoch <= 1 else 1] != exam
        sign = torch.where((labels == 1) == torch.tensor(right), 1.0, -1.0)
        noise = torch.linspace(-0.1, 0.1, len(labels))  # no two answers are equal
        return torch.tensor(0.0), torch.stack([-sign, sign + noise], dim=1), labels

    monkeypatch.setattr(RoadworkTrainer, "prediction_step", answer)
    for exam in (False, True):
        given = [*overrides, f"data.exam={str(exam).lower()}"]
        run = run_recipe(recipe, [1], tmp_path / f"run-{exam}", overrides=given)
        metrics = read(run / "phase1_baseline" / "manifest.json")["metrics"]
        assert metrics["kept_step"] == metrics["steps"] // (1 if PLANTED[planted][1] != exam else 2)
        assert metrics["best_score"] > 0.9
    assert seen[False].isdisjoint(seen[True])
    rows = read(run / "phase0_data" / "manifest.json")["metrics"]["counts"]["val_select"]["rows"]
    assert len(seen[True]) > 3 * rows, "four views of each picture, seldom two alike"


def test_probes_and_their_control_see_the_exam(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path / "cache"))
    asked: list[tuple[Exam | None, list[int]]] = []
    real = pretraining.backbone_features

    def features(backbone: Any, views: Any, rows: Any, *rest: Any) -> Any:
        asked.append((views.asked.exam, views.asked.levels[list(rows)].tolist()))
        return real(backbone, views, rows, *rest)

    monkeypatch.setattr(pretraining, "backbone_features", features)
    tiny_backbone("dinov2", layers=2).save_pretrained(tmp_path / "backbone")
    stage = ["phase4.max_steps=2", "phase4.probe_steps=2", "phase4.objective=mae", "phase4.mae.decoder_width=16",
             "phase4.mae.decoder_layers=1", "phase4.mae.decoder_heads=2", "phase4.dataloader_num_workers=0",
             "phase4.per_device_train_batch_size=8", "phase4.rank=4", "phase1.num_train_epochs=1"]  # fmt: skip
    given = [f"model={{backbone: {tmp_path / 'backbone'}, image_size: 28}}", *stage, "data.exam=true"]
    run = run_recipe(recipe, [4], tmp_path / "run", overrides=given)
    assert asked and all(exam == Exam(4, 3) for exam, _ in asked)
    for _, levels in asked:  # the levels take turns
        assert max(levels.count(level) for level in range(4)) - min(levels.count(level) for level in range(4)) <= 1
    for name in (".", "control"):
        candidate = Candidate(run / "phase4_explora" / name)
        assert candidate.stored_logits("val_select", Exam(4, 3)).asked.views == 4


def test_the_threshold_is_that_of_the_exam(exam_run: tuple[dict[str, str], Path], source: Path) -> None:
    """Against `predict`'s own logits of views that are made here."""
    run, decision = exam_run[1], read(exam_run[1] / "phase2_threshold" / "threshold.json")
    path = run / "phase2_threshold" / "logits" / "phase1_baseline.parquet"
    table = read_logits(path, decision["candidate_sha256"], Exam(8, 3))
    assert pq.read_table(path)["level"].to_pylist() == [0, 1, 2, 3] * (len(table.ids) // 4)
    ids = list(dict.fromkeys(table.ids))
    assert table.ids == [row_id for row_id in ids for _ in range(8)]
    assert ids == read(run / "phase2_threshold" / "rows_read.json")["val_select"]
    stored = pq.read_table(source / "data" / "train-00000-of-00001.parquet")["image"].to_pylist()
    cells = [stored[int(row_id.rpartition("/")[2])] for row_id in ids]
    bundle = load_bundle(run)
    views = Asked(ids, np.array(ids), np.zeros(len(ids)), Exam(8, 3), cells)
    z = bundle.logits([views.picture(i) for i in range(len(views))])
    np.testing.assert_allclose(table.logits, z, atol=1e-5)
    chosen = select_threshold(table.logits, table.labels, target_prior=0.5)
    assert decision["threshold_logit"] == chosen.threshold == bundle.policy.threshold_logit
    assert decision["exam"] == {"views": 8, "seed": 3, "version": 2}


def test_the_figures_are_those_of_the_exam(exam_run: tuple[dict[str, str], Path], source: Path) -> None:
    """Phase 6 against `natix-hf reward` of the bundle, which goes its own way to the rows."""
    run = exam_run[1]
    evaluation = read(run / "phase6_export" / "evaluation.json")
    assert (evaluation["rows"], evaluation["views"], evaluation["groups"]["groups"]) == (40, 8, 20)
    table = read_logits(
        run / "phase6_export" / "logits" / "test.parquet",
        read(run / "phase2_threshold" / "threshold.json")["candidate_sha256"],
        Exam(8, 3),
    )
    assert evaluation["as_found"]["metrics"]["n"] == len(table.ids) == 320
    threshold = load_bundle(run).policy.threshold_logit
    positive = table.labels == 1
    assert evaluation["as_found"]["metrics"]["recall"] == pytest.approx((table.logits[positive] > threshold).mean())
    assert evaluation["slices"]["scene_level_tags.weather"]["rain"]["n"] == 26 * 8
    config = DataConfig(source=str(source), exam=True, exam_views=8, seed=3)
    found = to_json(examine(load_bundle(run), config))
    for marks in (found, evaluation["exam"]):  # the command knows no groups
        for rates in marks["levels"].values():
            assert set(rates.pop("intervals")) == {"tpr", "tnr", "mcc"}
    assert found == evaluation["exam"]
    for level in range(4):
        at = (np.arange(320) % 4 == level) & positive
        tpr = evaluation["exam"]["levels"][str(level)]["tpr"]
        assert tpr == pytest.approx((table.logits[at] > threshold).mean())


def test_the_promise_is_about_one_view_of_each_group(exam_run: tuple[dict[str, str], Path]) -> None:
    run = exam_run[1]
    counts = read(run / "phase0_data" / "manifest.json")["metrics"]["counts"]["val_calib"]
    risk, calibration = (read(run / "phase5_scrc" / name) for name in ("scrc.json", "calibration.json"))
    assert 0 < risk["rows"] <= counts["groups"]
    assert (calibration["rows"], calibration["views"]) == (counts["rows"], 8)
    assert "a view of the exam" in risk["guarantee"] or not risk["feasible"]
    gate = read(run / "phase3_gate" / "gate.json")
    table = pq.read_table(run / "phase2_threshold" / "logits" / "phase1_baseline.parquet")
    cut = read(run / "phase2_threshold" / "threshold.json")["threshold_logit"]
    wrong = (table["logit"].to_numpy() > cut) != (table["label"].to_numpy() == 1)
    assert gate["wrong_rows"] == wrong.sum()


def test_the_card_says_so(exam_run: tuple[dict[str, str], Path]) -> None:
    card = (exam_run[1] / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    evaluation = read(exam_run[1] / "phase6_export" / "evaluation.json")
    assert "8 views" in card and "synthetic" in card
    for name in ("fitted", "half", "best"):
        assert f"| {evaluation['exam']['rewards'][name]['expected']:.3f} " in card


def test_the_exam_is_asked_once(
    exam_run: tuple[dict[str, str], Path], recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(exam_run[1], tmp_path / "exam"))
    for phase in (3, 5):
        shutil.rmtree(run / PHASE_FOLDERS[phase].folder)
    asked: list[int] = []
    for module in (phase2_threshold, phase6_evaluate):
        real = module.compute_answers
        monkeypatch.setattr(module, "compute_answers", lambda *args, real=real: asked.append(1) or real(*args))
    run_recipe(recipe, [2, 6], run, overrides=[*EXAM, "phase2.objective=f1"])
    assert asked == []
    baseline = read(run / "phase1_baseline" / "manifest.json")["digest"]
    run_recipe(recipe, [1, 2, 6], run, overrides=["data.exam=true"])  # the views that phase 1 chose by
    assert asked == [1] and baseline == read(run / "phase1_baseline" / "manifest.json")["digest"]
    run_recipe(recipe, [3, 5], run, overrides=["data.exam=true"])  # answers to eight views lie there, unread
    for phase in (3, 5):
        shutil.rmtree(run / PHASE_FOLDERS[phase].folder)
    facts = "val_select.parquet", "other views"
    refused(VerificationError, lambda: run_recipe(recipe, [2, 6], run), *facts)  # phase 1 has not seen whole pictures
    run_recipe(recipe, [1, 2, 6], run)
    assert asked == [1, 1]


@pytest.mark.parametrize(("phase", "given"), [(3, ["data.exam=true"]), (5, []), (6, ["data.exam=true"])])
def test_a_threshold_of_other_views_is_not_built_upon(
    phase: int, given: list[str], exam_run: tuple[dict[str, str], Path], recipe: str, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(exam_run[1], tmp_path / "exam"))
    before = {path.name: path.read_bytes() for path in (run / PHASE_FOLDERS[phase].folder).glob("*.json")}
    facts = "phase 2", "8 views", "data.exam_views", f"--phases 2 --run-dir {run}"
    refused(UsageError, lambda: run_recipe(recipe, [phase], run, overrides=given), *facts)
    assert {path.name: path.read_bytes() for path in (run / PHASE_FOLDERS[phase].folder).glob("*.json")} == before


def test_answers_to_other_views_are_refused(exam_run: tuple[dict[str, str], Path]) -> None:
    path = exam_run[1] / "phase2_threshold" / "logits" / "phase1_baseline.parquet"
    sha256 = read(exam_run[1] / "phase2_threshold" / "threshold.json")["candidate_sha256"]
    for other in (None, Exam(4, 3), Exam(8, 4), Exam(8, 3, 1)):
        refused(VerificationError, lambda other=other: read_logits(path, sha256, other), path, "views")


@pytest.fixture(scope="module")
def generated(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: ten pictures of a label, one of which is a real train picture and one a real test picture; one
    picture with both labels; a larger one."""
    folder = tmp_path_factory.mktemp("generated") / "sdxl"
    rng = np.random.default_rng(9)
    for label, name in enumerate(("none", "roadwork")):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            size = (1100, 500) if number == 0 else (64, 64)
            striped_image(label, rng, size).save(folder / name / f"{number}.png")
        for number, split in enumerate(("train", "test")):
            table = pq.read_table(source / "data" / f"{split}-00000-of-00001.parquet")
            row = table["label"].to_pylist().index(label)
            (folder / name / f"{number + 1}.png").write_bytes(table["image"][row]["bytes"].as_py())
    both = striped_image(1, rng, (64, 64))
    for name in ("none", "roadwork"):
        both.save(folder / name / "3.png")
    return folder


@pytest.fixture(scope="module")
def half_run(
    exam_run: tuple[dict[str, str], Path], recipe: str, generated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = Path(shutil.copytree(exam_run[1], tmp_path_factory.mktemp("half") / "exam"))
    run_recipe(recipe, PHASES, run, overrides=[*EXAM, f"data.synthetic_half={generated}"])
    return run


def test_the_synthetic_half_is_measured_and_nothing_else(
    exam_run: tuple[dict[str, str], Path], half_run: Path, generated: Path
) -> None:
    runs = exam_run[1], half_run
    old, new = ({path.parent.name: read(path)["digest"] for path in run.glob("*/manifest.json")} for run in runs)
    assert {name for name in old if old[name] != new[name]} == {"phase6_export"}
    assert find_problems(str(half_run)) == []
    before, now = (read(run / "phase6_export" / "evaluation.json") for run in runs)
    others, facts = now["exam"].pop("others"), now.pop("synthetic_half")
    counted = now["level_confusion"].pop("synthetic")
    assert {sum(level["answers"].values()) % 14 for level in counted.values()} == {0}  # a view or more of each picture
    assert {level["groups"] for level in counted.values()} == {14}
    assert now == before and facts == {k: v for k, v in read(half_run / "phase6_export" / SyntheticHalf.FILE).items()
                                       if k != "schema"}  # fmt: skip
    assert (facts["source"], facts["rows"], facts["positives"]) == ("sdxl", 14, 7)
    reasons = [reason for reason in facts["left_out"].values() if "real one" in reason]
    assert len(facts["left_out"]) == 6 and len(reasons) == 4
    assert sum(reason.endswith("of test") for reason in reasons) == 2
    assert facts["left_out"].keys() == {f"synthetic:{c}/{n}.png" for c in ("none", "roadwork") for n in (1, 2, 3)}
    sha256 = read(half_run / "phase2_threshold" / "threshold.json")["candidate_sha256"]
    table = read_logits(half_run / "phase6_export" / SYNTHETIC_ANSWERS, sha256, Exam(8, 3))
    bundle, threshold = load_bundle(half_run), load_bundle(half_run).policy.threshold_logit
    at = table.asked.row_ids.index("synthetic:roadwork/0.png")
    with Image.open(generated / "roadwork" / "0.png") as image:
        views = [challenge_image(image, i % 4, seed_of(3, i // 4, "synthetic:roadwork/0.png"), generated=True)
                 for i in range(8)]  # fmt: skip
    np.testing.assert_allclose(table.logits[8 * at : 8 * at + 8], bundle.logits(views), atol=1e-5)
    called = table.logits > threshold
    assert others["synthetic"]["levels"]["all"]["tpr"] == pytest.approx(called[table.labels == 1].mean())
    tnr = before["exam"]["levels"]["all"]["tnr"], (~called[table.labels == 0]).mean()
    assert others["both"]["levels"]["all"]["tnr"] == pytest.approx(np.mean(tnr))


def test_page_and_card_name_the_halves(exam_run: tuple[dict[str, str], Path], half_run: Path) -> None:
    for name in ("report.html", "phase6_export/bundle/README.md"):
        alone, both = ((run / name).read_text(encoding="utf-8") for run in (exam_run[1], half_run))
        assert "real half" in alone.lower() and "Both halves" not in alone
        assert all(told in both for told in ("The real half", "The synthetic half", "Both halves", "of sdxl", "4 x "))
        paid = read(half_run / "phase6_export" / "evaluation.json")["exam"]["others"]["both"]["rewards"]["fitted"]
        assert f"{paid['expected']:.3f}" in both
        assert str(half_run) not in both and "/sdxl" not in both


def test_generated_pictures_answer_once(
    half_run: Path, recipe: str, generated: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(half_run, tmp_path / "exam"))
    folder = Path(shutil.copytree(generated, tmp_path / "sdxl"))
    asked: list[int] = []
    real = phase6_evaluate.compute_answers
    monkeypatch.setattr(phase6_evaluate, "compute_answers", lambda *args: asked.append(len(args[1])) or real(*args))
    given = [*EXAM, f"data.synthetic_half={folder}"]
    run_recipe(recipe, [6], run, overrides=[*given, "phase6.n_resamples=150"])  # the same pictures elsewhere
    assert asked == []
    striped_image(1, np.random.default_rng(77), (64, 64)).save(folder / "roadwork" / "7.png")
    run_recipe(recipe, [6], run, overrides=given)  # another picture under the same name
    assert asked == [14 * 8]
    shutil.rmtree(folder / "none")
    before = (run / "phase6_export" / "evaluation.json").read_bytes()
    refused(DataError, lambda: run_recipe(recipe, [6], run, overrides=given), "data.synthetic_half")
    assert (run / "phase6_export" / "evaluation.json").read_bytes() == before and asked == [14 * 8]


def test_phase_2_may_choose_by_reward(
    exam_run: tuple[dict[str, str], Path], recipe: str, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(exam_run[1], tmp_path / "exam"))
    given = [*EXAM, "phase2.objective=reward"]
    for phase in (3, 5):
        shutil.rmtree(run / PHASE_FOLDERS[phase].folder)
    run_recipe(recipe, [2, 6], run, overrides=given)
    decision = Decision.read(run / "phase2_threshold")
    path = run / "phase2_threshold" / "logits" / "phase1_baseline.parquet"
    table = read_logits(path, decision.candidate_sha256, Exam(8, 3))
    chosen = select_threshold(table.logits, table.labels, reward_of_counts)
    assert (decision.objective, decision.threshold_logit) == ("reward", chosen.threshold)
    assert decision.val_select_optimistic["reward"] == pytest.approx(float(mean_reward(chosen.tpr, chosen.tnr)))
    for name in ("report.html", "phase6_export/bundle/README.md"):
        assert "maximises the subnet's expected reward" in (run / name).read_text(
            encoding="utf-8"
        ).replace("&#39;", "'")


def test_a_threshold_of_views_drawn_before_is_fitted_again(
    exam_run: tuple[dict[str, str], Path], recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run of a version without the first JPEG: its files hold no version of the exam."""
    run = Path(shutil.copytree(exam_run[1], tmp_path / "exam"))
    folder = run / PHASE_FOLDERS[2].folder
    decision = read(folder / "threshold.json")
    del decision["exam"]["version"]
    (folder / "threshold.json").write_text(json.dumps(decision), encoding="utf-8")
    for path in (folder / "logits").glob("*.parquet"):
        table = pq.read_table(path)
        old = {**table.schema.metadata, b"exam": b'{"views": 8, "seed": 3}'}
        pq.write_table(table.replace_schema_metadata(old), path)
    manifest = read(folder / "manifest.json")
    manifest["files"] = describe_files(folder, list(manifest["files"]))
    manifest["digest"] = manifest_digest(manifest)
    write_json(folder / "manifest.json", manifest | {"seal": manifest_seal(manifest)})
    shutil.rmtree(run / PHASE_FOLDERS[3].folder)
    assert Decision.read(folder).exam == Exam(8, 3, 1)
    refused(UsageError, lambda: run_recipe(recipe, [3], run, overrides=EXAM), "version 1", "version 2", "--phases 2")
    asked: list[int] = []
    real = phase2_threshold.compute_answers
    monkeypatch.setattr(phase2_threshold, "compute_answers", lambda *args: asked.append(1) or real(*args))
    run_recipe(recipe, [2], run, overrides=EXAM)
    assert asked == [1] and read(folder / "threshold.json")["exam"]["version"] == 2


def test_what_is_refused() -> None:
    wrong = {"exam": True, "exam_views": 6}, {"exam_views": 8}
    refused(RecipeError, lambda: parse_recipe({"data": wrong[0]}), "data.exam_views", 6, "multiple of 4")
    refused(RecipeError, lambda: parse_recipe({"data": wrong[1]}), "data.exam_views", 8, "data.exam")
    half = {"synthetic_half": "folder"}
    refused(RecipeError, lambda: parse_recipe({"data": half}), "data.synthetic_half", "folder", "data.exam")
    refused(RecipeError, lambda: parse_recipe({"data": {"synthetic_half": " ", "exam": True}}), "data.synthetic_half")


def test_an_absent_synthetic_half_is_found_before_any_work(recipe: str, tmp_path: Path) -> None:
    given = [*EXAM, f"data.synthetic_half={tmp_path / 'absent'}"]
    refused(UsageError, lambda: run_recipe(recipe, PHASES, tmp_path / "run", overrides=given), "data.synthetic_half")
    assert not (tmp_path / "run").exists()
