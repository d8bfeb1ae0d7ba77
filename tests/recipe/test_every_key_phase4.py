"""Every key of phase 4's section changes something: one perturbation a key, seen on what the stage is built from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, striped_image, tiny_backbone, write_parquet_source
from effects import Look, changed, remembered, require_effect
from torch.utils.data import default_collate
from transformers import TrainerCallback

from natix_hf.data.asked import ask
from natix_hf.data.config import AugmentConfig, DataConfig
from natix_hf.data.rows import ImageData, load_image_data
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.phases import phase4_adapt, phase4_explora
from natix_hf.recipe import parse_recipe
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.graph import PHASES
from natix_hf.ssl.explora import plain_backbone
from natix_hf.trainers import self_supervised
from natix_hf.trainers.explora import ExploraTrainer
from natix_hf.trainers.supervised_config import SupervisedConfig

TOTAL = 10
TRAIN: dict[str, Any] = {"dataloader_num_workers": 0, "per_device_train_batch_size": 8, "rank": 4}
MAE = {"phase4": TRAIN | {"objective": "mae", "mae": {"decoder_width": 16, "decoder_heads": 2}}}
DINO = {"phase4": TRAIN | {"objective": "dinov2", "dinov2": {"n_prototypes": 16, "head_hidden": 16, "bottleneck": 8},
                           "crops": {"local_crops": 1}}}  # fmt: skip
DIET = {"phase4": TRAIN | {"objective": "diet"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    source = write_parquet_source(tmp_path_factory.mktemp("source"))
    return load_image_data(DataConfig(source=str(source), group_by="video_info.vid_id"))


def _pretrain(data: ImageData, content: dict[str, Any], folder: Path) -> tuple[Any, dict[str, Any]]:
    """A tiny backbone after stage (a) with the section of `content`, and the report."""

    def save(merged: Any) -> Path:
        merged.save_pretrained(folder / "backbone")
        return folder / "backbone"

    backbone, rows = tiny_backbone("dinov2"), (data.role("train"), data.role("val_select"))
    processor = make_processor(ModelConfig(config={"model_type": "dinov2", "patch_size": 7}, image_size=28))
    config = parse_recipe(content).phase4
    report = self_supervised.pretrain_backbone(
        backbone, processor, rows[0], (ask(rows[0]), ask(rows[1])), config, AugmentConfig(), save,
        folder / "checkpoints",
    )  # fmt: skip
    return backbone, report


@pytest.fixture(scope="module")
def look(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Look:
    """`look(content)`: what a `phase4:` section makes; a batch of two views, and the objective half-way through."""

    class Stub:
        seen: dict[str, Any]

        def __init__(self, **given: Any) -> None:
            Stub.seen = given
            self.state = SimpleNamespace(log_history=[], best_metric=0.0, best_global_step=0, global_step=0)
            self.pace = SimpleNamespace(facts=dict)

        def add_callback(self, callback: Any) -> None:
            callback.proof = None

        def train(self, resume_from_checkpoint: str | None = None) -> None:
            pass

    def run(content: dict[str, Any]) -> SimpleNamespace:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self_supervised, "ExploraTrainer", Stub)
            backbone, _ = _pretrain(data, content, tmp_path_factory.mktemp("look"))
        seen = SimpleNamespace(**Stub.seen)
        items = [seen.train_dataset[key] for key in [(0, 0), (1, 3), (2, 5), (3, 7)]]
        batch = seen.train_dataset.finish(default_collate(items))
        seen.model.train()
        seen.model.on_step_begin(TOTAL // 2, TOTAL)
        seen.loss = seen.model(**batch)["loss"]
        seen.loss.backward()
        seen.model.on_gradients(TOTAL // 2, TOTAL)
        seen.views = {name: value.double().numpy() for name, value in batch.items()}
        seen.names = sorted(name for name, p in plain_backbone(backbone).named_parameters() if p.requires_grad)
        seen.shapes = sorted((name, tuple(p.shape)) for name, p in seen.model.named_parameters())
        return seen

    return remembered(run)


def _scaling(seen: Any) -> float:
    return float(plain_backbone(seen.model.backbone()).encoder.layer[0].attention.q_proj.scaling["default"])


def _prototypes_move(seen: Any) -> bool:
    return seen.model.student_heads["dino"].prototypes.grad is not None


def _loss(seen: Any) -> float:
    return float(seen.loss.detach())


# section, key, new value, what must differ, the settings of both sides.
EFFECTS: list[tuple[str, str, Any, Callable[[Any], Any], dict[str, Any]]] = [
    ("phase4", "objective", "mae", lambda s: type(s.model).__name__, DINO),
    ("phase4", "trainable", "all", lambda s: s.names, MAE),
    ("phase4", "trainable", "blocks", lambda s: s.names, MAE),
    ("phase4", "rank", 2, lambda s: s.shapes, MAE),
    ("phase4", "alpha", 1.0, _scaling, MAE),
    ("phase4", "unfreeze_blocks", [0], lambda s: s.names, MAE),
    ("phase4", "probe_steps", 7, lambda s: (s.args.eval_steps, s.args.save_steps), MAE),
    ("phase4", "probe_rows", 20, lambda s: [len(chosen) for chosen in s.probe.chosen], MAE),
    ("phase4.mae", "mask_ratio", 0.5, _loss, MAE),
    ("phase4.mae", "norm_pix_loss", False, _loss, MAE),
    ("phase4.mae", "decoder_layers", 1, lambda s: s.shapes, MAE),
    ("phase4.mae", "decoder_width", 32, lambda s: s.shapes, MAE),
    ("phase4.mae", "decoder_heads", 4, _loss, MAE),
    ("phase4.mae", "crop_scale", [0.1, 0.2], lambda s: s.views, MAE),
    ("phase4.dinov2", "n_prototypes", 12, lambda s: s.shapes, DINO),
    ("phase4.dinov2", "head_hidden", 12, lambda s: s.shapes, DINO),
    ("phase4.dinov2", "bottleneck", 4, lambda s: s.shapes, DINO),
    ("phase4.dinov2", "separate_ibot_head", False, lambda s: s.shapes, DINO),
    ("phase4.dinov2", "targets", "centre", _loss, DINO),
    ("phase4.dinov2", "student_temperature", 0.5, _loss, DINO),
    ("phase4.dinov2", "teacher_temperature", [0.1, 0.2], _loss, DINO),
    ("phase4.dinov2", "temperature_warmup", 1.0, lambda s: s.model.teacher_temperature, DINO),
    ("phase4.dinov2", "ema", [0.5, 1.0], lambda s: s.model.momentum, DINO),
    ("phase4.dinov2", "ema_keeps", None, lambda s: s.model.momentum, DINO),
    ("phase4.dinov2", "weight_decay_end", 0.9, lambda s: s.model.weight_decay(TOTAL // 2, TOTAL, 0.04), DINO),
    ("phase4.dinov2", "ibot_weight", 5.0, _loss, DINO),
    ("phase4.dinov2", "koleo_weight", 5.0, _loss, DINO),
    ("phase4.dinov2", "freeze_last_layer", 0.9, _prototypes_move, DINO),
    ("phase4.dinov2", "mask_share", 1.0, lambda s: s.views["masks"], DINO),
    ("phase4.dinov2", "mask_ratio", [0.9, 0.9], lambda s: s.views["masks"], DINO),
    ("phase4.crops", "local_crops", 3, lambda s: s.views["local_crops"].shape, DINO),
    ("phase4.crops", "local_size", 21, lambda s: s.views["local_crops"].shape, DINO),
    ("phase4.crops", "global_scale", [0.1, 0.1], lambda s: s.views["global_crops"], DINO),
    ("phase4.crops", "local_scale", [0.5, 0.5], lambda s: s.views["local_crops"], DINO),
    ("phase4.crops", "ratio", [2.0, 3.0], lambda s: s.views["global_crops"], DINO),
    ("phase4.crops", "flip", False, lambda s: s.views["global_crops"], DINO),
    ("phase4.crops", "jitter", [0.0, 0.0, 0.0, 0.0], lambda s: s.views["global_crops"], DINO),
    ("phase4.crops", "jitter_share", 0.0, lambda s: s.views["global_crops"], DINO),
    ("phase4.crops", "grey", 1.0, lambda s: s.views["global_crops"], DINO),
    ("phase4.crops", "blur", [0.0, 1.0, 0.0], lambda s: s.views["global_crops"], DINO),
    ("phase4.crops", "solarise", 1.0, lambda s: s.views["global_crops"], DINO),
    ("phase4.crops", "interpolation", "bicubic", lambda s: s.views["global_crops"], DINO),
    ("phase4.diet", "label_smoothing", 0.1, _loss, DIET),
    ("phase4.diet", "crop_scale", [0.1, 0.2], lambda s: s.views["pixel_values"], DIET),
    ("phase4.diet", "jitter", 0.0, lambda s: s.views["pixel_values"], DIET),
    ("phase4.diet", "grey", 1.0, lambda s: s.views["pixel_values"], DIET),
    ("phase4.diet", "blur", 0.0, lambda s: s.views["pixel_values"], DIET),
]


@pytest.mark.parametrize(
    ("section", "key", "value", "observe", "base"), EFFECTS, ids=[f"{s}.{k}" for s, k, *_ in EFFECTS]
)
def test_every_key_changes_something(
    section: str, key: str, value: Any, observe: Callable[[Any], Any], base: dict[str, Any], look: Look
) -> None:
    require_effect(look, observe, base, f"{section}.{key}", value)


# What a schedule does shows only in a training: four real steps.

STEPS: dict[str, Any] = {
    "max_steps": 4, "probe_steps": 2, "learning_rate": 2e-3, "logging_steps": 1, "probe_rows": 40,
    "mae": {"decoder_width": 16, "decoder_heads": 2, "decoder_layers": 1},
    "dinov2": {"n_prototypes": 32, "head_hidden": 32, "bottleneck": 16}, "crops": {"local_crops": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Look:
    """`trained(content)`: losses, probes, and first and last weights."""

    class Watch(TrainerCallback):
        def __init__(self, objective: Any) -> None:
            self.objective = objective

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.first = self.weights()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.last = self.weights()

        def weights(self) -> dict[str, torch.Tensor]:
            return {name: value.clone() for name, value in self.objective.state_dict().items()}

    def run(content: dict[str, Any]) -> SimpleNamespace:
        watches = []
        init = ExploraTrainer.__init__

        def watched(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            watches.append(Watch(self.objective))
            self.add_callback(watches[0])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ExploraTrainer, "__init__", watched)
            _, report = _pretrain(data, content, tmp_path_factory.mktemp("trained"))
        history = report["history"]
        return SimpleNamespace(
            losses=[row["loss"] for row in history if "loss" in row],
            probes=[row["step"] for row in history if "eval_spread" in row],
            best=report["best_score"], first=watches[0].first, last=watches[0].last,
        )  # fmt: skip

    return remembered(run)


def _last(part: str) -> Callable[[Any], Any]:
    return lambda s: {name: value for name, value in s.last.items() if name.startswith(part)}


def _prototypes_turned(seen: Any) -> bool:
    """Whether their directions did: only those count."""
    [name] = [name for name in seen.last if name.startswith("student_heads.dino") and name.endswith("original1")]
    first, last = (torch.nn.functional.normalize(state[name], dim=-1) for state in (seen.first, seen.last))
    return not torch.allclose(first, last, atol=1e-6)


@pytest.mark.parametrize(
    ("objective", "key", "value", "observe"),
    [
        ("mae", "alpha", 1.0, lambda s: s.losses),
        ("mae", "probe_steps", 3, lambda s: s.probes),
        ("mae", "probe_steps", 0, lambda s: s.best),
        ("dinov2", "dinov2.teacher_temperature", [0.05, 0.07], lambda s: s.losses[0]),
        ("dinov2", "dinov2.teacher_temperature", [0.04, 0.1], lambda s: s.losses[-1]),
        ("dinov2", "dinov2.temperature_warmup", 1.0, lambda s: s.losses[-1]),
        ("dinov2", "dinov2.ema", [0.1, 1.0], _last("teacher.")),
        ("dinov2", "dinov2.ema", [0.992, 0.993], _last("teacher.")),
        ("dinov2", "dinov2.ema_keeps", None, _last("teacher.")),
        ("dinov2", "dinov2.weight_decay_end", None, _last("student_heads.")),
        ("dinov2", "dinov2.freeze_last_layer", 1.0, _prototypes_turned),
    ],
)
def test_schedules_change_a_training(
    objective: str, key: str, value: Any, observe: Callable[[Any], Any], trained: Look
) -> None:
    before = {"phase4": TRAIN | STEPS | {"objective": objective}}
    require_effect(trained, observe, before, f"phase4.{key}", value)


@pytest.mark.parametrize(
    ("objective", "key", "value"),
    [
        ("mae", "dinov2.head_hidden", 8), ("mae", "crops.local_crops", 2), ("mae", "diet.jitter", 0.1),
        ("dinov2", "mae.crop_scale", [0.1, 0.2]), ("diet", "dinov2.ema_keeps", None),
    ],
)  # fmt: skip
def test_the_section_of_the_other_objective_changes_nothing(
    objective: str, key: str, value: Any, trained: Look
) -> None:
    before = {"phase4": TRAIN | STEPS | {"objective": objective}}
    assert trained(before).losses == trained(changed(before, f"phase4.{key}", value)).losses


# The stage after it, and the rows of both.


def _context(folder: Path, source: str, **phase4: Any) -> PhaseContext:
    recipe = parse_recipe(
        {
            "data": {"source": source, "group_by": "video_info.vid_id"},
            "model": {"config": TINY["dinov2"], "image_size": 28},
            "phase1": {"learning_rate": 3e-4, "dataloader_num_workers": 0},
            "phase4": {"trainable": "all"} | phase4,
        }
    )
    return PhaseContext(PHASES[4], recipe, folder, functools.cache(lambda: load_image_data(recipe.data)), False)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The supervised stages that phase 4 runs: folder, model and settings; nothing is trained."""
    ran: list[Any] = []
    monkeypatch.setattr(phase4_explora, "adapt_backbone", lambda context: {})
    monkeypatch.setattr(phase4_explora, "_train", lambda _, found, *rest: ran.append((found.name, *rest)) or {})
    return ran


