"""Stage (a) is done again when what it depends on changes, and only then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import explora_recipe

from natix_hf.errors import RunError
from natix_hf.phases import phase4_adapt
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import file_sha256
from natix_hf.results import answers
from natix_hf.runs.verify import run_problems

Stages = list[str]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    """The trainings that phase 4 really does, in order."""
    done: Stages = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def train(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            return real(*args, **kwargs)

        return train

    for module, name in ((phase4_adapt, "pretrain_backbone"), (answers, "train_classifier")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return done


def _weights(run: Path) -> str:
    return file_sha256(run / "phase4_explora" / "backbone" / "model.safetensors")


def test_a_change_of_stage_b_keeps_stage_a(
    stages: Stages, tmp_path: Path, parquet_source: Path, pretrained: Path
) -> None:
    recipe, run = explora_recipe(tmp_path, parquet_source, pretrained, objective="dinov2"), tmp_path / "run"
    run_recipe(recipe, [1, 4], run)
    before, curve = _weights(run), (run / "phase4_explora" / "plots" / "self_supervised.png").read_bytes()
    for override in ("phase1.learning_rate=1e-3", "phase4.supervised={num_train_epochs: 1, seed: 3}"):
        trained = stages.count("train_classifier")
        run_recipe(recipe, [1, 4], run, overrides=[override])
        assert stages.count("pretrain_backbone") == 1 and stages.count("train_classifier") > trained
        assert _weights(run) == before
        assert (run / "phase4_explora" / "plots" / "self_supervised.png").read_bytes() == curve
    assert run_problems(run) == []


def test_a_change_of_stage_a_does_it_again(
    stages: Stages, tmp_path: Path, parquet_source: Path, pretrained: Path
) -> None:
    recipe = explora_recipe(tmp_path, parquet_source, pretrained, use_labeled_data=False, objective="mae")
    overrides, seen = [], []
    for change in ([], ["phase4.rank=2"], ["phase4.mae.mask_ratio=.5"], ["data.seed=1"], ["phase4.seed=1"]):
        overrides += change
        seen.append(_weights(run_recipe(recipe, [4], tmp_path / "run", overrides=overrides)))
    assert stages == ["pretrain_backbone"] * 5 and len(set(seen)) == 5


def test_a_stage_b_that_failed_does_not_cost_stage_a(
    stages: Stages, tmp_path: Path, parquet_source: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = explora_recipe(tmp_path, parquet_source, pretrained), tmp_path / "run"
    real = answers.train_classifier

    def out_of_memory(*args: Any, **kwargs: Any) -> Any:
        raise RunError("ran out of memory")

    monkeypatch.setattr(answers, "train_classifier", out_of_memory)
    with pytest.raises(RunError, match="memory"):
        run_recipe(recipe, [4], run)
    monkeypatch.setattr(answers, "train_classifier", real)
    run_recipe(recipe, [4], run, overrides=["phase1.per_device_train_batch_size=8"])
    assert stages.count("pretrain_backbone") == 1 and run_problems(run) == []


def test_a_damaged_backbone_is_not_kept(
    stages: Stages, tmp_path: Path, parquet_source: Path, pretrained: Path
) -> None:
    recipe = explora_recipe(tmp_path, parquet_source, pretrained, use_labeled_data=False)
    run = run_recipe(recipe, [4], tmp_path / "run")
    before, config = _weights(run), run / "phase4_explora" / "backbone" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("dinov2", "dinov3"), encoding="utf-8")
    run_recipe(recipe, [4], run)
    assert stages == ["pretrain_backbone"] * 2 and _weights(run) == before and run_problems(run) == []


def test_stage_a_cut_off_goes_on_after_a_change_of_stage_b(
    tmp_path: Path, parquet_source: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = explora_recipe(tmp_path, parquet_source, pretrained), tmp_path / "run"
    real, resumed = phase4_adapt.pretrain_backbone, []

    def cut_off(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise RunError("cut off")

    def watched(*args: Any, **kwargs: Any) -> Any:
        report = real(*args, **kwargs)
        resumed.append(report["resumed_from"])
        return report

    monkeypatch.setattr(phase4_adapt, "pretrain_backbone", cut_off)
    with pytest.raises(RunError, match="cut off"):
        run_recipe(recipe, [4], run)
    monkeypatch.setattr(phase4_adapt, "pretrain_backbone", watched)
    run_recipe(recipe, [4], run, overrides=["phase1.learning_rate=1e-3"])
    assert resumed == ["checkpoint-6"] and run_problems(run) == []
