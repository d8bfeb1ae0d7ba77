"""Fields of TrainingArguments in a recipe: defaults, types, where they go, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from conftest import tiny_backbone
from facts import tells
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from natix_hf.data.config import AugmentConfig, DataConfig
from natix_hf.data.rows import Rows, load_image_data
from natix_hf.errors import RecipeError
from natix_hf.models.config import ModelConfig
from natix_hf.models.preprocess import make_processor
from natix_hf.recipe import Recipe, parse_recipe
from natix_hf.section import coerce, key_types
from natix_hf.trainers import gate, self_supervised
from natix_hf.trainers.arguments import training_arguments
from natix_hf.trainers.config import TRAINING_REFUSED, TrainingSection
from natix_hf.trainers.explora_config import ExploraConfig
from natix_hf.trainers.gate_config import GateConfig
from natix_hf.trainers.supervised_config import SupervisedConfig

STAGES: dict[str, type[TrainingSection]] = {"phase1": SupervisedConfig, "phase3": GateConfig, "phase4": ExploraConfig}
GIVEN: dict[str, Any] = {
    "learning_rate": 1e-4, "weight_decay": 0.0, "lr_scheduler_type": "linear", "warmup_steps": 7.0,
    "per_device_train_batch_size": 5, "ddp_find_unused_parameters": True, "report_to": "tensorboard", "seed": 1,
    # and some that have no default here
    "gradient_accumulation_steps": 4, "optim": "adafactor", "adam_beta2": 0.9, "run_name": "mine",
    "activation_checkpointing": True, "lr_scheduler_kwargs": {"num_cycles": 1}, "max_grad_norm": 0.3,
}  # fmt: skip
LONG = {"save_total_limit": 4, "logging_steps": 3.0, "dataloader_num_workers": 0, "max_steps": 12}
OF_STAGE: dict[str, dict[str, Any]] = {
    "phase1": GIVEN | LONG | {
        "num_train_epochs": 3.0, "per_device_eval_batch_size": 6, "eval_strategy": "steps", "save_strategy": "no",
        "metric_for_best_model": "nll", "greater_is_better": False, "load_best_model_at_end": False,
        "label_smoothing_factor": 0.1, "eval_steps": 5.0, "bf16_full_eval": True, "use_cpu": True,
        "disable_tqdm": True, "dataloader_prefetch_factor": None,
    },
    "phase3": GIVEN | {"num_train_epochs": 3.0, "max_steps": 12},
    "phase4": GIVEN | LONG,
}  # fmt: skip


class _Seen(Exception):
    """Carries what a stubbed Trainer was given."""


def _stop(*, args: Any, **_: Any) -> None:
    raise _Seen(args)


@pytest.fixture(scope="module")
def rows(parquet_source: Path) -> Rows:
    return load_image_data(DataConfig(source=str(parquet_source), group_by="video_info.vid_id")).role("train")


def _arguments(stage: str, config: Any, folder: Path, rows: Rows) -> Any:
    """The TrainingArguments that a stage's Trainer is given."""
    if stage == "phase1":
        return training_arguments(config.training_fields(), folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Seen) as caught:
        patch.setattr(gate, "GateTrainer", _stop)
        patch.setattr(self_supervised, "ExploraTrainer", _stop)
        if stage == "phase3":
            gate.train_gate(np.zeros((4, 3), dtype=np.float32), np.zeros(4, dtype=np.float32), config)
        processor = make_processor(ModelConfig(config={"model_type": "dinov2", "patch_size": 7}, image_size=28))
        self_supervised.pretrain_backbone(
            tiny_backbone("dinov2", layers=2), processor, rows, None, config, AugmentConfig(), lambda b: folder, folder
        )
    return caught.value.args[0]


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_recipe_gives_reaches_the_trainer(stage: str, tmp_path: Path, rows: Rows) -> None:
    """Every field of TrainingArguments, whether it has a default here or not."""
    given = OF_STAGE[stage]
    default = getattr(Recipe(), stage).training_fields()
    assert set(default) <= set(given)
    assert all(given[key] != value for key, value in default.items())
    objective = {"objective": "mae"} if stage == "phase4" else {}
    config = getattr(parse_recipe({stage: given | objective}), stage)
    arguments = _arguments(stage, config, tmp_path, rows)
    seen = {key: getattr(arguments, key) for key in given}
    seen = {key: getattr(value, "value", value) for key, value in seen.items()}
    assert seen | {"report_to": seen["report_to"][0]} == given
    assert config == type(config)().with_training(given) if stage != "phase4" else True