def test_phase4_supervised(tmp_path: Path, stages: list[Any]) -> None:
    """null is phase 1's; a section of its own is whole."""
    context = _context(tmp_path, "synthetic")
    phase4_explora.run(context)
    assert [stage for _, _, stage in stages] == [context.recipe.phase1] * 2
    assert [name for name, _, _ in stages] == ["phase4_explora", "control"]
    assert stages[0][1].backbone == str(tmp_path / "phase4_explora" / "backbone") and stages[1][1].backbone is None
    stages.clear()
    own = {"adapter": "lora", "adapter_options": {"r": 4}, "num_train_epochs": 3, "warmup_steps": 7}
    phase4_explora.run(_context(tmp_path, "synthetic", supervised=own))
    assert [stage for _, _, stage in stages] == [SupervisedConfig(**own, where="phase4.supervised")] * 2


class _Seen(Exception):
    """Carries what a stubbed function was called with."""


def test_phase4_unlabelled(tmp_path: Path, parquet_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are among the images, after those of train."""

    def stop(backbone: Any, processor: Any, images: Any, *rest: Any) -> None:
        raise _Seen(images)

    monkeypatch.setattr(phase4_adapt, "pretrain_backbone", stop)
    folders = []
    for name, count in (("monday", 4), ("tuesday", 3)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        rng = np.random.default_rng(count)
        for i in range(count):
            striped_image(0, rng).save(folders[-1] / f"{i}.png")
    for sources in ([], folders[:1], folders):
        context = _context(tmp_path, str(parquet_source), unlabelled=[str(path) for path in sources])
        with pytest.raises(_Seen) as caught:
            phase4_explora.run(context)
        images = caught.value.args[0]
        train = context.load_data().role("train").ids
        assert images.ids[: len(train)] == train
        added = [row_id.partition(":")[0] for row_id in images.ids[len(train) :]]
        assert added == [path.name for path in sources for _ in path.iterdir()]
        assert len(images) == len(images.decoded) == len(images.source) == len(images.labels)
