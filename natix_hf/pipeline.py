"""Run phases in order: skip those that are up to date, and launch those that train on several devices."""

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
from typing import TYPE_CHECKING, Any

import yaml

from natix_hf import interrupt
from natix_hf.disk import disk_error, disk_line
from natix_hf.errors import NatixError, RunError, UsageError, VerificationError, first_line, redacted
from natix_hf.preflight import SPREAD, check_run
from natix_hf.provenance.manifest import read_manifest
from natix_hf.provenance.owner import TOKEN, owning, token_of
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.resources import resource_folder
from natix_hf.runs.attempt import Attempt, restore_set_aside, tidy
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.runs.folders import LOG, REPORT, new_run, open_run, runs_of
from natix_hf.runs.freshness import NOT_FINISHED, require_upstream, why_not_current
from natix_hf.runs.graph import PHASES, Phase, order_phases
from natix_hf.runs.pins import pinned_data
from natix_hf.terminal import LABEL, log_to, minutes, say, tell

if TYPE_CHECKING:
    from natix_hf.data.rows import ImageData

OUTPUTS = Path("outputs")
_CHECKPOINT_S = 120  # how long a launcher waits for a checkpoint before it kills its ranks; torchrun's own is 30


def run_recipe(
    reference: str,
    phases: Sequence[int] | None = None,
    run_dir: Path | None = None,
    accelerate_config: Path | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Run phases of a recipe in a new run folder or in `run_dir`, as `natix-hf run` does.

    Args:
        reference: The name of a packaged recipe or the path of a YAML file.
        phases: Phase numbers in any order; None takes those of the recipe.
        run_dir: The run folder to continue, or a new or empty one; None makes one under `outputs/`.
        accelerate_config: A file of `accelerate config` to launch training phases with.
        overrides: `KEY=VALUE` texts.

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
    """Run phases like `run_recipe`, for a recipe that has already been read.

    Args:
        given: The reference of the recipe and its `KEY=VALUE` overrides, by which another process finds it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "natix-hf run starts its own processes: run it without a launcher, or use "
            "`accelerate launch recipes/phaseN.py`"
        )
    wanted = order_phases(phases if phases is not None else recipe.phases)
    if accelerate_config is not None and not accelerate_config.is_file():
        raise UsageError(
            f"--accelerate-config {accelerate_config}: no such file; examples are in "
            f"{resource_folder('accelerate_configs')}"
        )
    from natix_hf.models.device import device_line

    trains = any(PHASES[number].trains for number in wanted)
    launch_options = _launch_options(accelerate_config) if trains else None
    check_run(recipe, wanted, run_dir, trains_here=launch_options is None)
    require_upstream(run_dir if run_dir is not None else OUTPUTS / recipe.name / "NEW", wanted)
    folder = open_run(run_dir, recipe.name) if run_dir is not None else new_run(OUTPUTS, recipe.name)
    chosen = ["--phases", ",".join(map(str, wanted))] if phases is not None else []
    config = ["--accelerate-config", str(accelerate_config)] if accelerate_config is not None else []
    command = ["natix-hf", "run", *given, *chosen, *config, "--run-dir", str(folder)]
    with interrupt.catching(), owning(folder), log_to(folder / LOG), continuable(command), leaving_page(folder):
        tell(f"device   {device_line()}")
        say(f"run      {folder}")
        load_data = data_loader(recipe, folder)
        took = _durations_before(recipe.name)
        for place, number in enumerate(ordered := [0, *wanted]):
            phase = PHASES[number]
            if launch_options is None or not phase.trains:
                run_phase(phase, recipe, folder, load_data)
            elif why_run(folder, phase, recipe) is not None:
                reference, *overrides = given
                _launch(phase, launch_options, ["--recipe", reference, "--run-dir", str(folder), *overrides], folder)
            left = ordered[place + 1 :]
            if left and took.keys() >= set(left):
                tell(f"left     about {minutes(sum(took[n] for n in left))}, if it takes as long as the last run")
    return folder


@contextmanager
def leaving_page(run_dir: Path) -> Iterator[None]:
    """Leave the one page about a run when the block ends, however it ends. A failure of the page is only told where
    nothing worse is."""
    from natix_hf.report.page import leave_page

    try:
        yield
    except BaseException:
        with suppress(Exception):
            leave_page(run_dir)
        raise
    if (problem := leave_page(run_dir)) is not None:
        say(problem)


@contextmanager
def continuable(command: Sequence[str]) -> Iterator[None]:
    """Print the command that continues the run if a signal ends the block."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        signum = interrupt.received()
        if signum or isinstance(stop, KeyboardInterrupt):
            why = f"interrupted by {interrupt.name_of(signum)}" if signum else "interrupted"
            interrupt.tell_end(
                f"natix-hf: {why}; complete checkpoints stay. To continue: {redacted(shlex.join(command))}"
            )
        raise


def _durations_before(recipe_name: str) -> dict[int, float]:
    """The seconds that each phase took in the newest run of the recipe that finished it."""
    took: dict[int, float] = {}
    for run in runs_of(OUTPUTS, recipe_name):
        for number, phase in PHASES.items():
            with suppress(VerificationError):
                took.setdefault(number, read_manifest(run / phase.folder)["duration_s"])
    return took


def _disk_in_words(run: Callable[..., None]) -> Callable[..., None]:
    """Turn any error of the disk, whichever library reports it, into a line that names the run or cache it is in."""

    @functools.wraps(run)
    def run_in_words(phase: Phase, recipe: Recipe, run_dir: Path, *others: Any) -> None:
        try:
            run(phase, recipe, run_dir, *others)
        except NatixError:
            raise
        except Exception as error:
            disk = disk_error(error)
            if disk is None:
                raise
            raise RunError(f"phase {phase.number}: {disk_line(disk, run_dir)}") from error

    return run_in_words


@_disk_in_words
def run_phase(
    phase: Phase,
    recipe: Recipe,
    run_dir: Path,
    load_data: Callable[[], ImageData],
    is_main: bool = True,
    wait_for_everyone: Callable[[], None] = lambda: None,
) -> None:
    """Run one phase in this process, unless its result is up to date. Every rank calls it if the phase trains."""
    reason = why_run(run_dir, phase, recipe) if is_main else ""
    if reason is None:
        tell(f"phase {phase.number}  {phase.title}: current, skipped")
        tidy(run_dir, phase)
        return
    hide_progress_bars()
    begin = time.monotonic()
    context = PhaseContext(phase, recipe, run_dir, load_data, is_main)
    module = importlib.import_module(phase.module)
    if is_main:
        tell()
        tell(f"phase {phase.number}  {phase.title}" + ("" if reason == NOT_FINISHED else f" ({reason})"), hang=LABEL)
        attempt = Attempt(context, keep=module.finished_parts(context) if hasattr(module, "finished_parts") else ())
        (run_dir / REPORT).unlink(missing_ok=True)  # a run that is killed leaves no page about what no longer holds
    wait_for_everyone()  # no rank may look for a checkpoint before rank 0 has removed stale ones
    import torch
    from safetensors import SafetensorError

    try:
        outcome: Outcome = module.run(context)
    except UsageError:  # bad input, found before any work
        if is_main:
            attempt.put_back()
        raise
    except torch.OutOfMemoryError as error:
        advice = "lower per_device_train_batch_size and raise gradient_accumulation_steps"
        raise RunError(f"phase {phase.number} ran out of memory ({first_line(error)}): {advice}") from None
    except SafetensorError as error:
        if disk_error(error) is not None:
            raise
        raise RunError(f"phase {phase.number} could not write or read weights under {run_dir} ({error})") from None
    if is_main:
        attempt.finish(outcome)
        say(f"phase {phase.number}  done in {minutes(time.monotonic() - begin)}: {outcome.told}", hang=LABEL)


def hide_progress_bars() -> None:
    """Turn progress bars off unless a person watches: in a file or a pipe every update would be a line of its own."""
    if sys.stderr.isatty():
        return
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def data_loader(recipe: Recipe, run_dir: Path) -> Callable[[], ImageData]:
    """A function that loads the source and its splits once per process. After phase 0 the splits are the run's."""

    @functools.cache
    def load() -> ImageData:
        from natix_hf.data.rows import load_image_data
        from natix_hf.data.splits import SPLITS, read_splits

        current = why_not_current(run_dir, PHASES[0], recipe) is None
        data = pinned_data(run_dir, recipe.data)
        return load_image_data(data, read_splits(run_dir / PHASES[0].folder / SPLITS) if current else None)

    return load


def why_run(run_dir: Path, phase: Phase, recipe: Recipe) -> str | None:
    """The reason to run a phase, or None if its result, restored if it was set aside, is up to date."""
    restore_set_aside(run_dir, phase, recipe)
    return why_not_current(run_dir, phase, recipe)


def _launch_options(accelerate_config: Path | None) -> list[str] | None:
    """The options of `accelerate launch` for training on several devices; None means to train in this process."""
    if accelerate_config is not None:
        _require_launchable(accelerate_config)
        return ["--config_file", str(accelerate_config)]
    import torch

    from natix_hf.models.device import cpu_was_asked_for

    if torch.cuda.device_count() < 2 or cpu_was_asked_for():
        return None
    options = ["--multi_gpu", "--num_processes", str(torch.cuda.device_count()), "--num_machines", "1"]
    return [*options, "--mixed_precision", "no", "--dynamo_backend", "no"]


def _require_launchable(accelerate_config: Path) -> None:
    """Raise a `UsageError` if this process cannot start what a file of accelerate describes."""
    try:
        content = yaml.safe_load(accelerate_config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"--accelerate-config {accelerate_config} is not valid YAML ({first_line(error)})") from None
    given = content if isinstance(content, dict) else {}
    if str(given.get("distributed_type")) in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"):
        raise UsageError(f"--accelerate-config {accelerate_config}: {SPREAD}")
    if str(given.get("num_machines", 1)) != "1":
        raise UsageError(
            f"--accelerate-config {accelerate_config} is for several machines, and natix-hf run starts processes on "
            "this one alone: start recipes/phaseN.py with accelerate launch on each (docs/recipes.md)"
        )


def _launch(phase: Phase, options: list[str], arguments: list[str], run_dir: Path) -> None:
    """Run a phase on several processes, and pass a signal on to them.

    They are a process group of their own, so that the signals of a terminal reach them once, through this process.
    """
    script = resource_folder("recipes") / f"phase{phase.number}.py"
    command = [sys.executable, "-m", "natix_hf.launch", *options, str(script), *arguments]
    environment = os.environ | {TOKEN: token_of(run_dir)}
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_CHECKPOINT_S))
    interrupt.defer()
    try:
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            code = _wait(process)
        except BaseException:
            interrupt.end_tree(process.pid)
            raise
        if code in interrupt.EXIT_CODES:  # a signal to one of the ranks
            interrupt.end(code - 128)
        interrupt.act()
    finally:
        interrupt.stop_deferring()
    if code:
        raise RunError(
            f"phase {phase.number} failed under accelerate launch (exit code {code}); the cause is in the lines above"
        )


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait until a launcher has ended, and return its exit code. A signal is passed on once."""
    passed = False
    while True:
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(0.2)
            return code if code >= 0 else 128 - code
        if interrupt.received() and not passed and os.name == "posix":  # on Windows the console has told them
            passed = True
            process.send_signal(interrupt.received())