@pytest.mark.parametrize("stage", STAGES)
def test_defaults_are_those_of_the_class_whoever_makes_it(stage: str, tmp_path: Path, rows: Rows) -> None:
    made: Any = STAGES[stage]()
    assert made == getattr(Recipe(), stage) == getattr(parse_recipe({stage: {}}), stage)
    arguments = _arguments(stage, made, tmp_path, rows)
    expected = {
        "phase1": (10, -1, 5e-4, 0.05, "epoch"), "phase3": (40, -1, 1e-3, 0.05, "no"),
        "phase4": (3, 2000, 3e-4, 0.04, "steps"),
    }[stage]  # fmt: skip
    names = ("num_train_epochs", "max_steps", "learning_rate", "weight_decay", "eval_strategy")
    assert tuple(getattr(arguments, name) for name in names) == expected
    assert (arguments.warmup_steps, arguments.seed, arguments.per_device_train_batch_size) == (0.1, 42, 64)


def test_our_fields_have_the_types_of_transformers() -> None:
    """Else a value that TrainingArguments takes would be refused, or stored in another form."""
    theirs = get_type_hints(TrainingArguments)
    words = {"lr_scheduler_type": SchedulerType, "eval_strategy": IntervalStrategy, "save_strategy": SaveStrategy}
    for cls in STAGES.values():
        for name, default in cls().training_fields().items():
            ours = key_types(cls)[name]
            if name in words:
                assert set(get_args(ours)) == {member.value for member in words[name]}, name
            else:
                assert set(get_args(ours)) == set(get_args(theirs[name])) and (get_args(ours) or ours == theirs[name])
            stored: Any = coerce(default, theirs[name], name)
            assert (stored, type(stored)) == (default, type(default)), name


def test_writing_out_a_default_changes_no_hash() -> None:
    """Else a phase would run again, or a control be trained twice, for nothing."""
    for stage, cls in STAGES.items():
        plain = Recipe().section_sha256(stage)
        for key, value in cls().training_fields().items():
            assert parse_recipe({stage: {key: value}}).section_sha256(stage) == plain, key


def test_a_stage_of_its_own_has_the_same_defaults_over_its_own_values() -> None:
    stage = {"learning_rate": 3e-2, "adam_beta2": 0.9}
    recipe = parse_recipe({"phase4": {"learning_rate": 1e-2, "supervised": stage}})
    assert recipe.phase4 == ExploraConfig(learning_rate=1e-2, supervised=recipe.phase4.supervised)
    own = SupervisedConfig(learning_rate=3e-2, extra={"adam_beta2": 0.9})
    assert recipe.phase4.supervised == replace(own, where="phase4.supervised")
    assert ExploraConfig(supervised=own).supervised == recipe.phase4.supervised  # it knows where it stands
    assert parse_recipe({"phase4": {"supervised": None}}).phase4.supervised is None
    assert parse_recipe({"phase4": {"supervised": {}}}).phase4.supervised is not None


def test_other_fields_are_put_where_they_belong() -> None:
    config = SupervisedConfig(extra={"eval_steps": 5}).with_training({"seed": 3, "adam_beta2": 0.9})
    assert config == SupervisedConfig(seed=3, extra={"eval_steps": 5.0, "adam_beta2": 0.9})
    assert parse_recipe({"phase1": {"seed": 3, "eval_steps": 5, "adam_beta2": 0.9}}).phase1 == config
    assert config.plain()["training"] == config.training_fields()


