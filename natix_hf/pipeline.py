"""Runs phases in their order: skips what is current, launches what trains on several devices, waits on one rank."""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natix_hf.errors import RunError, UsageError
from natix_hf.phases.context import (
    PhaseContext,
    require_upstream,
    restore_set_aside,
    tidy,
    why_not_current,
)
from natix_hf.phases.graph import PHASES, Phase, order_phases
from natix_hf.phases.pins import pinned_data, pinned_model
from natix_hf.provenance.runs import new_run, newest_run, open_run
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.reporting import errors_in_one_line, robust_streams, say
from natix_hf.resources import resource_folder

if TYPE_CHECKING:
    from natix_hf.data.rows import ImageData

OUTPUTS = Path("outputs")
DEFAULT_RECIPE = "quickstart"
_PATIENCE_S = 4 * 3600


def run_recipe(
    reference: str,
    phases: Sequence[int] | None = None,
    run_dir: Path | None = None,
    accelerate_config: Path | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """`natix-hf run`: the wanted phases of a recipe, in one new run or in `run_dir`.

    Args:
        phases: numbers, in any order; None: those of the recipe.
        accelerate_config: launch training phases with this file of `accelerate config`.

    Returns:
        The run folder.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "natix-hf run starts its own processes: call it plainly, or `accelerate launch recipes/phaseN.py`"
        )
    recipe = load_recipe(reference, overrides)
    wanted = order_phases(phases if phases is not None else recipe.phases)
    if accelerate_config is not None and not accelerate_config.is_file():
        raise UsageError(
            f"--accelerate-config {accelerate_config}: no such file; see {resource_folder('accelerate_configs')}"
        )
    _require_labels(recipe, wanted)
    trains = any(PHASES[number].trains for number in wanted)
    launch_options = _launch_options(accelerate_config) if trains else None
    if trains and launch_options is None:
        _check_training(recipe, [PHASES[number] for number in wanted], run_dir)
    if 6 in wanted and recipe.phase6.push:  # what the Hub would refuse after hours of training
        from natix_hf.bundle.push import check_push

        check_push(str(recipe.phase6.repo_id), recipe.phase6.tag)
    if 6 in wanted and recipe.phase6.onnx:
        _check_onnx(recipe)
    require_upstream(run_dir if run_dir is not None else OUTPUTS / recipe.name / "NEW", wanted)
    folder = open_run(run_dir, recipe.name) if run_dir is not None else new_run(OUTPUTS, recipe.name)
    say(f"run {folder}")
    load_data = _data_loader(recipe, folder)
    for number in [0, *wanted]:
        phase = PHASES[number]
        if launch_options is None or not phase.trains:
            run_phase(phase, recipe, folder, load_data)
        elif _why_run(folder, phase, recipe) is not None:
            _launch(phase, launch_options, ["--recipe", reference, "--run-dir", str(folder), *overrides])
    return folder


def run_phase(
    phase: Phase,
    recipe: Recipe,
    run_dir: Path,
    load_data: Callable[[], ImageData],
    is_main: bool = True,
    wait_for_everyone: Callable[[], None] = lambda: None,
) -> None:
    """One phase in this process, unless what lies there is current; every rank calls it where the phase trains."""
    reason = _why_run(run_dir, phase, recipe) if is_main else ""
    if reason is None:
        say(f"phase {phase.number} {phase.folder}: current, skipped")
        tidy(run_dir, phase)
        return
    if not sys.stderr.isatty():
        _hide_progress_bars()
    context = PhaseContext(phase, recipe, run_dir, load_data, is_main)
    module = importlib.import_module(phase.module)
    if is_main:
        say(f"phase {phase.number} {phase.folder}: {phase.title} ({reason})")
        context.begin(keep=module.finished_parts(context) if hasattr(module, "finished_parts") else ())
    wait_for_everyone()  # no rank looks for a checkpoint before rank 0 has cleared what is stale
    import torch
    from safetensors import SafetensorError

    try:
        metrics = module.run(context)
    except UsageError:  # bad input, found before work
        if is_main:
            context.put_back()
        raise
    except torch.OutOfMemoryError as error:
        advice = "lower per_device_train_batch_size and raise gradient_accumulation_steps"
        raise RunError(f"phase {phase.number} ran out of memory ({str(error).splitlines()[0]}): {advice}") from None
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise RunError(
            f"phase {phase.number} could not write or read weights under {run_dir} ({error}): is there space left?"
        ) from None
    if is_main:
        context.finish(metrics)


def _hide_progress_bars() -> None:
    """In a file or a pipe every redrawn bar would be a line of its own."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def _data_loader(recipe: Recipe, run_dir: Path) -> Callable[[], ImageData]:
    """Loads source and splits once a process; the splits of the run where phase 0 is finished."""

    @functools.cache
    def load() -> ImageData:
        from natix_hf.data.rows import load_image_data
        from natix_hf.data.splits import read_splits
        from natix_hf.phases.phase0_data import SPLITS

        current = why_not_current(run_dir, PHASES[0], recipe) is None
        data = pinned_data(run_dir, recipe.data)
        return load_image_data(data, read_splits(run_dir / PHASES[0].folder / SPLITS) if current else None)

    return load


def _why_run(run_dir: Path, phase: Phase, recipe: Recipe) -> str | None:
    restore_set_aside(run_dir, phase, recipe)
    return why_not_current(run_dir, phase, recipe)


def _check_training(recipe: Recipe, phases: Sequence[Phase], run_dir: Path | None) -> None:
    """Lets transformers refuse model and settings before any work begins, not after every image was decoded.

    Args:
        run_dir: of the run that goes on, with the commits that it has pinned; None: a new one.
    """
    from natix_hf.models.adapters import AUTO, adapter_config
    from natix_hf.models.classifier import check_model
    from natix_hf.models.preprocess import make_processor
    from natix_hf.phases.phase4_explora import check_explora
    from natix_hf.trainers.bakeoff import entrants_for
    from natix_hf.trainers.supervised import check_training

    if run_dir is not None:
        recipe = replace(recipe, model=pinned_model(run_dir, recipe.model))
    stages = [recipe.phase1]
    if 4 in [phase.number for phase in phases]:
        check_training(recipe.phase4.training_fields(), OUTPUTS, "phase4")
        stages += [recipe.phase4.supervised] if recipe.phase4.supervised is not None else []
    if 3 in [phase.number for phase in phases]:
        check_training(recipe.phase3.training_fields(), OUTPUTS, "phase3")
    model = check_model(recipe.model)
    if 4 in [phase.number for phase in phases]:
        check_explora(recipe, model)
    for stage in stages:
        check_training(stage.training_fields(), OUTPUTS, stage.where)
        if stage.adapter == AUTO:
            entrants_for(model, stage.adapter_options, stage.where)
        elif stage.adapter not in ("none", "full"):
            adapter_config(model, stage.adapter, stage.adapter_options, total_steps=10**6, where=stage.where)
    make_processor(recipe.model)


def _check_onnx(recipe: Recipe) -> None:
    from natix_hf.bundle.onnx_export import check_onnx
    from natix_hf.models.classifier import check_model

    check_onnx(check_model(recipe.model))


def _require_labels(recipe: Recipe, wanted: Sequence[int]) -> None:
    needing = [number for number in wanted if number != 4]
    if recipe.data.source is None and needing:
        raise UsageError(f"phase {needing[0]} needs labelled images, and data.source is null: only phase 4 does not")


def _launch_options(accelerate_config: Path | None) -> list[str] | None:
    """Options of `accelerate launch` for training on several devices; None: train in this process."""
    if accelerate_config is not None:
        return ["--config_file", str(accelerate_config)]
    import torch

    if torch.cuda.device_count() < 2:
        return None
    options = ["--multi_gpu", "--num_processes", str(torch.cuda.device_count()), "--num_machines", "1"]
    return [*options, "--mixed_precision", "no", "--dynamo_backend", "no"]


def _launch(phase: Phase, options: list[str], arguments: list[str]) -> None:
    script = resource_folder("recipes") / f"phase{phase.number}.py"
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(script), *arguments]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise RunError(
            f"phase {phase.number} failed under accelerate launch (exit code {done.returncode}); its lines are above"
        )


