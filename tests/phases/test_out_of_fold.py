"""Out-of-fold answers: who answers what, what an interruption leaves, and what later phases make of the answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_RECIPE, write_parquet_source, write_recipe
from facts import tells
from refusals import refused

from natix_hf.bundle.load import load_bundle
from natix_hf.calibration import fit_calibration
from natix_hf.data.asked import ask
from natix_hf.data.folds import divide_folds
from natix_hf.errors import LeakageError, RecipeError, RunError, UsageError, VerificationError
from natix_hf.metrics import compute_metrics, prior_weights, select_threshold
from natix_hf.models.gate import gate_inputs
from natix_hf.phases import phase1_folds
from natix_hf.pipeline import run_recipe
from natix_hf.recipe import load_recipe, parse_recipe
from natix_hf.results.candidate import Candidate
from natix_hf.results.decision import Decision
from natix_hf.results.logits import read_logits
from natix_hf.results.out_of_fold import OutOfFold, read_out_of_fold, read_out_of_fold_features, write_out_of_fold
from natix_hf.runs.verify import run_problems
from natix_hf.trainers import gate

FOLDS = ["phase1.folds=3"]
TAKEN = [*FOLDS, "phase2.from=out_of_fold", "phase3.from=out_of_fold"]
WRITTEN = ("out_of_fold.parquet", "out_of_fold_features.safetensors")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    source = write_parquet_source(tmp_path_factory.mktemp("folds"), groups=60, frames=3, seed=4, unclear=5)
    data = TINY_RECIPE["data"] | {"source": str(source), "target_prior": 0.5, "exam": True}
    phase1 = TINY_RECIPE["phase1"] | {"num_train_epochs": 2}
    content = TINY_RECIPE | {"data": data, "phase1": phase1}
    return str(write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", content))


@pytest.fixture(scope="module")
def folded(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run with folds, and for each fold what its model trained on, chose by, and answered, and the model itself."""
    seen: list[dict[str, Any]] = []
    kept = tmp_path_factory.mktemp("models")
    train, answer = phase1_folds.train_classifier, phase1_folds.compute_answers

    def trained(model: Any, processor: Any, rows: Any, val_select: Any, *rest: Any, **kwargs: Any) -> Any:
        seen.append({"train": rows.ids, "chosen by": val_select.row_ids, "answered": [], "exam": val_select.exam})
        return train(model, processor, rows, val_select, *rest, **kwargs)

    def answered(candidate: Candidate, asked: Any) -> Any:
        seen[-1]["answered"] += asked.row_ids
        seen[-1]["model"] = kept / str(len(seen))
        shutil.copytree(candidate.folder, seen[-1]["model"], dirs_exist_ok=True)
        return answer(candidate, asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_HF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(phase1_folds, "train_classifier", trained)
        patch.setattr(phase1_folds, "compute_answers", answered)
        run = run_recipe(recipe, [1, 2, 3, 5, 6], tmp_path_factory.mktemp("runs") / "run", overrides=TAKEN)
    return run, seen


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def splits_of(run: Path) -> dict[str, tuple[str, str]]:
    """By row id: role and group."""
    splits = read(run / "phase0_data" / "splits.json")
    return dict(zip(splits["ids"], zip(splits["roles"], splits["groups"], strict=True), strict=True))


def test_no_model_answers_a_group_that_it_has_seen(folded: tuple[Path, list[dict[str, Any]]]) -> None:
    run, folds = folded
    of_row = splits_of(run)
    for fold in folds:
        seen = {of_row[row_id][1] for row_id in fold["train"] + fold["chosen by"]}
        assert seen.isdisjoint(of_row[row_id][1] for row_id in fold["answered"])
        assert {of_row[row_id][0] for row_id in fold["train"]} == {"train"}
        assert {of_row[row_id][0] for row_id in fold["chosen by"]} == {"val_select"} and fold["exam"].views == 4
    wanted = sorted(row_id for row_id, (role, _) in of_row.items() if role in ("train", "val_select"))
    assert sorted(row_id for fold in folds for row_id in fold["answered"]) == wanted and len(folds) == 3
    assert run_problems(run) == []


def test_the_answers_are_those_of_the_folds_models(
    folded: tuple[Path, list[dict[str, Any]]], recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Against each model's answers, computed here one view at a time, and against the rows' own labels."""
    from natix_hf.bundle.inference import Inference
    from natix_hf.data.rows import load_image_data
    from natix_hf.data.splits import read_splits

    run, folds = folded
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path))
    answers = read_out_of_fold(run / "phase1_baseline")
    config = load_recipe(recipe).data
    data = load_image_data(config, read_splits(run / "phase0_data" / "splits.json"))
    asked = {role: ask(data.role(role), config.choice_exam) for role in ("train", "val_select")}
    ids = asked["train"].row_ids + asked["val_select"].row_ids
    assert answers.asked.row_ids == ids
    assert answers.labels.tolist() == [*asked["train"].labels, *asked["val_select"].labels]
    features = read_out_of_fold_features(run / "phase1_baseline", answers)
    for number, fold in enumerate(folds):
        model = Inference(fold["model"] / "model")
        assert answers.models[number] == Candidate(fold["model"]).sha256
        at = np.flatnonzero(answers.folds == number)
        for row in (*at[:3], *at[-3:]):  # rows of train, then of val_select
            role = str(answers.roles[row])
            pictures = [asked[role].picture(4 * asked[role].row_ids.index(ids[row]) + view) for view in range(4)]
            items = [{"pixel_values": model.preprocess(picture)} for picture in pictures]
            logits, inputs = model.logits_and_features(items)
            np.testing.assert_allclose(answers.logits[4 * row : 4 * row + 4], logits, atol=1e-5)
            np.testing.assert_allclose(features[4 * row : 4 * row + 4], inputs, atol=1e-5)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_run_goes_on_with_the_next_fold(
    after: int, folded: tuple[Path, list[dict[str, Any]]], recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path / "cache"))
    real, trained = phase1_folds.train_classifier, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if len(trained) == after:
            raise RunError("the power is gone")
        trained.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(phase1_folds, "train_classifier", interrupted)
    refused(RunError, lambda: run_recipe(recipe, [1], tmp_path / "run", overrides=FOLDS), "power")
    monkeypatch.setattr(phase1_folds, "train_classifier", lambda *a, **k: trained.append(1) or real(*a, **k))
    monkeypatch.setattr("natix_hf.results.answers.train_classifier", None)  # the baseline is not trained again
    run = run_recipe(recipe, [1], tmp_path / "run", overrides=FOLDS)
    assert len(trained) == 3
    for name in WRITTEN:
        whole, here = (folder / "phase1_baseline" / name for folder in (folded[0], run))
        assert here.read_bytes() == whole.read_bytes()


def test_folds_can_be_asked_for_later(recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path / "cache"))
    run = run_recipe(recipe, [1, 2], tmp_path / "run")
    before = Candidate(run / "phase1_baseline").sha256
    monkeypatch.setattr("natix_hf.results.answers.train_classifier", None)
    run_recipe(recipe, [1, 2], run, overrides=["phase1.folds=2"])
    assert Candidate(run / "phase1_baseline").sha256 == before and run_problems(run) == []
    assert len(read_out_of_fold(run / "phase1_baseline").models) == 2
    monkeypatch.undo()
    monkeypatch.setenv("NATIX_HF_CACHE", str(tmp_path / "cache"))
    run_recipe(recipe, [1], run, overrides=["phase1.learning_rate=1e-3"])  # no folds, and another baseline
    assert Candidate(run / "phase1_baseline").sha256 != before
    assert not (run / "phase1_baseline" / WRITTEN[0]).exists()


def test_threshold_and_temperature_come_from_all_rows(folded: tuple[Path, list[dict[str, Any]]]) -> None:
    run = folded[0]
    answers, decision = read_out_of_fold(run / "phase1_baseline"), Decision.read(run / "phase2_threshold")
    best = select_threshold(answers.logits, answers.labels, target_prior=0.5)
    assert (decision.fitted_to, decision.threshold_logit) == ("out_of_fold", best.threshold)
    assert load_bundle(run).policy.threshold_logit == best.threshold
    table = decision.val_select(run / "phase2_threshold", Candidate(run / "phase1_baseline"))
    assert decision.val_select_optimistic["tpr"] == (table.logits[table.labels == 1] > best.threshold).mean()
    calibration = read(run / "phase5_scrc" / "calibration.json")
    fitted = fit_calibration(answers.logits, answers.labels, "temperature", prior_weights(answers.labels, 0.5))
    assert calibration["slope"] == fitted.slope
    for phase in ("phase2_threshold", "phase3_gate", "phase5_scrc"):
        rows = read(run / phase / "rows_read.json")
        assert sorted(rows["train"]) == sorted(i for i, r in splits_of(run).items() if r[0] == "train")


def test_page_and_card_say_what_it_was_fitted_to(folded: tuple[Path, list[dict[str, Any]]]) -> None:
    decision = Decision.read(folded[0] / "phase2_threshold")
    page = (folded[0] / "report.html").read_text(encoding="utf-8")
    card = (folded[0] / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    rows = len(read_out_of_fold(folded[0] / "phase1_baseline").asked.row_ids)
    assert f"{rows} rows of train and val_select" in card
    assert "on the out-of-fold answers" in page and decision.told_held_out in page
    assert "fitted on the out-of-fold answers" in page


def test_the_gate_learns_from_train_too(
    folded: tuple[Path, list[dict[str, Any]]], recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every gate sees all answers to train, with the features of the model that gave them; val_select judges."""
    run, given = Path(shutil.copytree(folded[0], tmp_path / "run")), []
    answers, cut = read_out_of_fold(run / "phase1_baseline"), Decision.read(run / "phase2_threshold").threshold_logit
    inputs = gate_inputs(read_out_of_fold_features(run / "phase1_baseline", answers), answers.logits, cut)
    of_train = np.repeat(answers.roles == "train", 4)
    right = (answers.logits > cut) == (answers.labels == 1)
    real = gate.train_gate
    monkeypatch.setattr(gate, "train_gate", lambda *args: given.append(args[:2]) or real(*args))
    shutil.rmtree(run / "phase3_gate")
    run_recipe(recipe, [3], run, overrides=TAKEN)
    learned = read(run / "phase3_gate" / "gate.json")["compared"]["aurc"]["learned"]
    assert len(given) == 2
    for seen, targets in given:
        np.testing.assert_array_equal(seen[-of_train.sum() :], inputs[of_train])
        np.testing.assert_array_equal(targets[-of_train.sum() :], right[of_train])
    run_recipe(recipe, [3], run, overrides=[*FOLDS, "phase2.from=out_of_fold"])
    assert learned != read(run / "phase3_gate" / "gate.json")["compared"]["aurc"]["learned"]
    assert "train" not in read(run / "phase3_gate" / "rows_read.json")


def test_the_held_out_figure_never_uses_the_group_that_it_decides(folded: tuple[Path, list[dict[str, Any]]]) -> None:
    """Against one threshold a fold, slowly; and a group whose labels change moves no decision about itself."""
    run = folded[0]
    decision, answers = Decision.read(run / "phase2_threshold"), read_out_of_fold(run / "phase1_baseline")
    table = read_logits(run / "phase1_baseline" / "logits" / "val_select.parquet", decision.candidate_sha256,
                        decision.exam)  # fmt: skip
    from sklearn.model_selection import StratifiedGroupKFold

    few = min(len(set(table.groups[table.labels == label])) for label in (0, 1))
    folds = StratifiedGroupKFold(min(5, few), shuffle=True, random_state=0)
    for name, fit in (("val_select", table), ("out_of_fold", answers)):
        right = np.zeros(len(table.labels))
        for _, held in folds.split(table.logits, table.labels, table.groups):
            out = set(table.groups[held].tolist())
            kept = [i for i, group in enumerate(fit.groups.tolist()) if group not in out]
            cut = select_threshold(fit.logits[kept], fit.labels[kept], target_prior=0.5).threshold
            right[held] = table.logits[held] > cut
        wanted = compute_metrics(right, table.labels, sample_weight=prior_weights(table.labels, 0.5))["mcc"]
        assert decision.held_out is not None and decision.held_out[name].value == pytest.approx(wanted)
    assert tells(decision.told_held_out, "val_select", "out-of-fold", f"{decision.held_out['out_of_fold'].value:.3f}")


def test_a_divided_group_is_caught(
    folded: tuple[Path, list[dict[str, Any]]], recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = read_out_of_fold(folded[0] / "phase1_baseline")
    folds = answers.folds.copy()
    folds[0] = (folds[0] + 1) % 3  # one of three rows of its group
    write_out_of_fold(tmp_path, OutOfFold(answers.asked, answers.roles, folds, answers.logits, answers.models))
    refused(VerificationError, lambda: read_out_of_fold(tmp_path), "group", "two folds")
    monkeypatch.setattr(phase1_folds, "divide_folds", lambda *_: folds)
    monkeypatch.setattr("natix_hf.phases.phase1_baseline._train", lambda *_: {})
    refused(LeakageError, lambda: run_recipe(recipe, [1], tmp_path / "run", overrides=FOLDS), "group")


@pytest.mark.parametrize("seed", range(8))
def test_folds_of_strange_groups(seed: int) -> None:
    """Every row in one fold, no group in two, both labels of both roles outside each; or a line that says why not."""
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(8, 200)), int(rng.integers(2, 7))
    groups = rng.zipf(1.5, n).clip(max=n // 2).astype(str)
    roles = np.array(["train", "val_select"])[np.array([hash_of(g) % 3 == 0 for g in groups]).astype(int)]
    labels = (rng.random(n) < rng.uniform(0.1, 0.6)).astype(np.int64)
    try:
        folds = divide_folds(roles, labels, groups, k, seed)
    except UsageError as error:
        assert tells(str(error), "phase1.folds", k, len(set(groups)))
        return
    assert set(folds) == set(range(k))
    assert len(set(zip(groups, folds, strict=True))) == len(set(groups))
    for fold in range(k):
        for role in ("train", "val_select"):
            assert set(labels[(folds != fold) & (roles == role)]) == {0, 1}


def hash_of(group: str) -> int:
    return sum(ord(letter) * (i + 1) for i, letter in enumerate(group))


def test_few_groups_are_refused_before_any_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_parquet_source(tmp_path / "source", groups=12, frames=2)
    content = TINY_RECIPE | {"data": TINY_RECIPE["data"] | {"source": str(source)}}
    recipe = str(write_recipe(tmp_path / "tiny.yaml", content))
    monkeypatch.setattr("natix_hf.results.answers.train_classifier", None)
    refused(UsageError, lambda: run_recipe(recipe, [1], tmp_path / "run", overrides=["phase1.folds=5"]),
            "phase1.folds", 5, "groups")  # fmt: skip


def test_what_is_refused() -> None:
    for key in ("phase2", "phase3"):
        given = {key: {"from": "out_of_fold"}}
        refused(RecipeError, lambda given=given: parse_recipe(given), f"{key}.from", "phase1.folds")
    refused(RecipeError, lambda: parse_recipe({"phase1": {"folds": 1}}), "phase1.folds", 1, "at least 2")
    refused(RecipeError, lambda: parse_recipe({"phase4": {"supervised": {"folds": 3}}}), "phase4.supervised.folds")
    refused(RecipeError, lambda: parse_recipe({"phase2": {"from": "test"}}), "phase2.from", "test", "out_of_fold")
    assert parse_recipe({"phase1": {"folds": 3}, "phase2": {"from": "out_of_fold"}}).phase2.from_ == "out_of_fold"
