"""The DINOv2 objective as a whole on tiny backbones: what moves, what stays, and what a checkpoint must hold."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from facts import tells
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, ViTConfig, ViTModel

from natix_hf.errors import RecipeError, VerificationError
from natix_hf.ssl import apply_explora, dinov2
from natix_hf.ssl.dinov2 import DinoV2Objective
from natix_hf.ssl.dinov2_config import DinoV2Config
from natix_hf.ssl.losses import dino_loss, ibot_loss, koleo_loss, sinkhorn_targets

SMALL = DinoV2Config(n_prototypes=24, head_hidden=16, bottleneck=8, ema=[0.5, 1.0])
ARCHITECTURES = ["vit", "dinov2", "dinov2_with_registers", "dinov3_vit"]


def tiny_backbone(name: str, **fields: Any) -> Any:
    settings = {**TINY[name], "patch_size": 7, "image_size": 28} | fields
    torch.manual_seed(3)
    return AutoModel.from_config(AutoConfig.for_model(**settings))


def make(name: str = "dinov2", explora: bool = False, seed: int = 0, **changes: Any) -> DinoV2Objective:
    student = tiny_backbone(name)
    if explora:
        student = apply_explora(student, rank=4)
    return DinoV2Objective(student, copy.deepcopy(student), replace(SMALL, **changes), seed)


def batch(n: int = 3, n_local: int = 2, masked: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(n, 2, 16, generator=generator) < 0.3
    masks[0, 0] = False
    return {
        "global_crops": torch.randn(n, 2, 3, 28, 28, generator=generator),
        "local_crops": torch.randn(n, n_local, 3, 14, 14, generator=generator),
        "masks": masks & masked,
    }


def state(objective: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in objective.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def step(objective: DinoV2Objective, number: int = 0, total: int = 10, lr: float = 0.1, seed: int = 0) -> None:
    objective.on_step_begin(number, total)
    objective(**batch(seed=seed))["loss"].backward()
    objective.on_gradients(number, total)
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
                parameter.grad = None
    objective.on_step_end(number + 1, total)


@pytest.mark.parametrize("explora", [False, True], ids=["all", "explora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_trainable_parameter_gets_a_gradient(name: str, explora: bool) -> None:
    """With masks none is zero throughout, but those that cannot matter; without, all are still part of the graph."""
    for masked in (True, False):
        objective = make(name, explora)
        outputs = objective(**batch(masked=masked))
        outputs["loss"].backward()
        assert all(math.isfinite(float(value.detach())) for value in outputs.values())
        assert not any(value.requires_grad for key, value in outputs.items() if key != "loss")
        trained = {key: p.grad for key, p in objective.named_parameters() if p.requires_grad}
        assert all(gradient is not None for gradient in trained.values())
        assert all(p.grad is None for p in objective.teacher.parameters())
        still = {key for key, gradient in trained.items() if not gradient.any()}  # type: ignore[union-attr]
        if masked:
            # lora_A waits for lora_B, which starts at zero
            assert {key for key in still if "lora_A" not in key} == set()
        else:
            assert any("ibot" in key for key in still) and not any("student_heads.dino" in key for key in still)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_is_the_sum_of_its_parts_on_tokens_taken_by_hand(name: str) -> None:
    objective, inputs = make(name, koleo_weight=0.3, ibot_weight=0.7), batch()
    student, teacher = tiny_backbone(name), tiny_backbone(name)
    if name == "dinov3_vit":  # in training it stretches positions by a global draw
        assert objective.student.config.pos_embed_rescale and not objective.teacher.training
        for model in (objective.student, student):
            model.config.pos_embed_rescale = None
    registers = getattr(student.config, "num_register_tokens", 0)
    options: dict[str, Any] = {"interpolate_pos_encoding": True} if name == "vit" else {}
    if name == "vit":
        student.embeddings.mask_token = nn.Parameter(torch.zeros(1, 1, 32))
    heads = objective.teacher_heads
    teacher.eval()
    whole = [teacher(inputs["global_crops"][:, i], **options).last_hidden_state for i in range(2)]
    hidden = [
        student(inputs["global_crops"][:, i], bool_masked_pos=inputs["masks"][:, i], **options).last_hidden_state
        for i in range(2)
    ]
    local = [student(inputs["local_crops"][:, i], **options).last_hidden_state[:, 0] for i in range(2)]
    targets = sinkhorn_targets(torch.cat([heads["dino"](tokens[:, 0]) for tokens in whole]), 0.04)
    dino = dino_loss(
        torch.stack([heads["dino"](tokens[:, 0]) for tokens in hidden], dim=1),
        torch.stack([heads["dino"](tokens) for tokens in local], dim=1),
        torch.stack(list(targets.split(3)), dim=1),
    )
    masks = torch.cat([inputs["masks"][:, i] for i in range(2)])
    patches = [torch.cat([tokens[:, 1 + registers :] for tokens in both])[masks] for both in (whole, hidden)]
    ibot = ibot_loss(heads["ibot"](patches[1]), sinkhorn_targets(heads["ibot"](patches[0]), 0.04), masks)
    koleo = sum(koleo_loss(tokens[:, 0]) for tokens in hidden)
    found = objective(**inputs)
    for key, expected in {"dino": dino, "ibot": ibot, "koleo": koleo, "loss": dino + 0.7 * ibot + 0.3 * koleo}.items():
        torch.testing.assert_close(found[key], expected, rtol=1e-4, atol=1e-5, check_device=False, msg=key)


@pytest.mark.parametrize("targets", ["sinkhorn", "centre"])
@pytest.mark.parametrize("explora", [False, True], ids=["all", "explora"])
def test_the_teacher_moves_at_the_end_of_a_step_and_by_the_average_alone(explora: bool, targets: str) -> None:
    objective = make(explora=explora, targets=targets)
    start = state(objective)
    assert all(
        torch.equal(start[name], start[name.replace("teacher", "student")]) for name in start if "teach" in name
    )
    objective.on_step_begin(5, 10)
    for seed in range(2):
        objective(**batch(seed=seed))["loss"].backward()
    assert changed(start, state(objective)) == set(), "forward and backward change nothing"
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    moved = changed(start, state(objective))
    assert moved and not any(name.startswith(("teacher", "centres")) for name in moved)
    objective.on_step_end(6, 10)
    now = state(objective)
    momentum = 1.0 - 0.5 * (1 + math.cos(math.pi / 2)) / 2
    assert momentum == pytest.approx(0.75) == objective.momentum
    for name in start:
        if name.startswith("teacher"):
            student = now[name.replace("teacher", "student", 1)]
            torch.testing.assert_close(now[name], 0.75 * start[name] + 0.25 * student)
    expected = {name.replace("student", "teacher", 1) for name in moved}
    assert changed(start, now) == moved | expected | set(objective.centres.state_dict(prefix="centres."))


def test_the_teacher_drops_nothing() -> None:
    student = tiny_backbone("dinov2", hidden_dropout_prob=0.5, drop_path_rate=0.5)
    objective = DinoV2Objective(student, copy.deepcopy(student), SMALL, 0).train()
    assert objective.student.training and not any(module.training for module in objective.teacher.modules())
    found = [objective(**batch()) for _ in range(3)]
    assert [len({each[name].item() for each in found}) for name in ("target_entropy", "dino")] == [1, 3]


def test_schedules_fit_the_run() -> None:
    objective = make(ema=[0.9, 1.0], ema_keeps=None, temperature_warmup=0.5)
    for total in (10, 1000):
        found = []
        for share in (0, 0.25, 0.5, 1):
            objective.on_step_begin(int(share * total), total)
            found.append((objective.teacher_temperature, objective.momentum))
        at = int(0.25 * total) / total
        expected = [
            (0.04, 0.9), (0.04 + 0.03 * at / 0.5, 1 - 0.05 * (1 + math.cos(math.pi * at))), (0.07, 0.95), (0.07, 1.0)
        ]  # fmt: skip
        assert found == [pytest.approx(pair) for pair in expected]
        decays = [objective.weight_decay(number, total, 0.04) for number in (0, total // 2, total)]
        assert decays == pytest.approx([0.04, 0.22, 0.4])
    objective.on_step_begin(10, 10)
    targets = objective(**batch())["target_entropy"]
    objective.on_step_begin(0, 10)
    assert objective(**batch())["target_entropy"] < targets, "a colder teacher is surer"


@pytest.mark.parametrize("ema", [[0.992, 1.0], [0.5, 0.9], [1.0, 1.0]])
def test_little_of_the_initial_weights_is_left_in_the_teacher(ema: list[float]) -> None:
    """Whatever the run's length: all momenta multiplied, as the objective has them. A long run keeps its first one."""
    kept, given = make(ema=ema), make(ema=ema, ema_keeps=None)
    for total in (1, 2, 3, 4, 5, 7, 9, 10, 11, 50, 100, 333, 800, 2000):
        left = {"kept": 1.0, "given": 1.0}
        for number in range(total):
            for name, objective in (("kept", kept), ("given", given)):
                objective.on_step_begin(number, total)
                left[name] *= objective.momentum
                if number == 0:
                    assert objective.momentum <= ema[0] and (name == "kept" or objective.momentum == ema[0])
        assert left["kept"] <= 0.05 + 1e-9
        changed_it = left["given"] > 0.05
        assert left["kept"] == pytest.approx(0.05 if changed_it else left["given"], rel=1e-6), total
    assert changed_it == (ema == [1.0, 1.0])
    third = make(ema=ema, ema_keeps=0.3)
    third.on_step_begin(0, 1)
    assert third.momentum == pytest.approx(0.3)