def phase_script(number: int, arguments: Sequence[str] | None = None) -> None:
    """`accelerate launch recipes/phaseN.py`: one phase on every launched rank, in the newest run of its recipe."""
    parser = argparse.ArgumentParser(description=f"phase {number}: {PHASES[number].title}")
    parser.add_argument(
        "--recipe", default=DEFAULT_RECIPE, help="a packaged recipe or a YAML file (default: quickstart)"
    )
    parser.add_argument("--run-dir", type=Path, help="the run to continue (default: the newest of the recipe)")
    parser.add_argument("--new", action="store_true", help="begin a new run")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override the recipe")
    given = parser.parse_intermixed_args(arguments)
    robust_streams()
    with errors_in_one_line(given.debug):
        _run_on_every_rank(number, given)


def _run_on_every_rank(number: int, given: argparse.Namespace) -> None:
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from natix_hf.models.device import runs_on_cpu

    recipe, phase = load_recipe(given.recipe, given.overrides), PHASES[number]
    _require_labels(recipe, [number])
    # The process group is made here, so the two keys of TrainingArguments that shape it must count from here on. The
    # other ranks wait while rank 0 downloads and decodes, which may take longer than torch's ten minutes.
    training = (recipe.stage(number) if phase.trains else recipe.phase1).training_fields()
    group: dict[str, Any] = {"timeout": timedelta(seconds=training.get("ddp_timeout", _PATIENCE_S))}
    if training.get("ddp_backend"):
        group["backend"] = training["ddp_backend"]
    state = PartialState(cpu=runs_on_cpu(), **group)
    if phase.trains:
        _check_training(recipe, [phase], given.run_dir or (None if given.new else newest_run(OUTPUTS, recipe.name)))
    # Rank 0 chooses the run and divides the rows; an error there ends it, and the launcher ends the others.
    agreed: list[Any] = [None, None]
    if state.is_main_process:
        run_dir = _choose_run(recipe, given.run_dir, given.new)
        require_upstream(run_dir, [number])
        run_phase(PHASES[0], recipe, run_dir, _data_loader(recipe, run_dir))
        agreed = [str(run_dir), _why_run(run_dir, phase, recipe)]
    run_dir, reason = broadcast_object_list(agreed)
    run_dir, load_data = Path(run_dir), _data_loader(recipe, Path(run_dir))
    if phase.trains and reason is not None:
        run_phase(phase, recipe, run_dir, load_data, state.is_main_process, state.wait_for_everyone)
    elif state.is_main_process:
        run_phase(phase, recipe, run_dir, load_data)
    state.wait_for_everyone()


def _choose_run(recipe: Recipe, run_dir: Path | None, new: bool) -> Path:
    newest = None if new else newest_run(OUTPUTS, recipe.name)
    if run_dir is not None:
        folder = open_run(run_dir, recipe.name)
    elif newest is not None:
        folder = newest
    else:
        folder = new_run(OUTPUTS, recipe.name)
    say(f"run {folder}")
    return folder
