"""Build and check TrainingArguments for every stage that trains."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.training_args import OptimizerNames

from natix_hf.errors import RecipeError, UsageError, cut, first_line
from natix_hf.models.device import runs_on_cpu
from natix_hf.trainers.compiled import require_compiler
from natix_hf.trainers.config import CHECKPOINTS, NEED_A_MODEL, count_steps

# Trackers that an extra of this package installs.
_EXTRAS = ("tensorboard", "trackio")
_PROJECT = "natix_hf"
_OUTPUT = "trainer_output"  # the default of transformers


def training_arguments(training: dict[str, Any], output_dir: Path, where: str = "phase1") -> TrainingArguments:
    """Build TrainingArguments from the settings of a section and the needs of this process.

    Args:
        training: Fields of `transformers.TrainingArguments`.
        output_dir: Folder of the checkpoints.
        where: Name of the section, for error messages.

    Raises:
        RecipeError: If transformers refuses the values.
        UsageError: If the process was launched wrongly (`require_one_device`).
    """
    on_cpu = runs_on_cpu()
    if on_cpu and training.get("fp16"):
        raise RecipeError(f"{where}.fp16 needs a GPU: use bf16, or remove the key")
    settings: dict[str, Any] = {
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "dataloader_persistent_workers": training.get("dataloader_num_workers", 0) > 0,
        "logging_nan_inf_filter": False,
        "label_names": ["labels"],  # Trainer looks for them in forward(), but a head on features has none there
        "disable_tqdm": not sys.stderr.isatty(),
        "greater_is_better": not str(training.get("metric_for_best_model", "")).endswith(("loss", "nll")),
        "restore_callback_states_from_checkpoint": True,  # early stopping keeps its count after a resume
        **_tracked_as(output_dir),
    }
    if not on_cpu:  # with pinned memory the copy of the next batch does not wait for the device
        copying = {"non_blocking": True} | dict(training.get("accelerator_config") or {})
        training = training | {"accelerator_config": copying}
    try:
        arguments = TrainingArguments(output_dir=str(output_dir), **(settings | training))
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        raise training_refused(error, where) from None
    for tracker in _EXTRAS:
        if tracker in (arguments.report_to or []) and importlib.util.find_spec(tracker) is None:
            raise RecipeError(f"{where}.report_to: {tracker} is not installed: pip install 'natix_hf[{tracker}]'")
    require_one_device(arguments)
    return arguments


def _tracked_as(output_dir: Path) -> dict[str, str]:
    """The names of a training in a tracker. In a run folder its name is that of run and phase, so that a resumed run
    continues its curve."""
    parts = output_dir.absolute().parts
    if CHECKPOINTS not in parts[2:]:
        return {"project": _PROJECT}
    at = len(parts) - 1 - parts[::-1].index(CHECKPOINTS)
    return {"project": _PROJECT, "run_name": " ".join((*parts[at - 2 : at], *parts[at + 1 :]))}


def given_or_default(
    args: TrainingArguments | dict[str, Any] | None, defaults: dict[str, Any], where: str
) -> TrainingArguments:
    """Complete the `args` of a trainer.

    Args:
        args: TrainingArguments are used unchanged. A dict overrides `defaults`. None uses `defaults`.
        defaults: Fields of `transformers.TrainingArguments`.
        where: Name of the trainer, for error messages.

    Raises:
        RecipeError, UsageError: As `training_arguments` does.
    """
    if isinstance(args, TrainingArguments):
        require_one_device(args)
        return args
    settings = defaults | (args or {})
    return training_arguments(settings, Path(settings.pop("output_dir", _OUTPUT)), where)


def require_one_device(arguments: TrainingArguments) -> None:
    """Refuse a launch that would silently train wrongly.

    Raises:
        UsageError: If the launched processes are not connected, or one process sees several GPUs. Trainer would wrap
            the model in DataParallel then.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if arguments.world_size != launched:
        raise UsageError(
            f"{launched} processes were launched but each trains alone: use a file of accelerate_configs/"
        )
    if arguments.n_gpu > 1:
        raise UsageError(
            f"this process sees {arguments.n_gpu} GPUs: start it with `natix-hf run` or `accelerate launch`, "
            "or restrict it to one GPU with CUDA_VISIBLE_DEVICES=0"
        )


def check_training(training: dict[str, Any], output_dir: Path, where: str = "phase1") -> None:
    """Check optimizer, schedule, reporting and compiler now. They would fail only when training begins.

    Raises:
        RecipeError, UsageError: As `training_arguments` does.
    """
    arguments = training_arguments(training, output_dir, where)
    try:
        for tracker in arguments.report_to or []:
            _require_tracker(tracker, where)
        if not OptimizerNames(arguments.optim).value.startswith(NEED_A_MODEL):
            make, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
            optimizer, schedule = make([nn.Parameter(torch.zeros(1))], **settings), arguments.lr_scheduler_type
            extra: Any = arguments.lr_scheduler_kwargs
            get_scheduler(schedule, optimizer, arguments.get_warmup_steps(100), 100, extra)
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        raise training_refused(error, where) from None
    if arguments.torch_compile:
        require_compiler(arguments, f"{where}.torch_compile")


def _require_tracker(tracker: str, where: str) -> None:
    try:
        for report in get_reporting_integration_callbacks([tracker]):
            report()
    except (ValueError, ImportError, RuntimeError) as error:
        raise RecipeError(f"{where}.report_to: {cut(tracker)} cannot be used: {first_line(error)}") from None


def require_checkpointing(training: dict[str, Any], model: PreTrainedModel, where: str) -> None:
    """Refuse `activation_checkpointing` where transformers has none for the model, which may be on the meta device.

    Raises:
        RecipeError: If it was asked for in vain.
    """
    if training.get("activation_checkpointing") and not model.supports_gradient_checkpointing:
        kind = model.config.model_type
        raise RecipeError(f"{where}.activation_checkpointing: transformers has none for a {kind}: set it to false")


def training_refused(error: Exception, where: str) -> RecipeError:
    """Make the error for settings that transformers does not accept."""
    return RecipeError(f"{where}: transformers refuses these settings: {first_line(error)}")


def require_a_batch(arguments: TrainingArguments, rows: int, where: str) -> None:
    """Refuse `dataloader_drop_last` if the rows do not fill one batch.

    Raises:
        UsageError: If no training batch would be left.
    """
    batch = arguments.per_device_train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < batch:
        raise UsageError(
            f"{where}.dataloader_drop_last leaves nothing: {rows} train rows do not fill one batch of {batch}: "
            "lower per_device_train_batch_size"
        )


def optimizer_steps(arguments: TrainingArguments, rows: int) -> int:
    """Compute the number of optimizer steps of a whole training on this many rows."""
    return count_steps(vars(arguments), rows, arguments.world_size)