def test_a_lowered_average_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who has set `ema` hears that another value is taken; where it is taken, nothing is said."""
    told: list[str] = []
    monkeypatch.setattr(dinov2, "tell", told.append)
    given = make(ema=[0.99, 1.0], ema_keeps=None)
    for objective, total in ((make(ema=[0.99, 1.0]), 100), (given, 100), (make(), 9999)):
        for number in range(3):
            objective.on_step_begin(number, total)
    [line] = told
    tells(line, "ema_keeps", "0.942", "0.99", 100)


def test_the_share_that_is_left_is_that_of_the_weights() -> None:
    """Ones in the teacher, zeros in the student: what the teacher holds after the run is the share itself."""
    objective = make()
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter.fill_(1.0)
        for parameter in objective.student.parameters():
            parameter.zero_()
    for number in range(6):
        objective.on_step_begin(number, 6)
        objective.on_step_end(number + 1, 6)
    assert float(objective.teacher.embeddings.cls_token.mean()) <= 0.0500001


def test_frozen_prototypes_leave_no_trace_in_the_optimizer() -> None:
    """The first step after the freeze is that of a fresh AdamW, and its second moment is the gradient's own square."""
    objective = make(freeze_last_layer=0.5)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2, weight_decay=0.1)
    prototypes = objective.student_heads["dino"].prototypes
    start = prototypes.detach().clone()
    for number in range(6):
        objective.on_step_begin(number, 10)
        objective(**batch(seed=number))["loss"].backward()
        objective.on_gradients(number, 10)
        if number == 5:
            gradient = prototypes.grad.clone()
            fresh = start.clone().requires_grad_()
            fresh.grad = gradient.clone()
            torch.optim.AdamW([fresh], lr=1e-2, weight_decay=0.1).step()
        optimizer.step()
        optimizer.zero_grad()
        if number < 5:
            assert torch.equal(prototypes, start) and prototypes not in optimizer.state
    assert torch.equal(prototypes, fresh) and not torch.equal(prototypes, start)
    torch.testing.assert_close(optimizer.state[prototypes]["exp_avg_sq"], 0.001 * gradient.square())


