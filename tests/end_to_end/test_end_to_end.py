"""Whole runs on other data than stripes: the real photographs, and the synthetic scenes."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SHARED, TINY, write_recipe

from natix_hf.data.rows import ImageData, load_image_data
from natix_hf.data.splits import leaks_between_roles
from natix_hf.pipeline import run_recipe
from natix_hf.recipe import load_recipe
from natix_hf.runs.verify import find_problems

GTSRB = SHARED / "data" / "gtsrb_roadwork"


@pytest.fixture(scope="module")
def photographs() -> ImageData:
    return load_image_data(replace(load_recipe("gtsrb_roadwork").data, source=str(GTSRB)))


@pytest.mark.shared
def test_real_photographs_are_divided_by_track(photographs: ImageData) -> None:
    """The figures are those of the data's own README; tracks are counted here from the parquet, not by the package."""
    import pyarrow.parquet as pq

    labels_of_track: dict[tuple[str, str], set[int]] = defaultdict(set)
    for split in ("train", "test"):
        table = pq.read_table(
            next((GTSRB / "data").glob(f"{split}-*.parquet")), columns=["label", "video_info.vid_id"]
        )
        for label, track in zip(table["label"].to_pylist(), table["video_info.vid_id"].to_pylist(), strict=True):
            labels_of_track[split, str(track)].add(label)
    splits = photographs.splits
    assert len(photographs.rows.ids) == 4680 + 1200
    assert leaks_between_roles(splits) == []
    counts = splits.counts()
    assert {i.split("/")[0] for i in splits.ids_of("test")} == {"test"}
    assert counts["test"]["rows"] == 1200 and counts["test"]["positive_rows"] == 240
    assert (counts["test"]["groups"], counts["test"]["positive_groups"]) == (168, 8)
    for label, total in {0: 640, 1: 28}.items():
        assert sum(labels == {label} for (split, _), labels in labels_of_track.items() if split == "train") == total
        for role, share in {"train": 0.65, "val_select": 0.175, "val_calib": 0.175}.items():
            count = counts[role]
            tracks = count["positive_groups"] if label else count["groups"] - count["positive_groups"]
            assert abs(tracks - share * total) <= 1, (role, label)
    role_of_track = defaultdict(set)
    for group, role in zip(splits.groups, splits.roles, strict=True):
        role_of_track[group].add(role)
    assert all(len(roles) == 1 for roles in role_of_track.values())
    assert len(splits.ids) + len(splits.dropped) == 5880


@pytest.mark.shared
def test_a_tiny_training_on_real_photographs(photographs: ImageData, tmp_path: Path) -> None:
    config = json.dumps(TINY["dinov2"] | {"patch_size": 8})
    run = run_recipe(
        "gtsrb_roadwork",
        run_dir=tmp_path / "run",
        overrides=[
            f"data.source={GTSRB}", "data.slices=[video_info.frame_id]", f"model.config={config}",
            "model.backbone=null", "model.image_size=24",
            "phase1.max_steps=20", "phase1.dataloader_num_workers=0", "phase2.n_resamples=100",
            "phase5.n_resamples=100", "phase6.n_resamples=100",
        ],
    )  # fmt: skip
    assert find_problems(str(run)) == []
    evaluation = json.loads((run / "phase6_export" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["rows"] == 1200
    groups = {"groups": 168, "positive_groups": 8, "negative_groups": 160, "few": True, "known": True}
    assert evaluation["groups"] == groups
    assert evaluation["as_found"]["metrics"]["n_positive"] == 240
    assert 0 <= evaluation["selective"]["coverage"]["value"] <= 1


@pytest.mark.parametrize("adapter", ["none", "full"])
def test_few_synthetic_videos(adapter: str, tmp_path: Path) -> None:
    content = {
        "phases": [6, 2, 1],
        "data": {
            "synthetic": {"videos": 40, "frames": 2, "image_size": 32}, "group_by": "video_info.vid_id",
            "label_rule": "scene_description", "target_prior": 0.5, "label_noise": 0.05,
        },
        "model": {"config": TINY["vit"], "image_size": 28},
        "phase1": {
            "adapter": adapter, "feature_views": 2 if adapter == "none" else 1,
            "num_train_epochs": 2, "dataloader_num_workers": 0,
            "early_stopping_patience": 1, "prior_by": "loss",
        },
        "phase2": {"n_resamples": 100},
        "phase6": {"n_resamples": 100, "fold": "none"},
    }  # fmt: skip
    run = run_recipe(str(write_recipe(tmp_path / "few.yaml", content)), run_dir=tmp_path / "run")
    assert find_problems(str(run)) == []
    card = (run / "phase6_export" / "bundle" / "README.md").read_text(encoding="utf-8")
    assert ("frozen" in card) == (adapter == "none")
