"""The self-supervised stage: resumed it is what it would have been, the best is kept, a collapse stops it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Killed, kill_at, save_vit_mae, tiny_backbone
from safetensors.torch import load_file
from stages import save_in, striped_data

from natix_hf.data.asked import ask
from natix_hf.data.config import AugmentConfig
from natix_hf.data.rows import ImageData
from natix_hf.errors import RunError
from natix_hf.models.classifier import load_backbone
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.models.vit_mae import load_decoder
from natix_hf.recipe import parse_recipe
from natix_hf.ssl.dinov2 import DinoV2Objective
from natix_hf.ssl.explora import plain_backbone
from natix_hf.ssl.mae import MaskedAutoencoder
from natix_hf.trainers import pretraining, self_supervised
from natix_hf.trainers.explora import ExploraTrainer
from natix_hf.trainers.explora_config import ExploraConfig

MODEL = ModelConfig(config={"model_type": "dinov2", "patch_size": 7}, image_size=28)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return striped_data(tmp_path_factory)


def _config(objective: str, **changes: Any) -> ExploraConfig:
    section = {
        "objective": objective, "rank": 4, "max_steps": 8, "probe_steps": 3, "learning_rate": 2e-3,
        "per_device_train_batch_size": 16, "dataloader_num_workers": 0, "logging_steps": 1,
        "mae": {"decoder_width": 16, "decoder_heads": 2, "decoder_layers": 1},
        "dinov2": {"n_prototypes": 32, "head_hidden": 32, "bottleneck": 16}, "crops": {"local_crops": 2},
    }  # fmt: skip
    return parse_recipe({"phase4": section | changes}).phase4


def _pretrain(
    data: ImageData, config: ExploraConfig, folder: Path, model_type: str = "dinov2", labels: bool = True,
    decoder: Any = None,
) -> dict[str, Any]:  # fmt: skip
    backbone = load_backbone(folder.parent / "mae") if decoder is not None else tiny_backbone(model_type)
    return self_supervised.pretrain_backbone(
        backbone, make_processor(MODEL), data.role("train"),
        (ask(data.role("train")), ask(data.role("val_select"))) if labels else None,
        config, AugmentConfig(), save_in(folder / "backbone"), folder / "checkpoints", decoder,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "model_type", "changes"),
    [
        ("mae", "dinov2", {}),
        ("mae", "vit", {"trainable": "all"}),
        ("mae", "vit_mae", {}),
        ("dinov2", "dinov2", {}),
        ("dinov2", "vit", {"dinov2": {"n_prototypes": 16, "head_hidden": 16, "bottleneck": 8, "targets": "centre"}}),
        # Frozen prototypes have no state in the optimizer of the checkpoint. DINOv3 stretches positions at random.
        ("dinov2", "dinov3_vit", {"dinov2": {"n_prototypes": 16, "head_hidden": 16, "freeze_last_layer": 0.6}}),
        ("diet", "dinov2", {}),
        ("diet", "dinov3_vit", {"trainable": "all"}),
    ],
)
def test_resumed_equals_uninterrupted_bit_by_bit(
    objective: str, model_type: str, changes: dict[str, Any], data: ImageData, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = _config(objective, **changes)
    if model_type == "vit_mae":
        save_vit_mae(tmp_path / "mae")

    def pretrain(name: str) -> dict[str, Any]:
        decoder = load_decoder(str(tmp_path / "mae")) if model_type == "vit_mae" else None
        return _pretrain(data, config, tmp_path / name, model_type, decoder=decoder)

    whole = pretrain("whole")
    with monkeypatch.context() as patch:
        original = ExploraTrainer.__init__

        def with_killer(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.add_callback(kill_at(5))

        patch.setattr(ExploraTrainer, "__init__", with_killer)
        with pytest.raises(Killed):
            pretrain("cut")
    resumed = pretrain("cut")
    assert resumed["resumed_from"] == "checkpoint-3"
    keys = ("loss", "grad_norm", "learning_rate", "eval_linear_auroc", "dino", "target_entropy", "told")
    losses = [[{k: row[k] for k in keys if k in row} for row in report["history"]] for report in (whole, resumed)]
    assert [row for row in losses[0] if row] == [row for row in losses[1] if row]
    one, other = (load_file(tmp_path / name / "backbone" / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_of_a_pretrained_decoder_only_lora_and_norms_move(data: ImageData, tmp_path: Path) -> None:
    theirs = save_vit_mae(tmp_path / "mae")
    decoder = load_decoder(str(tmp_path / "mae"))
    report = _pretrain(data, _config("mae"), tmp_path / "run", decoder=decoder)
    assert report["decoder"] == "pretrained" and report["merge"]["merged_layers"] == 4  # q and v of the encoder's two
    after = {name.replace(".base_layer", ""): value for name, value in decoder.state_dict().items()}
    lora = {name for name in after if "lora_" in name}
    before = theirs.decoder.state_dict()
    norms = {name for name in before if "norm" in name}
    assert after.keys() - lora == before.keys() and len(lora) == 8
    assert {name for name in before if not torch.equal(before[name], after[name])} == norms
    assert all(after[name].any() for name in lora), "B starts at zero"
    [checkpoint] = (tmp_path / "run" / "checkpoints").glob("checkpoint-8")
    stored = {name for name in load_file(checkpoint / "model.safetensors") if name.startswith("decoder.")}
    assert stored == {f"decoder.{name}" for name in lora | norms}
    saved = load_file(tmp_path / "run" / "backbone" / "model.safetensors")
    assert not any("decoder" in name or "lora" in name for name in saved)


def test_the_best_backbone_by_probe_is_kept(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes that like step 3 best: what is saved is the backbone of step 3, teacher included."""
    scores = iter([0.95, 0.9, 0.5, 0.6])  # the first is that of the backbone as it came
    seen: list[dict[str, torch.Tensor]] = []

    def probe(self: Any, backbone: Any) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in backbone.state_dict().items()})
        return {"linear_auroc": next(scores)}

    monkeypatch.setattr(pretraining.Probes, "__call__", probe)
    config = _config("dinov2", trainable="all")
    report = _pretrain(data, config, tmp_path)
    assert (report["best_step"], report["best_score"], report["score_before"]) == (3, 0.9, 0.95)
    saved = load_backbone(tmp_path / "backbone").state_dict()
    assert all(torch.equal(saved[name], seen[1][name]) for name in saved)
    assert not all(torch.equal(saved[name], seen[3][name]) for name in saved)


