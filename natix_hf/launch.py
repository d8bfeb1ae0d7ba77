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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natix_hf import interrupt
from natix_hf.errors import UsageError
from natix_hf.pipeline import OUTPUTS, continuable, data_loader, leaving_page, run_phase, why_run
from natix_hf.preflight import check_trainings, require_caches, require_gpu, require_labels, require_whole_models
from natix_hf.provenance.durable import temporary_sibling
from natix_hf.provenance.owner import TOKEN, owning
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.runs.folders import LOG, new_run, newest_run, open_run
from natix_hf.runs.freshness import require_upstream
from natix_hf.runs.graph import PHASES
from natix_hf.terminal import errors_in_one_line, log_to, refuse_secrets, robust_streams, say, tell

if TYPE_CHECKING:
    from accelerate import PartialState

DEFAULT_RECIPE = "quickstart"
_PATIENCE_S = 4 * 3600
_PEER_S = 5.0  # within this time after a rank has ended, the launcher ends the others
_LATE_S = 10


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
    robust_streams()
    with errors_in_one_line(debug=False):
        refuse_secrets(sys.argv[1:] if arguments is None else arguments)
    given = parser.parse_intermixed_args(arguments)
    with errors_in_one_line(given.debug), interrupt.catching(), ending_together():
        _run_on_every_rank(number, given)


@contextmanager
def ending_together() -> Iterator[None]:
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
    require_gpu(recipe, [number])
    require_labels(recipe, [number])
    require_whole_models()
    require_caches(recipe)
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
    _require_shared(chosen, state)
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
            yield  # the parent leaves the page, too
            return
        arguments = ["--recipe", given.recipe, "--run-dir", str(run_dir), *given.overrides]
        with continuable([*_launcher(), f"recipes/phase{number}.py", *arguments]), leaving_page(run_dir):
            yield


def _launcher() -> list[str]:
    """The words before the script in the command that launched this process."""
    import psutil

    try:
        words: list[str] = psutil.Process().parent().cmdline()
        return words[: next(i for i, word in enumerate(words) if Path(word).name == Path(sys.argv[0]).name)]
    except (psutil.Error, AttributeError, StopIteration):
        return ["accelerate", "launch"]


def _require_shared(chosen: Path | None, state: PartialState) -> None:
    """Raise a `UsageError` on every machine if one of them does not see the run folder that rank 0 has chosen.

    Every rank calls it. A folder with the same path is not enough, so rank 0 leaves a file there for the others.
    """
    from accelerate.utils import broadcast_object_list, gather_object

    if state.num_processes == int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes)):
        return
    token = temporary_sibling(chosen / "seen_by_every_machine") if chosen is not None else None
    if token is not None:
        token.touch()
    [place] = broadcast_object_list([str(token)])
    end = time.monotonic() + _LATE_S
    while not Path(place).exists() and time.monotonic() < end:  # a network file system may show it late
        time.sleep(0.5)
    blind = [] if Path(place).exists() else [int(os.environ.get("GROUP_RANK", "0"))]
    machines = sorted(set(gather_object(blind)))
    if token is not None:
        token.unlink(missing_ok=True)
    if machines and state.is_local_main_process:
        raise UsageError(
            f"machine {', '.join(map(str, machines))} does not see the run folder {Path(place).parent} of machine 0: "
            "start in a folder on a disk that all machines share under one path, or set --run-dir to one"
        )
    if machines:
        raise SystemExit(UsageError.exit_code)  # one line a machine


def _choose_run(recipe: Recipe, run_dir: Path | None, new: bool) -> Path:
    newest = None if new else newest_run(OUTPUTS, recipe.name)
    if run_dir is not None:
        return open_run(run_dir, recipe.name)
    return newest if newest is not None else new_run(OUTPUTS, recipe.name)


def code_of(codes: Iterable[int]) -> int:
    """The exit code of ranks that have failed: SIGTERM's only if no other rank has its own, because the launcher sends
    SIGTERM to the others once one rank has ended."""
    return max(codes, key=lambda code: (code not in (-signal.SIGTERM, 128 + signal.SIGTERM), code))


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
        code = code_of(failure.exitcode for failure in error.failures.values())
    except CalledProcessError as error:
        code = error.returncode
    except SignalException as stop:
        code = interrupt.exit_code(stop.sigval)
    raise SystemExit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    launch()
