"""The keys of every stage that trains. This module imports nothing heavy."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self, get_type_hints

from natix_hf.errors import RecipeError, cut, require
from natix_hf.section import NOT_A_KEY, Section, coerce, key_meanings, key_types, unknown_key


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

_SPREADS = "it spreads a model over devices, and exact resume and the proof of a merge need whole weights"
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
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config"), _SPREADS),
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
