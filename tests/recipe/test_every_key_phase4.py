"""Every key of phase 4's section changes something: one perturbation a key, seen on what the stage is built from."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, striped_image, tiny_backbone, write_parquet_source
from transformers import TrainerCallback

from natix_hf.data.config import AugmentConfig, DataConfig
from natix_hf.data.rows import ImageData, load_image_data
from natix_hf.errors import RecipeError
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.phases import phase4_explora
from natix_hf.recipe import parse_recipe
from natix_hf.runs.context import PhaseContext
from natix_hf.runs.graph import PHASES
from natix_hf.ssl.explora import plain_backbone
from natix_hf.trainers import self_supervised
from natix_hf.trainers.config import TRAINING_DEFAULTS
from natix_hf.trainers.explora import ExploraTrainer
from natix_hf.trainers.explora_config import EXPLORA_DEFAULTS

TRAIN, TOTAL = {"dataloader_num_workers": 0, "per_device_train_batch_size": 8, "rank": 4}, 10
MAE = {"objective": "mae", "mae": {"decoder_width": 16, "decoder_heads": 2}}
DINO = {"objective": "dinov2", "dinov2": {"n_prototypes": 16, "head_hidden": 16, "bottleneck": 8},
        "crops": {"local_crops": 1}}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    source = write_parquet_source(tmp_path_factory.mktemp("source"))
    return load_image_data(DataConfig(source=str(source), group_by="video_info.vid_id"))


@pytest.fixture
def look(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`look(section)`: what a `phase4:` section makes; a batch of two views, and the objective half-way through."""

    class Stub:
        seen: dict[str, Any]

        def __init__(self, **given: Any) -> None:
            Stub.seen = given
            self.state = SimpleNamespace(log_history=[], best_metric=0.0, best_global_step=0, global_step=0)

        def add_callback(self, callback: Any) -> None:
            callback.proof = None

        def train(self, resume_from_checkpoint: str | None = None) -> None:
            pass

    monkeypatch.setattr(self_supervised, "ExploraTrainer", Stub)

    def run(section: dict[str, Any]) -> SimpleNamespace:
        config = parse_recipe({"phase4": TRAIN | section}).phase4
        processor = make_processor(ModelConfig(config={"model_type": "dinov2", "patch_size": 7}, image_size=28))
        rows = data.role("train"), data.role("val_select")
        backbone = tiny_backbone("dinov2")
        self_supervised.pretrain_backbone(
            backbone, processor, rows[0], rows, config, AugmentConfig(), lambda merged: tmp_path, tmp_path / "none"
        )
        seen = SimpleNamespace(**Stub.seen)
        items = [seen.train_dataset[key] for key in [(0, 0), (1, 3), (2, 5), (3, 7)]]
        batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        seen.model.train()
        seen.model.on_step_begin(TOTAL // 2, TOTAL)
        seen.loss = seen.model(**batch)["loss"]
        seen.loss.backward()
        seen.model.on_gradients(TOTAL // 2, TOTAL)
        seen.views = {name: value.double().numpy() for name, value in batch.items()}
        seen.names = sorted(name for name, p in plain_backbone(backbone).named_parameters() if p.requires_grad)
        seen.shapes = sorted((name, tuple(p.shape)) for name, p in seen.model.named_parameters())
        return seen

    return run


def _scaling(seen: Any) -> float:
    return float(plain_backbone(seen.model.backbone()).encoder.layer[0].attention.q_proj.scaling["default"])


def _prototypes_move(seen: Any) -> bool:
    return bool(seen.model.student_heads["dino"].prototypes.grad.abs().sum() > 0)


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
]


@pytest.mark.parametrize(
    ("section", "key", "value", "observe", "base"), EFFECTS, ids=[f"{s}.{k}" for s, k, *_ in EFFECTS]
)
def test_every_key_changes_something(
    section: str, key: str, value: Any, observe: Callable[[Any], Any], base: dict[str, Any], look: Callable[..., Any]
) -> None:
    inner = section.partition(".")[2]
    changed = base | ({inner: base.get(inner, {}) | {key: value}} if inner else {key: value})
    before, after, again = (json.dumps(_plain(observe(look(content)))) for content in (base, changed, base))
    assert before != after
    assert before == again  # what differed was the key, not chance


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return {name: item.tolist() for name, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("key", ["eval_strategy", "eval_steps", "save_strategy", "load_best_model_at_end"])
def test_what_probes_decide_is_refused(key: str) -> None:
    value = {"eval_steps": 5, "load_best_model_at_end": True}.get(key, "epoch")
    with pytest.raises(RecipeError, match=f"phase4.{key} is refused: phase4.probe_steps decides"):
        parse_recipe({"phase4": {key: value}})


def test_training_fields_have_defaults_of_their_own() -> None:
    recipe = parse_recipe({"phase4": {"learning_rate": 1e-2, "supervised": {"learning_rate": 3e-2}}})
    assert recipe.phase4.training == EXPLORA_DEFAULTS | {"learning_rate": 1e-2}
    assert recipe.phase4.supervised is not None and recipe.phase4.supervised.training["learning_rate"] == 3e-2
    assert recipe.phase4.supervised.training["num_train_epochs"] == recipe.phase1.training["num_train_epochs"]


@pytest.mark.parametrize("where", ["phase4", "phase4.supervised"])
@pytest.mark.parametrize("key", ["hub_token", "push_to_hub", "output_dir"])
def test_what_the_run_decides_is_refused_in_every_section(where: str, key: str) -> None:
    section: dict[str, Any] = {key: "x"}
    with pytest.raises(RecipeError, match=f"{where}.{key} is refused"):
        parse_recipe({"phase4": {"supervised": section} if "." in where else section})


def test_a_further_source_counts_with_what_it_holds(tmp_path: Path) -> None:
    digests = []
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text, encoding="utf-8")
        digests.append(parse_recipe({"phase4": {"unlabelled": [str(tmp_path / name)]}}).section_sha256("phase4"))
    assert digests[0] == digests[1] != digests[2]


# What a schedule does shows only in a training: four real steps.

STEPS: dict[str, Any] = {
    "max_steps": 4, "probe_steps": 2, "learning_rate": 2e-3, "logging_steps": 1, "probe_rows": 40,
    "mae": {"decoder_width": 16, "decoder_heads": 2, "decoder_layers": 1},
    "dinov2": {"n_prototypes": 32, "head_hidden": 32, "bottleneck": 16}, "crops": {"local_crops": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`trained(section)`: losses, probes and last weights; each `time` is a training of its own."""

    class Watch(TrainerCallback):
        def __init__(self, objective: Any) -> None:
            self.objective = objective

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.first = self.weights()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.last = self.weights()

        def weights(self) -> dict[str, torch.Tensor]:
            return {name: value.clone() for name, value in self.objective.state_dict().items()}

    @functools.cache
    def run(content: str, time: int) -> SimpleNamespace:
        folder, watches = tmp_path_factory.mktemp("trained"), []
        init = ExploraTrainer.__init__

        def watched(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            watches.append(Watch(self.objective))
            self.add_callback(watches[0])

        def save(backbone: Any) -> Path:
            backbone.save_pretrained(folder / "backbone")
            return folder / "backbone"

        processor = make_processor(ModelConfig(config={"model_type": "dinov2", "patch_size": 7}, image_size=28))
        rows = data.role("train"), data.role("val_select")
        config = parse_recipe({"phase4": json.loads(content)}).phase4
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ExploraTrainer, "__init__", watched)
            report = self_supervised.pretrain_backbone(
                tiny_backbone("dinov2"),
                processor,
                rows[0],
                rows,
                config,
                AugmentConfig(),
                save,
                folder / "checkpoints",
            )
        history = report["history"]
        return SimpleNamespace(
            losses=[row["loss"] for row in history if "loss" in row],
            probes=[row["step"] for row in history if "eval_spread" in row],
            best=report["best_score"], first=watches[0].first, last=watches[0].last,
        )  # fmt: skip

    return lambda section, time=0: run(json.dumps(section, sort_keys=True), time)


def _last(part: str) -> Callable[[Any], Any]:
    return lambda s: {name: value.tolist() for name, value in s.last.items() if name.startswith(part)}


def _prototypes_turned(seen: Any) -> bool:
    """Whether their directions did: only those count."""
    [name] = [name for name in seen.last if name.startswith("student_heads.dino") and name.endswith("original1")]
    first, last = (torch.nn.functional.normalize(state[name], dim=-1) for state in (seen.first, seen.last))
    return not torch.allclose(first, last, atol=1e-6)


@pytest.mark.parametrize(
    ("objective", "section", "key", "value", "observe"),
    [
        ("mae", "", "alpha", 1.0, lambda s: s.losses),
        ("mae", "", "probe_steps", 3, lambda s: s.probes),
        ("mae", "", "probe_steps", 0, lambda s: s.best),
        ("dinov2", "dinov2", "teacher_temperature", [0.05, 0.07], lambda s: s.losses[0]),
        ("dinov2", "dinov2", "teacher_temperature", [0.04, 0.1], lambda s: s.losses[-1]),
        ("dinov2", "dinov2", "temperature_warmup", 1.0, lambda s: s.losses[-1]),
        ("dinov2", "dinov2", "ema", [0.5, 1.0], _last("teacher.")),
        ("dinov2", "dinov2", "ema", [0.992, 0.993], _last("teacher.")),
        ("dinov2", "dinov2", "weight_decay_end", None, _last("student_heads.")),
        ("dinov2", "dinov2", "freeze_last_layer", 1.0, _prototypes_turned),
    ],
)
def test_schedules_change_a_training(
    objective: str, section: str, key: str, value: Any, observe: Callable[[Any], Any], trained: Callable[..., Any]
) -> None:
    before = TRAIN | STEPS | {"objective": objective}
    after = before | ({section: before[section] | {key: value}} if section else {key: value})
    assert observe(trained(before)) != observe(trained(after))
    assert observe(trained(before)) == observe(trained(before, 1))  # what differed was the key, not chance


@pytest.mark.parametrize(("objective", "section"), [("mae", "dinov2"), ("mae", "crops"), ("dinov2", "mae")])
def test_the_section_of_the_other_objective_changes_nothing(
    objective: str, section: str, trained: Callable[..., Any]
) -> None:
    other = {"dinov2": {"head_hidden": 8}, "crops": {"local_crops": 2}, "mae": {"crop_scale": [0.1, 0.2]}}
    before = TRAIN | STEPS | {"objective": objective}
    assert trained(before).losses == trained(before | {section: STEPS[section] | other[section]}).losses


# Each of the three kinds of crops has its own share of blur; the second global one alone is solarised.


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("blur", [0.0, 0.0, 1.0], "local_crops"),
        ("blur", [0.0, 1.0, 0.0], "second"),
        ("blur", [1.0, 0.0, 0.0], "first"),
        ("solarise", 1.0, "second"),
    ],
)
def test_which_crops_a_share_is_of(key: str, value: Any, changed: str, look: Callable[..., Any]) -> None:
    plain = DINO | {"crops": {"local_crops": 1, "blur": [0.0, 0.0, 0.0], "solarise": 0.0, "jitter_share": 0.0}}
    before, after = (look(c).views for c in (plain, plain | {"crops": plain["crops"] | {key: value}}))
    parts = [
        {"first": v["global_crops"][:, 0], "second": v["global_crops"][:, 1], "local_crops": v["local_crops"]}
        for v in (before, after)
    ]
    assert not np.array_equal(parts[0][changed], parts[1][changed])
    if changed == "second":  # drawn before it
        assert np.array_equal(parts[0]["first"], parts[1]["first"])
    if changed == "local_crops":
        assert np.array_equal(before["global_crops"], after["global_crops"])


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
    monkeypatch.setattr(phase4_explora, "_adapt", lambda context: {})
    monkeypatch.setattr(
        phase4_explora, "_train", lambda context, folder, model, stage: ran.append((folder.name, model, stage)) or {}
    )
    return ran


def test_phase4_supervised(tmp_path: Path, stages: list[Any]) -> None:
    """null is phase 1's; a section of its own is whole, with its own TrainingArguments over the same defaults."""
    context = _context(tmp_path, "synthetic")
    phase4_explora.run(context)
    assert [stage for _, _, stage in stages] == [context.recipe.phase1] * 2
    assert [name for name, _, _ in stages] == ["phase4_explora", "control"]
    assert stages[0][1].backbone == str(tmp_path / "phase4_explora" / "backbone") and stages[1][1].backbone is None
    stages.clear()
    own = {"adapter": "lora", "adapter_options": {"r": 4}, "num_train_epochs": 3, "warmup_steps": 7}
    context = _context(tmp_path, "synthetic", supervised=own)
    phase4_explora.run(context)
    assert [stage for _, _, stage in stages] == [context.recipe.phase4.supervised] * 2
    stage = stages[0][2]
    assert (stage.adapter, stage.adapter_options, stage.where) == ("lora", {"r": 4}, "phase4.supervised")
    assert stage.training == TRAINING_DEFAULTS | {"num_train_epochs": 3.0, "warmup_steps": 7.0}
    assert parse_recipe({"phase4": {"supervised": {}}}).phase4.supervised is not None
    assert parse_recipe({"phase4": {"supervised": None}}).phase4.supervised is None


def test_phase4_use_labeled_data(tmp_path: Path, stages: list[Any]) -> None:
    phase4_explora.run(_context(tmp_path, "synthetic", use_labeled_data=False))
    assert stages == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": -1}, r"phase4\.supervised\.learning_rate is -1"),
        ({"learning_rat": 1}, r"unknown key phase4\.supervised\.learning_rat, did you mean 'learning_rate'"),
        ({"seed": "x"}, r"phase4\.supervised\.seed is 'x' \(str\): expected a whole number"),
        ({"adapter": "lorra"}, r"phase4\.supervised\.adapter is 'lorra', did you mean 'lora'"),
        ({"adapter_options": {"r": 4}}, r"phase4\.supervised\.adapter_options is for an adapter of PEFT"),
        ({"ema_decay": 2}, r"phase4\.supervised\.ema_decay is 2"),
        ({"training": {"seed": 1}}, r"unknown key phase4\.supervised\.training"),
        ({"where": "phase1"}, r"unknown key phase4\.supervised\.where"),
        (5, r"phase4\.supervised is 5: expected a section of keys"),
    ],
)
def test_errors_of_the_supervised_stage_name_it(given: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"phase4": {"supervised": given}})