def test_prototypes_stay_as_they_are_in_the_first_steps() -> None:
    objective = make(freeze_last_layer=0.2)
    names = {f"student_heads.{head}.last.parametrizations.weight.original1" for head in ("dino", "ibot")}
    for number in range(3):
        before = state(objective.student_heads)
        step(objective, number)
        moved = {f"student_heads.{name}" for name in changed(before, state(objective.student_heads))}
        assert moved and (names <= moved) == (number >= 2) and bool(names & moved) == (number >= 2)


@pytest.mark.parametrize("targets", ["sinkhorn", "centre"])
def test_a_stored_state_goes_on_bit_equal(targets: str, tmp_path: Path) -> None:
    first, second = make(targets=targets), make(targets=targets, seed=1)
    for number in range(2):
        step(first, number, seed=number)
    save_file(first.untrained_state(), tmp_path / "untrained.safetensors")
    stored = load_file(tmp_path / "untrained.safetensors")
    assert changed(stored, first.untrained_state()) == set()
    trained = {name: value for name, value in first.state_dict().items() if name not in stored}
    assert not any(name.startswith(("teacher", "centres")) for name in trained)
    second.load_state_dict(trained, strict=False)
    second.load_untrained_state(stored)
    for number in range(2, 4):
        step(first, number, seed=number)
        step(second, number, seed=number)
    assert changed(state(first), state(second)) == set()


