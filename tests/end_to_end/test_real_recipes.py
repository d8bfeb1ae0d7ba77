"""The recipes for the real thing, with their Hub names pointed at small local stand-ins: the same loading code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TINY, write_parquet_source
from transformers import AutoConfig, AutoModel

from natix_hf.models.classifier import build_classifier, load_classifier
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.pipeline import run_recipe
from natix_hf.verify import run_problems

ARCHITECTURE = {
    "roadwork_dinov2_base": "dinov2",
    "roadwork_dinov2_large": "dinov2",
    "roadwork_dinov3": "dinov3_vit",
}


@pytest.fixture(scope="module")
def hub_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As natix-network-org/roadwork: sorted by class, 83 % positive, dotted columns, an official test split."""
    folder = tmp_path_factory.mktemp("roadwork")
    return write_parquet_source(folder, groups=48, frames=2, positive_share=0.83, official_test=12)


@pytest.mark.parametrize("recipe", ARCHITECTURE)
def test_a_real_recipe_runs_on_stand_ins(recipe: str, hub_dataset: Path, tmp_path: Path) -> None:
    architecture = ARCHITECTURE[recipe]
    backbone = tmp_path / "backbone"
    settings = {key: value for key, value in TINY[architecture].items() if key != "model_type"}
    AutoModel.from_config(AutoConfig.for_model(architecture, **settings, image_size=28)).save_pretrained(backbone)
    make_processor(ModelConfig(config=TINY[architecture], image_size=28)).save_pretrained(backbone)
    overrides = [f"data.source={hub_dataset}", f"model.backbone={backbone}", "model.image_size=28", "data.cache_px=32"]
    overrides += [
        "data.slices=[scene_level_tags.weather]",
        "phase1.num_train_epochs=1",
        "phase1.dataloader_num_workers=0",
    ]
    overrides += ["phase1.per_device_train_batch_size=16", "phase6.n_resamples=100"]
    run = run_recipe(recipe, run_dir=tmp_path / "run", overrides=overrides)
    assert run_problems(run) == []
    policy = json.loads((run / "phase6_export" / "bundle" / "policy.json").read_text())
    evaluation = json.loads((run / "phase6_export" / "evaluation.json").read_text())
    assert evaluation["rows"] == 24 and evaluation["at_target_prior"]["target_prior"] == 0.5
    assert set(evaluation["slices"]) == {"scene_level_tags.weather"}
    assert policy["fold"] == "decision"
    # bf16 is for autocast: what is stored is float32.
    candidate = load_classifier(run / "phase1_baseline" / "model")
    assert json.loads((run / "phase1_baseline" / "model" / "config.json").read_text())["dtype"] == "float32"
    start = build_classifier(ModelConfig(backbone=str(backbone), image_size=28), seed=0).state_dict()
    moved = {n for n, t in candidate.state_dict().items() if not n.startswith("classifier.") and not t.equal(start[n])}
    assert bool(moved) == (recipe != "roadwork_dinov2_large"), "adapter: none leaves the backbone bit-equal"