def _refused(make: Callable[[], Any], *facts: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make()
    assert tells(caught.value, *facts)


@pytest.mark.parametrize("where", ["phase1", "phase3", "phase4", "phase4.supervised"])
def test_what_a_stage_does_not_decide_is_refused(where: str) -> None:
    outer, _, inner = where.partition(".")
    for key in [*TRAINING_REFUSED, "hub_model_id", "hub_private_repo", "hub_strategy"]:
        section: Any = {key: "secret-value"}
        with pytest.raises(RecipeError) as caught:
            parse_recipe({outer: {inner: section} if inner else section})
        assert tells(caught.value, f"{where}.{key} is refused: ")
        assert "secret-value" not in str(caught.value)  # it may be a token


@pytest.mark.parametrize(
    ("stage", "given", "facts"),
    [
        *[("phase4", {key: value}, ("phase4.probe_steps",)) for key, value in [
            ("eval_strategy", "epoch"), ("eval_steps", 5), ("save_strategy", "epoch"), ("save_steps", 5),
            ("load_best_model_at_end", True), ("metric_for_best_model", "mcc"), ("greater_is_better", False),
            ("eval_on_start", True),
        ]],
        ("phase4", {"num_train_epochs": 5}, ("5.0", "max_steps=-1")),
        ("phase4", {"label_smoothing_factor": 0.1}, ("0.1", "labels")),
        ("phase4", {"neftune_noise_alpha": 5}, ("5",)),
        *[("phase3", {key: value}, ()) for key, value in [
            ("eval_strategy", "epoch"), ("save_steps", 5), ("logging_steps", 5), ("label_smoothing_factor", 0.1),
        ]],
        ("phase1", {"metric_for_best_model": "accuracy"}, ("'accuracy'", "mcc", "auroc")),
        ("phase1", {"eval_strategy": "no", "early_stopping_patience": 1}, ("'no'", "early_stopping_patience")),
        ("phase1", {"metric_for_best_model": None, "early_stopping_patience": 1}, ("None", "early_stopping_patience")),
        ("phase1", {"adam_beta1": 1}, ("1", "0")),
        ("phase1", {"max_steps": 0}, ("0", "-1")),
        ("phase1", {"seed": 2**32}, (str(2**32),)),
        ("phase1", {"gradient_accumulation_steps": 0}, ("at least 1",)),
        ("phase1", {"eval_delay": -1}, ("at least 0",)),
        ("phase1", {"eval_steps": 0}, ("above 0",)),
    ],
)  # fmt: skip
def test_values_that_no_training_survives(stage: str, given: dict[str, Any], facts: tuple[str, ...]) -> None:
    """Given in a recipe and in Python."""
    key = next(iter(given))
    _refused(lambda: parse_recipe({stage: given}), f"{stage}.{key}", *facts)
    ours = {name: value for name, value in given.items() if name in key_types(STAGES[stage])}
    others: dict[str, Any] = {name: value for name, value in given.items() if name not in ours}
    _refused(lambda: STAGES[stage](extra=others, **ours), f"{stage}.{key}", *facts)


def test_what_is_allowed_after_all() -> None:
    assert parse_recipe({"phase4": {"probe_steps": 0, "save_steps": 5}}).phase4.extra == {"save_steps": 5.0}
    epochs = parse_recipe({"phase4": {"num_train_epochs": 5, "max_steps": -1}}).phase4.training_fields()
    assert (epochs["num_train_epochs"], epochs["max_steps"]) == (5.0, -1)
    given = {"metric_for_best_model": None, "load_best_model_at_end": False, "report_to": None, "eval_strategy": "no"}
    config = parse_recipe({"phase1": given}).phase1
    assert (config.metric_for_best_model, config.report_to) == (None, None)
    assert config.eval_strategy == "no"


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: SupervisedConfig(learning_rate="fast"), ("phase1.learning_rate", "'fast'")),
        (lambda: SupervisedConfig(learning_rate=-1), ("phase1.learning_rate", "-1")),
        (lambda: SupervisedConfig(adapter="lorra"), ("phase1.adapter", "'lora'")),
        (lambda: SupervisedConfig(extra={"learning_rate": 1}), ("learning_rate", "SupervisedConfig")),
        (lambda: SupervisedConfig(extra={"adam_beta_2": 1}), ("phase1.adam_beta_2", "'adam_beta2'")),
        (lambda: SupervisedConfig(extra={"optim": "nonsense"}), ("phase1.optim", "'nonsense'", "adamw_torch")),
        (lambda: SupervisedConfig(extra=["optim"]), ("phase1.extra", "optim")),
        (lambda: SupervisedConfig(extra={"push_to_hub": True}), ("phase1.push_to_hub", "refused")),
        (lambda: GateConfig(folds=1), ("phase3.folds", "1")),
        (lambda: ExploraConfig(crops={"local_crops": -1}), ("phase4.crops.local_crops", "-1")),
        (lambda: ExploraConfig(mae=3), ("phase4.mae", "3")),
        (lambda: AugmentConfig(jitter="lots"), ("data.augment.jitter", "'lots'")),
        (lambda: Recipe(phases=["one"]), ("phases[0]", "'one'")),
        (lambda: Recipe(phase2=None), ("phase2", "None")),
    ],
)
def test_what_python_makes_is_checked_too(make: Callable[[], Any], facts: tuple[str, ...]) -> None:
    _refused(make, *facts)
