"""The main function of `accelerate launch recipes/phaseN.py`: one phase on every rank, in a recipe's newest run.

As a module, `python -m natix_hf.launch`, it is `accelerate launch` for `natix-hf run`: without tracebacks of the
launcher, and with the exit code of the ranks.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from natix_hf import interrupt
from natix_hf.pipeline import OUTPUTS, continuable, data_loader, run_phase, why_run
from natix_hf.preflight import check_trainings, require_labels
from natix_hf.provenance.owner import TOKEN, owning
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.runs.folders import LOG, new_run, newest_run, open_run
from natix_hf.runs.freshness import require_upstream
from natix_hf.runs.graph import PHASES
from natix_hf.terminal import errors_in_one_line, log_to, robust_streams, say, tell

DEFAULT_RECIPE = "quickstart"
_PATIENCE_S = 4 * 3600
_PEER_S = 5.0  # within this time after a rank has ended, the launcher ends the others


def phase_script(number: int, arguments: Sequence[str] | None = None) -> None:
    """Run phase `number` on every launched rank, in the newest run of the recipe."""
    parser = argparse.ArgumentParser(description=f"phase {number}: {PHASES[number].title}")
    parser.add_argument(
        "--recipe", default=DEFAULT_RECIPE, help="a packaged recipe or a YAML file (default: quickstart)"
    )
    parser.add_argument("--run-dir", type=Path, help="the run folder to continue (default: the recipe's newest run)")
    parser.add_argument("--new", action="store_true", help="start a new run")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change a key of the recipe")
    given = parser.parse_intermixed_args(arguments)
    robust_streams()
    with errors_in_one_line(given.debug), interrupt.catching(), _ending_together():
        _run_on_every_rank(number, given)


@contextmanager
def _ending_together() -> Iterator[None]:
    """End one of several ranks as one rank ends: with the exit code of a signal, and without the traceback of a
    connection that another rank has closed because it ended. The launcher ends all ranks when one has ended."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    try:
        try:
            yield
        except RuntimeError:  # torch's errors of communication are RuntimeErrors
            interrupt.act()
            if not alone:
                time.sleep(_PEER_S)  # the launcher's SIGTERM ends this process here, if it is another rank's failure
            raise
    except (KeyboardInterrupt, SystemExit) as stop:
        code = 130 if isinstance(stop, KeyboardInterrupt) else stop.code
        if code in interrupt.EXIT_CODES and not alone:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(str(code)))  # an orderly end would wait for the other ranks
        raise SystemExit(code) from None


def _run_on_every_rank(number: int, given: argparse.Namespace) -> None:
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from natix_hf.models.device import device_line, runs_on_cpu

    recipe, phase = load_recipe(given.recipe, given.overrides), PHASES[number]
    require_labels(recipe, [number])
    # The process group is created here, so the two keys of TrainingArguments that shape it apply from here on. The
    # other ranks wait while rank 0 downloads and decodes. That may take longer than torch's default of ten minutes.
    training = (recipe.stage(number) if phase.trains else recipe.phase1).training_fields()
    group: dict[str, Any] = {"timeout": timedelta(seconds=training.get("ddp_timeout", _PATIENCE_S))}
    if training.get("ddp_backend"):
        group["backend"] = training["ddp_backend"]
    state = PartialState(cpu=runs_on_cpu(), **group)
    if phase.trains:
        check_trainings(recipe, [phase], given.run_dir or (None if given.new else newest_run(OUTPUTS, recipe.name)))
    # Rank 0 chooses the run and splits the rows. If that fails, rank 0 ends and the launcher ends the others.
    chosen = _choose_run(recipe, given.run_dir, given.new) if state.is_main_process else None
    with _owning(chosen, number, given) if chosen is not None else nullcontext():
        agreed: list[Any] = [None, None]
        if chosen is not None:
            tell(f"device   {state.num_processes} processes on {device_line()}")
            say(f"run      {chosen}")
            require_upstream(chosen, [number])
            run_phase(PHASES[0], recipe, chosen, data_loader(recipe, chosen))
            agreed = [str(chosen), why_run(chosen, phase, recipe)]
        place, reason = broadcast_object_list(agreed)
        run_dir, load_data = Path(place), data_loader(recipe, Path(place))
        if phase.trains and reason is not None:
            run_phase(phase, recipe, run_dir, load_data, state.is_main_process, state.wait_for_everyone)
        elif state.is_main_process:
            run_phase(phase, recipe, run_dir, load_data)
        state.wait_for_everyone()


@contextmanager
def _owning(run_dir: Path, number: int, given: argparse.Namespace) -> Iterator[None]:
    """Rank 0 owns the run. What `natix-hf run` has launched does not say how to continue: its parent does."""
    with owning(run_dir), log_to(run_dir / LOG):
        if os.environ.get(TOKEN):
            yield
            return
        arguments = ["--recipe", given.recipe, "--run-dir", str(run_dir), *given.overrides]
        with continuable([*_launcher(), f"recipes/phase{number}.py", *arguments]):
            yield


def _launcher() -> list[str]:
    """The words before the script in the command that launched this process."""
    import psutil

    try:
        words = psutil.Process().parent().cmdline()
        return words[: next(i for i, word in enumerate(words) if Path(word).name == Path(sys.argv[0]).name)]
    except (psutil.Error, AttributeError, StopIteration):
        return ["accelerate", "launch"]


def _choose_run(recipe: Recipe, run_dir: Path | None, new: bool) -> Path:
    newest = None if new else newest_run(OUTPUTS, recipe.name)
    if run_dir is not None:
        return open_run(run_dir, recipe.name)
    return newest if newest is not None else new_run(OUTPUTS, recipe.name)


def launch() -> None:
    """Run `accelerate launch` with the arguments of this process. The exit code is that of the ranks."""
    from subprocess import CalledProcessError

    import psutil
    from accelerate.commands.launch import main
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def pass_on(signum: int, frame: Any) -> None:  # torchrun replaces it by its own; one process alone has no torchrun
        children = psutil.Process().children()
        if not children:  # nothing has been launched yet
            raise SystemExit(interrupt.exit_code(signum))
        for child in children:
            child.send_signal(signum)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), pass_on)
    logging.disable(logging.ERROR)  # the launcher's own account of a failure, in a page
    try:
        main()
        code = 0
    except ChildFailedError as error:
        code = max(failure.exitcode for failure in error.failures.values())
    except CalledProcessError as error:
        code = error.returncode
    except SignalException as stop:
        code = interrupt.exit_code(stop.sigval)
    raise SystemExit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    launch()
