"""Runs phases in their order: skips what is current, and launches what trains on several devices."""

from __future__ import annotations

import functools
import importlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from natix_hf.errors import RunError, UsageError, VerificationError, first_line
from natix_hf.preflight import check_run
from natix_hf.provenance.manifest import read_manifest
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.resources import resource_folder
from natix_hf.runs.attempt import Attempt, restore_set_aside, tidy
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.runs.folders import LOG, new_run, open_run, runs_of
from natix_hf.runs.freshness import require_upstream, why_not_current
from natix_hf.runs.graph import PHASES, Phase, order_phases
from natix_hf.runs.pins import pinned_data
from natix_hf.terminal import log_to, minutes, say, tell

if TYPE_CHECKING:
    from natix_hf.data.rows import ImageData

OUTPUTS = Path("outputs")


def run_recipe(
    reference: str,
    phases: Sequence[int] | None = None,
    run_dir: Path | None = None,
    accelerate_config: Path | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """`natix-hf run`: the wanted phases of a recipe, in one new run or in `run_dir`.

    Args:
        reference: the name of a packaged recipe, or the path of a YAML file.
        phases: numbers, in any order; None: those of the recipe.
        accelerate_config: launch training phases with this file of `accelerate config`.

    Returns:
        The run folder.
    """
    recipe = load_recipe(reference, overrides)
    return run_phases(recipe, [reference, *overrides], phases, run_dir, accelerate_config)


def run_phases(
    recipe: Recipe,
    given: Sequence[str],
    phases: Sequence[int] | None = None,
    run_dir: Path | None = None,
    accelerate_config: Path | None = None,
) -> Path:
    """`run_recipe` of a recipe that has been read.

    Args:
        given: how another process names the same recipe: its reference, and `KEY=VALUE` overrides.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "natix-hf run starts its own processes: call it plainly, or `accelerate launch recipes/phaseN.py`"
        )
    wanted = order_phases(phases if phases is not None else recipe.phases)
    if accelerate_config is not None and not accelerate_config.is_file():
        raise UsageError(
            f"--accelerate-config {accelerate_config}: no such file; see {resource_folder('accelerate_configs')}"
        )
    from natix_hf.models.device import device_line

    trains = any(PHASES[number].trains for number in wanted)
    launch_options = _launch_options(accelerate_config) if trains else None
    check_run(recipe, wanted, run_dir, trains_here=launch_options is None)
    require_upstream(run_dir if run_dir is not None else OUTPUTS / recipe.name / "NEW", wanted)
    folder = open_run(run_dir, recipe.name) if run_dir is not None else new_run(OUTPUTS, recipe.name)
    chosen = ["--phases", ",".join(map(str, wanted))] if phases is not None else []
    with log_to(folder / LOG), _continuable(["natix-hf", "run", *given, *chosen, "--run-dir", str(folder)]):
        tell(f"device   {device_line()}")
        say(f"run {folder}")
        load_data = data_loader(recipe, folder)
        took = _durations_before(recipe.name)
        for place, number in enumerate(ordered := [0, *wanted]):
            phase = PHASES[number]
            if launch_options is None or not phase.trains:
                run_phase(phase, recipe, folder, load_data)
            elif why_run(folder, phase, recipe) is not None:
                reference, *overrides = given
                _launch(phase, launch_options, ["--recipe", reference, "--run-dir", str(folder), *overrides])
            left = ordered[place + 1 :]
            if left and took.keys() >= set(left):
                tell(f"         about {minutes(sum(took[n] for n in left))} left, by the run before")
    return folder


@contextmanager
def _continuable(command: Sequence[str]) -> Iterator[None]:
    """Tells how to go on where Ctrl-C ends the block."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; complete checkpoints stay. This continues: {shlex.join(command)}\n")
        raise


def _durations_before(recipe_name: str) -> dict[int, float]:
    """Seconds that each phase took in the newest run of the recipe that finished it."""
    took: dict[int, float] = {}
    for run in runs_of(OUTPUTS, recipe_name):
        for number, phase in PHASES.items():
            with suppress(VerificationError):
                took.setdefault(number, read_manifest(run / phase.folder)["duration_s"])
    return took


def run_phase(
    phase: Phase,
    recipe: Recipe,
    run_dir: Path,
    load_data: Callable[[], ImageData],
    is_main: bool = True,
    wait_for_everyone: Callable[[], None] = lambda: None,
) -> None:
    """One phase in this process, unless what lies there is current; every rank calls it where the phase trains."""
    reason = why_run(run_dir, phase, recipe) if is_main else ""
    if reason is None:
        tell(f"phase {phase.number}  {phase.title}: current, skipped")
        tidy(run_dir, phase)
        return
    if not sys.stderr.isatty():
        _hide_progress_bars()
    begin = time.monotonic()
    context = PhaseContext(phase, recipe, run_dir, load_data, is_main)
    module = importlib.import_module(phase.module)
    if is_main:
        tell(f"phase {phase.number}  {phase.title} ({reason})")
        attempt = Attempt(context, keep=module.finished_parts(context) if hasattr(module, "finished_parts") else ())
    wait_for_everyone()  # no rank looks for a checkpoint before rank 0 has cleared what is stale
    import torch
    from safetensors import SafetensorError

    try:
        outcome: Outcome = module.run(context)
    except UsageError:  # bad input, found before work
        if is_main:
            attempt.put_back()
        raise
    except torch.OutOfMemoryError as error:
        advice = "lower per_device_train_batch_size and raise gradient_accumulation_steps"
        raise RunError(f"phase {phase.number} ran out of memory ({first_line(error)}): {advice}") from None
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise RunError(
            f"phase {phase.number} could not write or read weights under {run_dir} ({error}): is there space left?"
        ) from None
    if is_main:
        attempt.finish(outcome.metrics)
        say(f"phase {phase.number}  {outcome.told}, {minutes(time.monotonic() - begin)}")


def _hide_progress_bars() -> None:
    """In a file or a pipe every redrawn bar would be a line of its own."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def data_loader(recipe: Recipe, run_dir: Path) -> Callable[[], ImageData]:
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


def why_run(run_dir: Path, phase: Phase, recipe: Recipe) -> str | None:
    restore_set_aside(run_dir, phase, recipe)
    return why_not_current(run_dir, phase, recipe)


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
