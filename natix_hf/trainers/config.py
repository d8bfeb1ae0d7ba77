"""The keys of every stage that trains, and of the supervised stage. This module imports nothing heavy."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self, get_type_hints

from natix_hf.errors import RecipeError, cut, require
from natix_hf.models.adapters import check_adapter
from natix_hf.section import LATER, NOT_A_KEY, Section, coerce, key_meanings, key_types, unknown_key
from natix_hf.trainers.distil_config import DistilConfig
from natix_hf.trainers.profit_config import ProfitConfig, with_reference_batches


class Argument(str):
    """The meaning of a key that is a field of `transformers.TrainingArguments`."""


# The folder of a training in the folder of its phase.
CHECKPOINTS = "checkpoints"
# The names in transformers. A test compares them.
Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
]  # fmt: skip
# Keys that only some stages have.
Epochs = Annotated[float, Argument("Number of passes over the training rows.")]
LoggingSteps = Annotated[float, Argument("Optimizer steps between two log entries; below 1: a share of all steps.")]
SaveLimit = Annotated[int | None, Argument("Number of checkpoints to keep while training; null keeps all.")]
Workers = Annotated[int, Argument("Processes per device that prepare batches; 0 prepares them in the main process.")]

# Keys that the run folder, the export phase or the base Trainer decides.
TRAINING_REFUSED: dict[str, str] = {
    "hub_token": "a token never belongs in a recipe: log in with `hf auth login` or set HF_TOKEN",
    "push_to_hub": "only phase 6 uploads, see phase6.push",
    "output_dir": "the run folder decides it, see --run-dir",
    "remove_unused_columns": "the Trainer keeps the columns that it needs",
    "resume_from_checkpoint": "an interrupted phase continues by itself, see --run-dir",
    "logging_nan_inf_filter": "it would hide a NaN loss, and a NaN must stop the run",
    "data_seed": "`seed` decides the order of the rows and all their views",
    "batch_eval_metrics": "an evaluation scores all logits at once",
    "prediction_loss_only": "an evaluation needs the logits",
}
# The scores that `EvaluationMetrics` and the Trainer offer for choosing the best epoch.
SCORES = ("mcc", "mcc_at_half", "auroc", "nll", "loss")
# Bounds that transformers does not check, or checks only after all images were decoded: (keys, smallest, largest).
# The largest is far beyond what anybody trains with, and far below what overflows or fills a machine.
_STEPS = 10**9
_BOUNDS: tuple[tuple[tuple[str, ...], float, float], ...] = (
    (("gradient_accumulation_steps", "eval_accumulation_steps", "save_total_limit"), 1, 10**6),
    (("ddp_timeout",), 1, _STEPS),
    (("weight_decay",), 0, 1000),
    (("max_grad_norm", "warmup_steps", "eval_delay"), 0, _STEPS),
    (("adam_epsilon",), 0, 1),
    (("dataloader_num_workers",), 0, 1024),
    (("dataloader_prefetch_factor",), 1, 10**4),
    (("seed",), 0, 2**32 - 1),
)
_ABOVE_0: tuple[tuple[tuple[str, ...], float], ...] = (
    (("learning_rate",), 1000),
    (("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"), 10**6),
    (("logging_steps", "eval_steps", "save_steps"), _STEPS),
)
COMPILING = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
# Optimizers that need the model itself: they cannot be checked in advance, and they make their own groups.
NEED_A_MODEL = ("galore", "apollo", "lomo", "adalomo")
_OTHERS = 10**12  # the size of any other number
_BELOW_1 = ("adam_beta1", "adam_beta2", "label_smoothing_factor")


@dataclass(frozen=True, kw_only=True)
class TrainingSection(Section):
    """Settings of a stage that trains: fields of `transformers.TrainingArguments` with the project's defaults.

    In a recipe, any other field of TrainingArguments can stand beside the section's own keys. In Python, put these
    fields into `extra`: `SupervisedConfig(learning_rate=1e-4, extra={"gradient_accumulation_steps": 4})`.
    """

    learning_rate: Annotated[float, Argument("Peak learning rate, reached after the warm-up.")] = 5e-4
    weight_decay: Annotated[float, Argument("Weight decay of the optimizer.")] = 0.05
    lr_scheduler_type: Annotated[Schedule, Argument("How the learning rate changes after the warm-up.")] = "cosine"
    warmup_steps: Annotated[
        float, Argument("Length of the warm-up: below 1 a share of all optimizer steps, otherwise a number of steps.")
    ] = 0.1
    per_device_train_batch_size: Annotated[int, Argument("Training rows per batch and device.")] = 64
    ddp_find_unused_parameters: Annotated[
        bool | None,
        Argument("On several devices, look for parameters without a gradient in each step, which is slow."),
    ] = False
    report_to: Annotated[
        str | list[str] | None, Argument("Trackers that get the curves, such as tensorboard or trackio; or none.")
    ] = "none"
    seed: Annotated[int, Argument("Seed of the initial weights, the order of the rows and the training views.")] = 42
    extra: dict[str, Any] = field(default_factory=dict, metadata=NOT_A_KEY)  # any other field of TrainingArguments

    def check(self) -> None:
        object.__setattr__(self, "extra", _checked(self.extra, self))
        given = {key: value for key, value in self.training_fields().items() if value is not None}
        for keys, least, most in _BOUNDS:
            for key in keys:
                allowed = f"at least {least} and at most {most:,}"
                require(least <= given.get(key, least) <= most, self.key(key), given.get(key), allowed)
        for above, most in _ABOVE_0:
            for key in above:
                require(0 < given.get(key, 1) <= most, self.key(key), given.get(key), f"above 0, up to {most:,}")
        for key in _BELOW_1:
            require(0 <= given.get(key, 0) < 1, self.key(key), given.get(key), "0 to below 1")
        steps = given.get("max_steps", -1)
        allowed = f"at least 1 and at most {_STEPS:,}, or -1 for num_train_epochs"
        require(steps == -1 or 1 <= steps <= _STEPS, self.key("max_steps"), steps, allowed)
        for key, value in given.items():
            if isinstance(value, int | float):
                require(abs(value) <= _OTHERS, self.key(key), value, f"a number of at most {_OTHERS:,}")

    def training_fields(self) -> dict[str, Any]:
        """The fields of `TrainingArguments` that this stage sets: those with a default here, and `extra`."""
        return {name: getattr(self, name) for name in _argument_names(type(self))} | self.extra

    def with_training(self, changes: Mapping[str, Any]) -> Self:
        """Copy the section with other values of any fields of `TrainingArguments`.

        Raises:
            RecipeError: If a field is unknown or a value is invalid.
        """
        own = {name: value for name, value in changes.items() if name in _argument_names(type(self))}
        others = {name: value for name, value in changes.items() if name not in own}
        return replace(self, **own, extra=self.extra | others)

    def mapping(self) -> dict[str, Any]:
        return super().mapping() | self.extra

    def plain(self) -> dict[str, Any]:
        """Every key and its value as manifests store them, with the fields of TrainingArguments in one mapping."""
        values = super().plain()
        for name in ("extra", *_argument_names(type(self))):
            del values[name]
        return values | {"training": TrainingSection.training_fields(self)}

    @classmethod
    def _take_unknown(cls, given: dict[Any, Any], where: str) -> dict[str, Any]:
        return {"extra": given}


def count_steps(training: Mapping[str, Any], rows: int, devices: int) -> int:
    """Count the optimizer steps of a whole training on so many rows.

    Args:
        training: Fields of `transformers.TrainingArguments`; those that are missing have the defaults of transformers.
        devices: Number of processes.
    """
    if training.get("max_steps", -1) > 0:
        return int(training["max_steps"])
    batch = training.get("per_device_train_batch_size", 8) * devices
    batches = rows // batch if training.get("dataloader_drop_last") else math.ceil(rows / batch)
    an_epoch: int = max(1, math.ceil(batches / training.get("gradient_accumulation_steps", 1)))
    return math.ceil(float(training.get("num_train_epochs", 3)) * an_epoch)


def _argument_names(cls: type[TrainingSection]) -> list[str]:
    return [name for name, meaning in key_meanings(cls).items() if isinstance(meaning, Argument)]


def _checked(extra: Mapping[Any, Any], section: TrainingSection) -> dict[str, Any]:
    """Check the fields of TrainingArguments in `extra` against the types in transformers.

    Raises:
        RecipeError: If a field is refused, unknown or of the wrong type.
    """
    if not isinstance(extra, Mapping):
        raise RecipeError(f"{section.key('extra')} is {cut(extra)}: expected a mapping of fields of TrainingArguments")
    for key in extra:
        if key in TRAINING_REFUSED or str(key).startswith("hub_"):
            reason = TRAINING_REFUSED.get(key, TRAINING_REFUSED["push_to_hub"])
            raise RecipeError(f"{section.key(key)} is refused: {reason}")
        if key in key_types(type(section)):
            raise RecipeError(f"{section.key('extra')} holds {key}: give it as {type(section).__name__}({key}=…)")
    if not extra:
        return {}
    hints = _fields_of_transformers()
    for key in extra:
        if key not in hints:
            raise _unknown(key, section, hints)
    return {key: coerce(value, hints[key], section.key(key)) for key, value in extra.items()}


@functools.cache  # their types are text, and Python takes long to read it
def _fields_of_transformers() -> dict[str, Any]:
    from transformers import TrainingArguments

    return get_type_hints(TrainingArguments)


def _unknown(key: object, section: TrainingSection, hints: Mapping[str, Any]) -> RecipeError:
    own = [name for name in key_types(type(section)) if name not in _argument_names(type(section))]
    further = [name for name in hints if name not in TRAINING_REFUSED and not name.startswith("hub_")]
    return unknown_key(key, section.key("").rstrip("."), own, further, ", and every field of TrainingArguments")


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(TrainingSection):
    """Settings of a classifier that is trained on labelled rows. The best epoch on val_select is kept."""

    adapter: Annotated[
        str,
        "The weights to train. none: only the classifier layer, on features computed once; full: all weights; the "
        "name of an adapter, such as lora or dora (docs/adapters.md): it and the classifier layer; auto: the best of "
        "lora, dora, adalora and lokr in a bake-off, which doubles the number of steps.",
    ] = "full"
    adapter_options: Annotated[
        dict[str, Any], "Options of the adapter, fields of its PEFT config class; for auto, r and target_modules."
    ] = field(default_factory=dict)
    feature_views: Annotated[
        int, "Views per row with adapter: none. The first is the picture as predict sees it; the others are augmented."
    ] = 1
    early_stopping_patience: Annotated[
        int | None, "Number of evaluations without a better score after which training stops; null never stops early."
    ] = None
    ema_decay: Annotated[
        float | None, "Keep a moving average of the weights over about 1 / (1 - ema_decay) steps; null turns it off."
    ] = None
    mixup: Annotated[
        float | None,
        "Mix the rows of each training batch, and their labels, with shares from Beta(mixup, mixup), such as 0.2 "
        "(arXiv 1710.09412); with adapter: none the features; null mixes nothing.",
    ] = field(default=None, metadata=LATER)
    prior_by: Annotated[
        Literal["sampler", "loss"],
        "How training reaches data.target_prior: sampler draws the rarer class more often; loss gives it more weight.",
    ] = "sampler"
    folds: Annotated[
        int | None,
        "Also train a model without each of so many folds of groups, for out-of-fold answers to train and val_select "
        "(docs/phase1.md); null trains none.",
    ] = field(default=None, metadata=LATER)
    layer_decay: Annotated[
        float | None,
        "Factor of the learning rate from each block to the one before it, from the classifier layer down to the "
        "patches; null trains all layers at one rate.",
    ] = field(default=None, metadata=LATER)
    head_learning_rate: Annotated[
        float | None, "Peak learning rate of the classifier layer; null is that of the other layers."
    ] = field(default=None, metadata=LATER)
    profit: Annotated[
        ProfitConfig | None, "Continue a trained classifier with PROFIT (docs/phase1.md); null makes plain steps."
    ] = field(default=None, metadata=LATER)
    teacher: Annotated[
        str | list[str] | None,
        "A trained model whose answers the model learns beside the labels: the folder of a run (its champion), of a "
        "bundle or of a classifier, or a bundle on the Hub; a list is an ensemble (docs/phase1.md). null: none.",
    ] = field(default=None, metadata=LATER)
    distil: DistilConfig = field(default_factory=DistilConfig, metadata=LATER)
    keep_folds: Annotated[bool, "Keep the models of the folds, as members of a soup (phase2.soup)."] = field(
        default=False, metadata=LATER
    )
    seeds: Annotated[
        int | None,
        "Train so many models from one start, as members of a soup (phase2.soup): the first with `seed`, each further "
        "one with the next seed for the order of its rows and its views; null trains one.",
    ] = field(default=None, metadata=LATER)
    num_train_epochs: Epochs = 10
    per_device_eval_batch_size: Annotated[int, Argument("Evaluation rows per batch and device.")] = 128
    eval_strategy: Annotated[
        Literal["no", "steps", "epoch"],
        Argument("When to score val_select: never, every eval_steps steps, or after each epoch."),
    ] = "epoch"
    save_strategy: Annotated[
        Literal["no", "steps", "epoch", "best"],
        Argument(
            "When to write a checkpoint: never, every save_steps steps, after each epoch, or at each best score."
        ),
    ] = "epoch"
    save_total_limit: SaveLimit = 2
    metric_for_best_model: Annotated[
        str | None, Argument(f"Score on val_select that chooses the best checkpoint: {', '.join(SCORES)}.")
    ] = "mcc"
    load_best_model_at_end: Annotated[
        bool, Argument("Keep the weights of the best checkpoint; false keeps the last weights.")
    ] = True
    logging_steps: LoggingSteps = 20
    dataloader_num_workers: Workers = 1
    where: str = field(default="phase1", metadata=NOT_A_KEY)  # the place in the recipe, for error messages

    def key(self, name: str) -> str:
        return f"{self.where}.{name}"

    def check(self) -> None:
        super().check()
        check_adapter(self.adapter, self.adapter_options, self.where)
        for name, value in self.adapter_options.items():
            fits = not isinstance(value, int | float) or abs(value) <= 10**6
            require(fits, f"{self.key('adapter_options')}.{name}", value, "at most 1,000,000")
        views, decay, patience, score = (
            self.feature_views, self.ema_decay, self.early_stopping_patience, self.metric_for_best_model,
        )  # fmt: skip
        self.require_within("feature_views", 1, 10**4)
        self.require(views == 1 or self.adapter == "none", "feature_views", "1 unless adapter is none")
        self.require(decay is None or 0 < decay < 1, "ema_decay", "a share between 0 and 1, or null")
        self.require_within("early_stopping_patience", 1, 10**6)
        self.require_within("mixup", 0.001, 1000)  # numpy draws no Beta from much smaller numbers
        self.require_within("folds", 2, 1000)
        frozen = self.adapter == "none"
        for key in COMPILING:
            given = self.extra.get(key)
            require(not (frozen and given), self.key(key), given, "left out: adapter none trains no backbone")
        self._check_rates()
        if self.profit is not None:
            self.profit.check_stage(self)
        self.require(self.folds is None or self.where == "phase1", "folds", "left out: phase 1 alone has folds")
        self._check_teacher()
        self.require(not self.keep_folds or self.folds is not None, "keep_folds", "false unless phase1.folds is set")
        self.require(self.seeds is None or self.where == "phase1", "seeds", "left out: phase 1 alone has several")
        self.require_within("seeds", 2, 100)
        self.require(self.seed + (self.seeds or 1) <= 2**32, "seeds", "fewer: their last seed would be too large")
        known = score is None or score.removeprefix("eval_") in SCORES
        self.require(known, "metric_for_best_model", " | ".join(SCORES))
        stops = patience is not None
        needed = "where early_stopping_patience is set"
        self.require(not stops or score is not None, "metric_for_best_model", f"a score {needed}")
        self.require(not stops or self.eval_strategy != "no", "eval_strategy", f"epoch or steps {needed}")

    def _check_rates(self) -> None:
        decay, head = self.layer_decay, self.head_learning_rate
        self.require(decay is None or 0 < decay <= 1, "layer_decay", "above 0 and at most 1, or null")
        self.require(head is None or 0 < head <= 1000, "head_learning_rate", "above 0 and at most 1000, or null")
        if self.adapter == "none":
            self.require(decay is None, "layer_decay", "left out: adapter none trains no layer but the classifier's")
            only = "left out: learning_rate is that of the classifier layer, and adapter none trains no other"
            self.require(head is None, "head_learning_rate", only)
        name = str(getattr(self.extra.get("optim"), "value", self.extra.get("optim")))
        by_layer = not (decay is None and head is None)
        allowed = "an optimizer with groups of parameters, such as adamw_torch, for layer_decay and head_learning_rate"
        require(not (by_layer and name.startswith(NEED_A_MODEL)), self.key("optim"), name, allowed)

    def training_fields(self) -> dict[str, Any]:
        """As in every section; with PROFIT `gradient_accumulation_steps` counts the reference steps' batches too."""
        return with_reference_batches(super().training_fields(), self.profit)

    @property
    def teachers(self) -> list[str]:
        """The teachers, of which there may be none."""
        several = self.teacher if isinstance(self.teacher, list) else [self.teacher]
        return [name for name in several if name is not None]

    def _check_teacher(self) -> None:
        if self.teacher is None:
            told = self.distil.plain()
            require(self.distil == DistilConfig(), self.key("distil"), told, "left out: phase1.teacher is null")
            return
        named = bool(self.teachers) and all(map(str.strip, self.teachers))
        self.require(named, "teacher", "a folder, a bundle on the Hub, a list of these, or null")
        self.require(len(set(self.teachers)) == len(self.teachers), "teacher", "a list in which each comes once")
        alone = "left out: with phase4.supervised null, phase 4 trains as phase 1 does, with its teacher"
        self.require(self.where != "phase4.supervised", "teacher", alone)
        out_of_fold = "null with phase1.teacher, which has seen the labels of every fold"
        self.require(self.folds is None, "folds", out_of_fold)
        views, by = self.distil.views, "left out: with adapter none feature_views decides"
        require(views is None or self.adapter != "none", "phase1.distil.views", views, by)

    @property
    def alone(self) -> Self:
        """The settings of one training: without folds and further seeds."""
        return replace(self, folds=None, keep_folds=False, seeds=None)

    def plain(self) -> dict[str, Any]:
        values = super().plain()
        return values | {"where": values.pop("where")}