def test_without_labels_the_last_one_is_kept(data: ImageData, tmp_path: Path) -> None:
    report = _pretrain(data, _config("mae"), tmp_path, labels=False)
    assert report["best_step"] == report["steps"] == 8
    probes = [row for row in report["history"] if "eval_spread" in row]
    assert [row["step"] for row in probes] == [0, 3, 6, 8] and not any("eval_linear_auroc" in row for row in probes)


@pytest.mark.parametrize(
    ("objective", "part", "step", "given"),
    [(DinoV2Objective, "teacher", r"\d", {"probe_steps": 1, "logging_steps": 100}),
     (MaskedAutoencoder, "encoder", "8", {"probe_steps": 0})],
)  # fmt: skip
def test_a_collapse_stops_the_run(
    objective: Any, part: str, step: str, given: Any, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted one: the last norm gives every picture the same tokens. A masked autoencoder has no figures of its own
    that would show it, and without probes it is found at the end."""

    def flatten(self: Any, step: int, total_steps: int) -> None:
        with torch.no_grad():
            plain_backbone(getattr(self, part)).layernorm.weight.zero_()

    monkeypatch.setattr(objective, "on_step_end", flatten)
    name = "dinov2" if part == "teacher" else "mae"
    with pytest.raises(RunError, match=rf"collapsed at step {step}: the features of different pictures agree"):
        _pretrain(data, _config(name, **given), tmp_path, labels=part == "teacher")
    assert not (tmp_path / "backbone").exists()


def test_flat_targets_stop_the_run(data: ImageData, tmp_path: Path) -> None:
    config = _config("dinov2", probe_steps=0)
    hot = replace(config, dinov2=replace(config.dinov2, teacher_temperature=[1e3, 1e3], targets="centre"))
    with pytest.raises(RunError, match="stuck at log K"):
        _pretrain(data, hot, tmp_path)


def test_weight_decay_follows_its_cosine(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    original = DinoV2Objective.on_gradients

    def look(self: DinoV2Objective, step: int, total_steps: int) -> None:
        original(self, step, total_steps)
        seen.append([group["weight_decay"] for group in trainers[0].optimizer.param_groups])

    trainers: list[Any] = []
    init = ExploraTrainer.__init__

    def keep(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        trainers.append(self)

    monkeypatch.setattr(ExploraTrainer, "__init__", keep)
    monkeypatch.setattr(DinoV2Objective, "on_gradients", look)
    config = _config("dinov2", weight_decay=0.1, probe_steps=0)
    config = replace(config, dinov2=replace(config.dinov2, weight_decay_end=0.5))
    _pretrain(data, config, tmp_path)
    decayed = [max(groups) for groups in seen]
    assert decayed[0] == pytest.approx(0.1) and decayed == sorted(decayed) and 0.4 < decayed[-1] < 0.5
    assert all(min(groups) == 0.0 for groups in seen)  # biases and norms stay without


@pytest.mark.parametrize(
    ("objective", "model_type", "spares"),
    [("mae", "dinov2", False), ("dinov2", "dinov2", True), ("dinov2", "dinov2_with_registers", True),
     ("dinov2", "dinov3_vit", True), ("diet", "dinov2", True)],
)  # fmt: skip
def test_layer_scale_has_no_weight_decay(
    objective: str, model_type: str, spares: bool, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the official DINOv2; masked autoencoding, which knows none, trains as before."""
    seen: dict[str, float] = {}

    def look(self: ExploraTrainer, *args: Any, **kwargs: Any) -> None:
        optimizer = self.create_optimizer()
        of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        seen.update({name: of[id(p)] for name, p in self.model.named_parameters() if p.requires_grad})
        raise Killed

    monkeypatch.setattr(ExploraTrainer, "train", look)
    with pytest.raises(Killed):
        _pretrain(data, _config(objective, trainable="all"), tmp_path, model_type)
    scales = {decay for name, decay in seen.items() if "layer_scale" in name}
    assert sum("layer_scale" in name for name in seen) == 6 and scales == {0.0 if spares else 0.04}
    assert {decay for name, decay in seen.items() if name.endswith("q_proj.weight")} == {0.04}
    assert {decay for name, decay in seen.items() if name.endswith("bias")} == {0.0}


@pytest.mark.parametrize("objective", ["mae", "dinov2", "diet"])
def test_activation_checkpointing_changes_no_number(objective: str, data: ImageData, tmp_path: Path) -> None:
    losses = []
    for on in (False, True):
        config = _config(objective, activation_checkpointing=on, max_steps=3, probe_steps=0)
        report = _pretrain(data, config, tmp_path / str(on))
        losses.append([row["loss"] for row in report["history"] if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_run_cut_off_after_its_last_step_takes_no_further_one(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the model is merged, in the middle of an epoch: Trainer alone would train one step more."""

    def killed(self: Any, *args: Any, **kwargs: Any) -> None:
        raise Killed

    whole = _pretrain(data, _config("mae"), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(self_supervised.MergeValidationCallback, "on_train_end", killed)
        with pytest.raises(Killed):
            _pretrain(data, _config("mae"), tmp_path / "cut")
    resumed = _pretrain(data, _config("mae"), tmp_path / "cut")
    assert resumed["resumed_from"] == "checkpoint-8" and resumed["steps"] == whole["steps"] == 8
    assert resumed["best_step"] == whole["best_step"]
    one, other = (load_file(tmp_path / name / "backbone" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
