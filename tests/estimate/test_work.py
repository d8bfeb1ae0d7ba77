"""What a recipe computes, against a run that computed it, and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from natix_hf.data.config import DataConfig
from natix_hf.data.splits import SPLITS, read_splits
from natix_hf.estimate.source import counts_by_shares, list_source
from natix_hf.estimate.work import Counts, Work, uncounted, work_of
from natix_hf.provenance.manifest import read_manifest
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.runs.graph import PHASES

COUNTS = Counts(train=100, val_select=40, val_calib=40, test=30, unlabelled=50)
BACKBONE = {"backbone": "org/name", "image_size": 28}


def work(phases: list[int], devices: int = 1, **sections: Any) -> list[Work]:
    return work_of(Recipe.build({"model": BACKBONE} | sections), phases, COUNTS, devices)


def amount(found: list[Work], phase: int, kind: str, stage: str = "") -> int:
    return sum(part.amount for part in found if (part.phase, part.kind, part.stage) == (phase, kind, stage))


def test_a_run_of_every_phase_computed_what_is_listed(_whole_run: Path) -> None:
    recipe = load_recipe(str(_whole_run.parent / "tiny.yaml"), ["phase1.adapter=lora"])
    splits = read_splits(_whole_run / PHASES[0].folder / SPLITS)
    counts = Counts(**{role: count["rows"] for role, count in splits.counts().items()})
    found = work_of(recipe, [1, 4, 2, 3, 5, 6], counts)
    assert amount(found, 0, "decode") == len(splits.ids)
    of_phase = {number: read_manifest(_whole_run / PHASES[number].folder)["metrics"] for number in (1, 4)}
    for number, stage, report, log, score in (
        (1, "phase1", of_phase[1], "history.json", "eval_mcc"),
        (4, "phase4", of_phase[4], "self_supervised_history.json", "eval_linear_auroc"),
        (4, "phase4.supervised", of_phase[4]["supervised"], "history.json", "eval_mcc"),
    ):
        rows = json.loads((_whole_run / PHASES[number].folder / log).read_text(encoding="utf-8"))
        assert amount(found, number, "train", stage) == report["steps"] == max(row["step"] for row in rows)
        assert amount(found, number, "score", stage) == sum(score in row for row in rows)
        assert report["pace"]["step_s"] > 0 and report["pace"]["rows_a_step"] == 16
    assert of_phase[4]["control"]["from"] == "phase1_baseline"  # so it was not trained again


@pytest.mark.parametrize(
    ("keys", "devices", "expected"),
    [
        ({"num_train_epochs": 3}, 1, {"train": 6, "score": 3, "save": 3, "answer": 40}),
        ({"num_train_epochs": 3}, 2, {"train": 3, "score": 3, "save": 3, "answer": 40}),
        ({"num_train_epochs": 3, "gradient_accumulation_steps": 2}, 1, {"train": 3, "score": 3}),
        ({"num_train_epochs": 3, "dataloader_drop_last": True}, 1, {"train": 3}),
        ({"max_steps": 5, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no",
          "load_best_model_at_end": False}, 1, {"train": 5, "score": 2, "save": 0}),
        ({"num_train_epochs": 3, "adapter": "auto"}, 1, {"train": 12}),
        ({"num_train_epochs": 3, "folds": 5}, 1, {"train": 30, "answer": 2 * 40 + 100}),
        ({"num_train_epochs": 3, "folds": 5, "keep_folds": True}, 1, {"train": 30, "answer": 7 * 40 + 100}),
        ({"num_train_epochs": 3, "seeds": 3}, 1, {"train": 18, "score": 9, "answer": 3 * 40}),
        ({"num_train_epochs": 3, "adapter": "none", "feature_views": 4}, 1, {"features": 440, "train": 6}),
    ],
)  # fmt: skip
def test_phase_1_by_hand(keys: dict[str, Any], devices: int, expected: dict[str, int]) -> None:
    found = work([1], devices, phase1={"per_device_train_batch_size": 64} | keys)
    assert {kind: amount(found, 1, kind, "phase1") for kind in expected} == expected


def test_phase_4_by_hand() -> None:
    settings = {"max_steps": 100, "probe_steps": 30, "per_device_train_batch_size": 8, "use_labeled_data": False}
    found = work([4], phase4=settings | {"unlabelled": ["frames"]})
    assert amount(found, 4, "train", "phase4") == 100
    assert amount(found, 4, "score", "phase4") == 5  # before training, at 30, 60 and 90, and after the last step
    assert amount(found, 4, "decode") == 50
    assert amount(work([4], phase4=settings | {"unlabelled": ["frames"], "stream": True}), 4, "decode") == 0
    labelled = {"max_steps": 10, "per_device_train_batch_size": 8}
    alone, beside = work([4], phase4=labelled), work([1, 4], phase4=labelled)
    assert amount(alone, 4, "train", "phase4.supervised") == 2 * amount(beside, 4, "train", "phase4.supervised")


def test_views_of_the_exam_count() -> None:
    found = work([1, 2, 5, 6], data={"exam": True, "exam_views": 8})
    assert [amount(found, number, "answer") for number in (2, 5, 6)] == [8 * 40, 8 * 40, 8 * 30]
    assert amount(found, 1, "draw") == amount(found, 1, "answer", "phase1") == 4 * 40
    plain = work([1, 2, 5, 6])
    assert [amount(plain, number, "answer") for number in (2, 5, 6)] == [0, 40, 30]  # phase 1 has answered val_select
    assert amount(plain, 1, "draw") == 0


@pytest.mark.parametrize(("soup", "plain", "further"), [("uniform", 1, 4), ("greedy", 2, 5), ("wise", 10, 11)])
def test_a_soup_is_asked_for_by_hand(soup: str, plain: int, further: int) -> None:
    """Of three seeds: its trials; with more views than candidates are chosen by, the baseline and its members too."""
    sections = {"phase1": {"seeds": 3}, "phase2": {"soup": soup}}
    assert amount(work([1, 2], **sections), 2, "answer") == plain * 40
    assert amount(work([1, 2], **sections, data={"exam": True, "exam_views": 8}), 2, "answer") == further * 8 * 40


def test_a_source_is_counted_without_decoding(parquet_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from natix_hf.data import decode

    monkeypatch.setattr(decode, "open_image", None)
    source = list_source(DataConfig(source=str(parquet_source), group_by="video_info.vid_id"))
    assert source is not None
    counts = source.counts()
    assert (counts.labelled, counts.train) == (120, 72)
    chosen = source.spread(30, seed=0)
    assert len(set(chosen)) == 30
    assert len({source.rows.groups[i] for i in chosen}) == 30  # rather new groups than further frames of one
    assert sum(int(source.rows.labels[i]) for i in chosen) == 15
    assert len(source.spread(1000, seed=0)) == 120


def test_the_counts_of_a_source_that_is_not_here() -> None:
    counts = counts_by_shares(1000, unlabelled=7)
    assert counts == Counts(train=600, val_select=150, val_calib=150, test=100, unlabelled=7)


def test_what_is_not_counted_is_said() -> None:
    def said(phases: list[int], **phase1: Any) -> str:
        return uncounted(Recipe.build({"model": BACKBONE, "phases": phases, "phase1": phase1}))

    assert said([1, 2]) == said([2, 6], teacher="org/large") == ""
    assert "phase1.teacher" in said([1], teacher="org/large") and "unlabelled" not in said([4], teacher="org/large")
    assert "distil.unlabelled" in said([1], teacher="org/large", distil={"unlabelled": ["frames"]})
