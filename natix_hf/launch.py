"""The main function of `accelerate launch recipes/phaseN.py`: one phase on every rank, in a recipe's newest run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from natix_hf.pipeline import OUTPUTS, data_loader, run_phase, why_run
from natix_hf.preflight import check_trainings, require_labels
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.runs.folders import LOG, new_run, newest_run, open_run
from natix_hf.runs.freshness import require_upstream
from natix_hf.runs.graph import PHASES
from natix_hf.terminal import errors_in_one_line, log_to, refuse_secrets, robust_streams, say, tell

DEFAULT_RECIPE = "quickstart"
_PATIENCE_S = 4 * 3600


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
    with errors_in_one_line(given.debug):
        _run_on_every_rank(number, given)


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
    with log_to(chosen / LOG) if chosen is not None else nullcontext():
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


def _choose_run(recipe: Recipe, run_dir: Path | None, new: bool) -> Path:
    newest = None if new else newest_run(OUTPUTS, recipe.name)
    if run_dir is not None:
        return open_run(run_dir, recipe.name)
    return newest if newest is not None else new_run(OUTPUTS, recipe.name)
