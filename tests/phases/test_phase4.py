"""Phase 4 as a whole: both stages, the control, what they leave, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import STAGED, explora_recipe, save_vit_mae, striped_image, tiny_backbone
from refusals import refused
from transformers import AutoModel, ViTModel

from natix_hf.errors import RecipeError, RunError, UsageError
from natix_hf.estimate.forecast import Machine, estimate
from natix_hf.estimate.gpus import GPUS
from natix_hf.models.classifier import load_classifier
from natix_hf.phases import phase4_adapt
from natix_hf.pipeline import run_recipe
from natix_hf.provenance.files import read_json, write_json
from natix_hf.provenance.manifest import manifest_digest, manifest_seal, read_manifest
from natix_hf.recipe import load_recipe
from natix_hf.results import answers
from natix_hf.runs.freshness import why_not_current
from natix_hf.runs.graph import PHASES
from natix_hf.runs.verify import run_problems


def test_both_stages_and_the_control(tmp_path: Path, parquet_source: Path, pretrained: Path) -> None:
    """By masked autoencoding; test_phase4_keeps has the other objective."""
    recipe = explora_recipe(tmp_path, parquet_source, pretrained, objective="mae")
    run = run_recipe(recipe, [1, 4, 2, 6], tmp_path / "run")
    folder = run / "phase4_explora"
    metrics = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["objective"] == "mae" and metrics["steps"] == 6
    assert metrics["merge"]["max_difference"] <= 1e-4 and metrics["merge"]["merged_layers"] == 2
    assert metrics["control"] == {"from": "phase1_baseline"}  # phase 1 is the control: equal section
    assert {"val_select_mcc_optimistic", "control_mcc_optimistic", "mcc_gain"} <= set(metrics["against_control"])
    assert "history" not in metrics
    # The backbone moved, AutoModel loads it, and the candidate was trained from it.
    before, after = (AutoModel.from_pretrained(path).state_dict() for path in (pretrained, folder / "backbone"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "encoder.layer.1.mlp.fc1.weight" in moved  # the unfrozen block
    assert "encoder.layer.0.attention.q_proj.weight" in moved  # LoRA, merged
    assert {"embeddings.cls_token", "layernorm.weight"} <= moved
    assert "encoder.layer.0.mlp.fc1.weight" not in moved and "encoder.layer.0.attention.k_proj.weight" not in moved
    assert load_classifier(folder / "model")
    assert not list(folder.rglob("adapter_*")) and not (folder / "checkpoints").exists()
    history = json.loads((folder / "self_supervised_history.json").read_text(encoding="utf-8"))
    assert [row["step"] for row in history if "eval_linear_auroc" in row] == [0, 3, 6]
    decision = json.loads((run / "phase2_threshold" / "threshold.json").read_text(encoding="utf-8"))
    assert [c["challenger"] for c in decision["comparisons"]] == ["phase4_explora"]
    assert run_problems(run) == []


def test_a_stage_of_its_own_has_a_control_of_its_own(tmp_path: Path, parquet_source: Path, pretrained: Path) -> None:
    stage = {"adapter": "none", "num_train_epochs": 2, "dataloader_num_workers": 0}
    recipe = explora_recipe(tmp_path, parquet_source, pretrained, objective="mae", supervised=stage)
    folder = run_recipe(recipe, [4], tmp_path / "run") / "phase4_explora"
    metrics = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["control"]["from"] == "control"
    control, stock = load_classifier(folder / "control" / "model").base_model, AutoModel.from_pretrained(pretrained)
    for name, tensor in stock.state_dict().items():
        assert torch.equal(control.state_dict()[name], tensor), name  # adapter none: the stock backbone as it was


def test_without_labels_it_stops_after_the_backbone(tmp_path: Path, parquet_source: Path, pretrained: Path) -> None:
    frames = tmp_path / "drive"
    frames.mkdir()
    rng = np.random.default_rng(3)
    for i in range(4):
        striped_image(0, rng).save(frames / f"{i}.png")
    recipe = explora_recipe(tmp_path, parquet_source, pretrained, use_labeled_data=False, unlabelled=[str(frames)])
    folder = run_recipe(recipe, [4], tmp_path / "run") / "phase4_explora"
    metrics = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["images"] == 72 + 4 and "supervised" not in metrics
    assert (folder / "backbone" / "model.safetensors").is_file() and not (folder / "model").exists()
    # Another recipe starts from it.
    other = explora_recipe(tmp_path, parquet_source, folder / "backbone")
    run_recipe(other, [1], tmp_path / "other")


def test_random_weights_are_no_explora(tmp_path: Path, parquet_source: Path) -> None:
    recipe = explora_recipe(tmp_path, parquet_source, None)
    call = lambda: run_recipe(recipe, [4], tmp_path / "run")  # noqa: E731
    refused(RecipeError, call, "phase4.trainable", "model.backbone", "phase4.trainable=all")
    assert not (tmp_path / "run").exists()
    plain = explora_recipe(tmp_path, parquet_source, None, trainable="all", use_labeled_data=False, objective="mae")
    folder = run_recipe(plain, [4], tmp_path / "plain") / "phase4_explora"
    metrics = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["trainable"] == "all" and metrics["merge"]["merged_layers"] == 0


def test_a_vit_mae_brings_its_decoder_and_leaves_a_vit(tmp_path: Path, parquet_source: Path) -> None:
    theirs = save_vit_mae(tmp_path / "mae")
    recipe = explora_recipe(tmp_path, parquet_source, tmp_path / "mae", use_labeled_data=False)
    folder = run_recipe(recipe, [4], tmp_path / "run") / "phase4_explora"
    metrics = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert (metrics["objective"], metrics["decoder"]) == ("mae", "pretrained")
    assert metrics["merge"]["max_difference"] <= 1e-4 and metrics["merge"]["merged_layers"] == 4
    backbone = AutoModel.from_pretrained(folder / "backbone", add_pooling_layer=False)
    assert type(backbone) is ViTModel
    before, after = theirs.vit.state_dict(), backbone.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    of_the_last_block = {name for name in before if name.startswith("layers.2.")}
    norms = {name for name in before if "layernorm" in name}
    lora = {f"layers.{number}.attention.{name}.weight" for number in (0, 1) for name in ("q_proj", "v_proj")}
    # The last block's key bias moves no softmax: its gradient is zero.
    assert moved | {"layers.2.attention.k_proj.bias"} == of_the_last_block | norms | lora | {"embeddings.cls_token"}
    # Another recipe starts from it, as from any ViT, and its decoder is a fresh one.
    other = explora_recipe(tmp_path, parquet_source, folder / "backbone", use_labeled_data=False)
    again = run_recipe(other, [4], tmp_path / "other") / "phase4_explora"
    metrics = json.loads((again / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert (metrics["objective"], metrics["decoder"]) == ("mae", "fresh")


def test_a_vit_mae_is_refused_at_another_size_or_without_its_decoder(tmp_path: Path, parquet_source: Path) -> None:
    save_vit_mae(tmp_path / "large", image_size=56)
    large = explora_recipe(tmp_path, parquet_source, tmp_path / "large")
    refused(RecipeError, lambda: run_recipe(large, [4], tmp_path / "run"), "model.image_size", 28, 56)
    save_vit_mae(tmp_path / "alone").vit.save_pretrained(tmp_path / "alone")
    alone = explora_recipe(tmp_path, parquet_source, tmp_path / "alone")
    refused(UsageError, lambda: run_recipe(alone, [4], tmp_path / "run"), 40, "decoder", "phase4.objective=dinov2")
    recipe = explora_recipe(tmp_path, parquet_source, tmp_path / "alone", objective="dinov2", use_labeled_data=False)
    folder = run_recipe(recipe, [4], tmp_path / "other") / "phase4_explora"
    metrics = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert (metrics["objective"], metrics["decoder"]) == ("dinov2", None)


@pytest.mark.parametrize("model_type", STAGED)
def test_a_backbone_in_stages_cannot(model_type: str, tmp_path: Path, parquet_source: Path) -> None:
    """Before any work: the run has no folder of a phase, and an estimate is refused in the same words."""
    tiny_backbone(model_type).save_pretrained(tmp_path / "backbone")
    recipe = explora_recipe(tmp_path, parquet_source, tmp_path / "backbone", trainable="all")
    facts = ["phase4", model_type, "without labels", "cls token", "stages", "vit", "dinov2"]
    refused(RecipeError, lambda: run_recipe(recipe, [1, 4], tmp_path / "run"), *facts)
    assert not list((tmp_path / "run").glob("phase*"))
    machine = Machine(GPUS["a6000"], 1, 8)
    refused(RecipeError, lambda: estimate(load_recipe(recipe), [1, 4], machine), *facts)


@pytest.mark.parametrize("objective", ["dinov2", "diet"])
def test_a_dinov3_is_adapted_and_exported(objective: str, tmp_path: Path, parquet_source: Path) -> None:
    folder = tmp_path / "dinov3"
    tiny_backbone("dinov3_vit").save_pretrained(folder)
    given = {} if objective == "dinov2" else {"objective": objective}  # which is its default
    recipe = explora_recipe(tmp_path, parquet_source, folder, **given)
    run = run_recipe(recipe, [1, 4, 2, 6], tmp_path / "run")
    metrics = read_manifest(run / "phase4_explora")["metrics"]
    assert metrics["objective"] == objective and metrics["merge"]["max_difference"] <= 1e-4
    assert metrics["merge"]["merged_layers"] == 4  # q and v of two of the three blocks
    folders = (folder, run / "phase4_explora" / "backbone")
    before, after = (AutoModel.from_pretrained(path).state_dict() for path in folders)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    lora = {f"model.layer.{i}.attention.{name}.weight" for i in (0, 1) for name in ("q_proj", "v_proj")}
    norms = {name for name in before if "norm" in name}
    assert moved >= lora | norms | {"embeddings.cls_token", "model.layer.2.layer_scale1.lambda1"}
    assert {name for name in moved - lora - norms if ".2." not in name} == {"embeddings.cls_token"}
    assert load_classifier(run / "phase4_explora" / "model") and (run / "phase6_export" / "bundle").is_dir()
    assert run_problems(run) == []


def test_masked_autoencoding_of_a_dinov3_is_refused(tmp_path: Path, parquet_source: Path) -> None:
    tiny_backbone("dinov3_vit").save_pretrained(tmp_path / "dinov3")
    recipe = explora_recipe(tmp_path, parquet_source, tmp_path / "dinov3", objective="mae")
    told = ("phase4.objective", "mae", "dinov3_vit", "rotary")
    refused(RecipeError, lambda: run_recipe(recipe, [4], tmp_path / "run"), *told)


def test_diet_of_a_stream_is_refused(tmp_path: Path, parquet_source: Path, pretrained: Path) -> None:
    stream = {"stream": True, "unlabelled": [str(parquet_source)], "max_steps": 4}
    recipe = explora_recipe(tmp_path, parquet_source, pretrained, objective="diet", **stream)
    refused(RecipeError, lambda: run_recipe(recipe, [4], tmp_path / "run"), "phase4.stream", "true", "false", "diet")


def test_what_an_older_version_trained_by_dinov2_is_trained_again(
    tmp_path: Path, parquet_source: Path, pretrained: Path
) -> None:
    """It held most of the initial weights. A masked autoencoding of an older version stays."""
    for objective, again in (("mae", False), ("dinov2", True)):
        (tmp_path / objective).mkdir()
        path = explora_recipe(
            tmp_path / objective, parquet_source, pretrained, objective=objective, use_labeled_data=False
        )
        run, recipe = run_recipe(path, [4], tmp_path / objective / "run"), load_recipe(path)
        folder = run / "phase4_explora"
        assert why_not_current(run, PHASES[4], recipe) is None
        manifest = read_json(folder / "manifest.json")
        del manifest["metrics"]["objective_version"]
        manifest["digest"] = manifest_digest(manifest)
        manifest["seal"] = manifest_seal(manifest)
        write_json(folder / "manifest.json", manifest)
        reason = why_not_current(run, PHASES[4], recipe)
        assert (reason is not None and "dinov2" in reason) if again else reason is None
        key = read_json(folder / "self_supervised_key.json")
        assert ("objective_version" in key) == again, "an unfinished one begins again, too"


def test_cut_off_in_the_control_it_repeats_nothing_and_is_no_candidate(
    tmp_path: Path, parquet_source: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {"adapter": "none", "num_train_epochs": 1, "dataloader_num_workers": 0}
    recipe = explora_recipe(tmp_path, parquet_source, pretrained, objective="mae", supervised=stage)
    trained: list[str] = []
    real = answers.train_classifier

    def train(*args: Any, **kwargs: Any) -> Any:
        trained.extend([args[-1].name] if args[-1].name != "checkpoints" else [])  # which is phase 1's
        if trained == ["phase4_explora", "control"]:
            raise RunError("cut off")
        return real(*args, **kwargs)

    monkeypatch.setattr(answers, "train_classifier", train)
    with pytest.raises(RunError, match="cut off"):
        run_recipe(recipe, [1, 4], tmp_path / "run")
    folder = tmp_path / "run" / "phase4_explora"
    assert (folder / "model").is_dir() and not (folder / "manifest.json").exists()
    run_recipe(recipe, [2], tmp_path / "run")
    decision = json.loads((tmp_path / "run" / "phase2_threshold" / "threshold.json").read_text(encoding="utf-8"))
    assert decision["champion"] == "phase1_baseline" and decision["comparisons"] == []
    monkeypatch.setattr(phase4_adapt, "pretrain_backbone", None)  # stage (a) is not done again
    run_recipe(recipe, [4], tmp_path / "run")
    assert trained == ["phase4_explora", "control", "control"]  # neither is stage (b)