TRAINING: dict[str, Any] = {
    "max_steps": 12, "learning_rate": 1e-4, "weight_decay": 0.0, "lr_scheduler_type": "linear", "warmup_steps": 7.0,
    "max_grad_norm": 0.3, "per_device_train_batch_size": 5, "save_total_limit": 4, "logging_steps": 3.0,
    "ddp_find_unused_parameters": True, "dataloader_num_workers": 0, "report_to": ["tensorboard"], "seed": 1,
    # and some that have no default here
    "gradient_accumulation_steps": 4, "optim": "adafactor", "adam_beta2": 0.9, "run_name": "mine",
    "activation_checkpointing": True,
}  # fmt: skip


def test_all_defaults_are_among_them() -> None:
    assert set(EXPLORA_DEFAULTS) <= set(TRAINING)


class _Seen(Exception):
    """Carries what a stubbed function was called with."""


@pytest.mark.parametrize("key", TRAINING)
def test_phase4_training_arguments(key: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any field of TrainingArguments, given under phase4, reaches the Trainer of the self-supervised stage."""

    def stop(*, args: Any, **_: Any) -> None:
        raise _Seen(args)

    monkeypatch.setattr(self_supervised, "ExploraTrainer", stop)
    config = parse_recipe({"phase4": {"objective": "mae", key: TRAINING[key]}}).phase4
    if key in EXPLORA_DEFAULTS:
        assert config.training[key] != EXPLORA_DEFAULTS[key]
    with pytest.raises(_Seen) as caught:
        self_supervised.pretrain_backbone(
            tiny_backbone("dinov2", layers=2),
            make_processor(ModelConfig(config={"model_type": "dinov2", "patch_size": 7}, image_size=28)),
            data.role("train"), None, config, AugmentConfig(), lambda backbone: tmp_path, tmp_path / "checkpoints",
        )  # fmt: skip
    value = getattr(caught.value.args[0], key)
    assert getattr(value, "value", value) == TRAINING[key]


@pytest.mark.parametrize("key", ["save_steps", "metric_for_best_model", "greater_is_better"])
def test_the_rest_that_probes_decide_is_refused_too(key: str) -> None:
    value: Any = {"save_steps": 5, "greater_is_better": False}.get(key, "mcc")
    with pytest.raises(RecipeError, match=rf"phase4\.{key} is refused: phase4\.probe_steps decides"):
        parse_recipe({"phase4": {key: value}})
    assert parse_recipe({"phase4": {"probe_steps": 0, "save_steps": 5}}).phase4.training["save_steps"] == 5


def test_phase4_unlabelled(tmp_path: Path, parquet_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are among the images, after those of train."""

    def stop(backbone: Any, processor: Any, images: Any, *rest: Any) -> None:
        raise _Seen(images)

    monkeypatch.setattr(phase4_explora, "pretrain_backbone", stop)
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


def test_epochs_are_not_ignored_beside_steps() -> None:
    """max_steps, which has a default here, would win in silence."""
    with pytest.raises(RecipeError, match=r"phase4\.num_train_epochs is 5\.0: .*unless max_steps=-1"):
        parse_recipe({"phase4": {"num_train_epochs": 5}})
    training = parse_recipe({"phase4": {"num_train_epochs": 5, "max_steps": -1}}).phase4.training
    assert (training["num_train_epochs"], training["max_steps"]) == (5.0, -1)


def test_smoothed_labels_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"phase4\.label_smoothing_factor is 0\.1: .*no labels are read"):
        parse_recipe({"phase4": {"label_smoothing_factor": 0.1}})