@pytest.mark.parametrize("damage", ["one too few", "one too many", "another shape"])
def test_the_state_of_another_model_is_refused(damage: str) -> None:
    objective = make()
    before, stored = state(objective), objective.untrained_state()
    first = next(iter(stored))
    if damage == "one too few":
        del stored[first]
    else:
        stored[first if damage == "another shape" else "another"] = torch.zeros(1)
    refused(VerificationError, lambda: objective.load_untrained_state(stored), "teacher", "new run")
    assert changed(before, state(objective)) == set()


def test_the_teacher_of_a_vit_is_a_plain_vit(tmp_path: Path) -> None:
    """A ViT has no mask token, its student gets one; a pooler is left alone. One with a mask token keeps it."""
    objective = make("vit")
    step(objective)
    mask_token = objective.student.embeddings.mask_token
    assert mask_token.abs().max() > 0, "the mask token is trained"
    assert changed(tiny_backbone("vit").pooler.state_dict(), objective.student.pooler.state_dict()) == set()
    objective.backbone().save_pretrained(tmp_path)
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert changed(again.state_dict(), objective.backbone().state_dict()) == set()

    config = ViTConfig(**{**TINY["vit"], "patch_size": 7, "image_size": 28})
    with_token = ViTModel(config, use_mask_token=True)
    own = with_token.embeddings.mask_token
    objective = DinoV2Objective(with_token, copy.deepcopy(with_token), SMALL, 0)
    assert objective.student.embeddings.mask_token is own
    assert "teacher.embeddings.mask_token" in objective.untrained_state()


def test_heads_come_from_the_seed_and_leave_the_global_generator_alone() -> None:
    student = tiny_backbone("dinov2")
    before = torch.get_rng_state()
    one, two, other = (DinoV2Objective(student, copy.deepcopy(student), SMALL, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert changed(state(one.student_heads), state(two.student_heads)) == set()
    assert changed(state(one.student_heads), state(other.student_heads)) != set()
    assert set(make(separate_ibot_head=False).student_heads) == {"dino"} and make()(**batch(n_local=0))["dino"] > 0


def test_equal_pictures_show_as_a_collapse() -> None:
    """The figures that the detector reads: no spread, and flat targets."""
    inputs = batch(n=4)
    inputs["global_crops"][:] = inputs["global_crops"][:1, :1]
    inputs["masks"][:] = False
    found = make()(**inputs)
    assert found["feature_std"] < 1e-3 and found["target_entropy"] == pytest.approx(1.0, abs=1e-3)
    healthy = make()(**batch(n=4))
    assert healthy["feature_std"] > 0.02 and healthy["target_entropy"] < 0.995
    one = make(targets="centre", teacher_temperature=[1e-4, 1e-4])(**inputs)
    assert one["usage_entropy"] < 1e-3 < healthy["usage_entropy"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_prototypes", 1), ("head_hidden", 0), ("bottleneck", 1), ("student_temperature", 0),
        ("teacher_temperature", [0.04]), ("teacher_temperature", [0.0, 0.07]), ("temperature_warmup", 1.5),
        ("ema", [0.9, 1.1]), ("ema", [0.9, 0.8]), ("ibot_weight", -1), ("koleo_weight", -1),
        ("ema_keeps", 0), ("ema_keeps", 1.0),
        ("freeze_last_layer", -0.1), ("mask_share", 2), ("mask_ratio", [0.5, 0.1]), ("mask_ratio", [0.0, 0.5]),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(key: str, value: Any) -> None:
    refused(RecipeError, lambda: replace(SMALL, **{key: value}), f"phase4.dinov2.{key}", value)
