"""Commands about the disk: runs, clean."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.disk import as_size
from natix_hf.terminal import say, tell

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder with runs, or one run.")]
_MARKS = {"current": "", "stale": "s", "damaged": "d", "in progress": "w", "interrupted": "i"}
_ROW = "{:<18}  {:<23}  {:<20}  {:>7}  {:<16}  {:>6}"


@app.command(cls=Command)
def runs(
    folder: _Folder = Path("outputs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List the runs in a folder: how far each came, and its size.

    Sizes of files are compared with the manifests. To compare every byte, use natix-hf verify.
    """
    from natix_hf.runs.housekeeping import find_runs, shared_caches, state_of_run

    states = [state_of_run(run) for run in find_runs(folder)]
    if as_json:
        facts = [asdict(state) | {"folder": str(state.folder), "written": _utc(state.written)} for state in states]
        say(json.dumps(facts, ensure_ascii=False))
        return
    from natix_hf.runs.graph import number_of

    say(_ROW.format("recipe", "run", "phases", "size", "last written UTC", "MCC"))
    marks = set()
    for state in states:
        phases = {number_of(name): phase for name, phase in state.phases.items()}
        marks |= {phase.state for phase in phases.values()}
        told = " ".join(f"{number}{_MARKS[phases[number].state]}" for number in sorted(phases))
        mcc = "" if state.mcc is None else f"{state.mcc:.3f}"
        recipe = _cut(state.recipe or "unknown", 18)
        run_id = _cut(state.run_id or "unknown", 23)
        say(_ROW.format(recipe, run_id, told, as_size(state.size), _utc(state.written), mcc).rstrip())
        if state.folder != folder / str(state.recipe) / str(state.run_id):
            say(f"  in {state.folder}")
        steps = [f"phase {n} from step {phase.step}" for n, phase in phases.items() if phase.step is not None]
        if steps:
            say(f"  would continue {', '.join(steps)}")
    legend = "".join(f"; {mark}: {state}" for state, mark in _MARKS.items() if mark and state in marks)
    tell()
    tell(f"{_counted(len(states))}, {as_size(sum(state.size for state in states))}{legend}")
    for cache, size in shared_caches().items():
        tell(f"cache    {as_size(size)} in {cache}, made again where needed: while no run works, you may delete it")


@app.command(cls=Command)
def clean(
    folder: _Folder = Path("outputs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    checkpoints: Annotated[
        bool,
        typer.Option("--checkpoints", help="Free checkpoints of interrupted phases too; these then begin anew."),
    ] = False,
) -> None:
    """Free what finished runs do not need.

    These are checkpoints of finished phases, results that a later one has replaced, and what interrupted writes left.
    Candidates, bundles and other results stay. A run that was written to in the last minutes is left alone.
    """
    from natix_hf.runs.housekeeping import find_runs, free, is_at_work, spare

    total = 0
    for run in find_runs(folder):
        if is_at_work(run):
            say(f"left     {run}: it may be at work")
            continue
        found = spare(run, checkpoints)
        for item in found:
            if not dry_run:
                free(item)
            say(f"{'would free' if dry_run else 'freed'}  {as_size(item.size)}  {item.path}: {item.why}")
        total += sum(item.size for item in found)
    say(f"{as_size(total)} {'would be freed' if dry_run else 'freed'}")


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: columns - 1] + "…"


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def _counted(count: int) -> str:
    return f"{count} run" + ("s" if count != 1 else "")
