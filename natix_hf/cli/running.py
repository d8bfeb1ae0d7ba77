"""Commands for runs and recipes: run, recipes, keys, verify, report, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.terminal import log_to, say, tell


@app.command(cls=Command)
def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A packaged recipe (see natix-hf recipes) or a YAML file.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to change.")
    ] = None,
    phases: Annotated[
        str | None, typer.Option(help="Run these phases, such as 1,2,6 or all. Default: those of the recipe.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Continue the run in this folder, or start one there.")] = None,
    accelerate_config: Annotated[
        Path | None, typer.Option(help="Launch training phases with this file from `accelerate config`.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Run on the CPU, whatever GPU there is or should be.")] = False,
) -> None:
    """Run a recipe, from images to a bundle.

    Phases whose result is up to date are skipped.
    """
    if cpu:
        from natix_hf.models.device import use_cpu

        use_cpu()
    from natix_hf.pipeline import run_recipe
    from natix_hf.runs.graph import parse_phases

    wanted = parse_phases(phases) if phases is not None else None
    folder = run_recipe(recipe, wanted, run_dir, accelerate_config, overrides or [])
    from natix_hf.cli.summary import summarise  # a refused recipe need not wait for it
    from natix_hf.runs.folders import LOG

    tell()
    with log_to(folder / LOG):
        for line in summarise(folder):
            say(line)


@app.command(cls=Command)
def recipes() -> None:
    """List the recipes that come with the package."""
    from natix_hf.recipe import packaged_recipes

    for path in packaged_recipes():
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        say(f"{path.stem:24s} {title}")


@app.command(cls=Command)
def keys(
    section: Annotated[
        str | None, typer.Argument(metavar="SECTION", help="A section or key, such as phase1 or data.augment.")
    ] = None,
) -> None:
    """List the keys of a recipe with types and defaults."""
    from natix_hf.keys import as_text, terminal_width

    say(as_text(section, terminal_width()))


@app.command(cls=Command)
def verify(
    reference: Annotated[
        str, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run folder, a bundle folder or a Hub repository.")
    ],
) -> None:
    """Check a run or bundle: checksums, lineage and leaks, and that its results follow from the stored answers.

    The exit code is 1 if there is a problem.
    """
    from natix_hf.provenance.owner import at_work
    from natix_hf.report.page import stale_page
    from natix_hf.runs.verify import find_problems

    problems = find_problems(reference, note=lambda line: say(f"note: {line}"))
    worker = at_work(Path(reference))
    if worker is None and (stale := stale_page(Path(reference))):
        say(f"note: {stale}")
    for problem in problems:
        say(problem)
    found = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "intact"
    say(f"{reference}: {found}" + (f", in progress: {worker}" if worker else ""))
    if problems:
        raise typer.Exit(1)


@app.command(cls=Command)
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")],
    to: Annotated[Path | None, typer.Option(help="Write this file. Default: report.html in the run folder.")] = None,
) -> None:
    """Write one HTML page about a run.

    The page holds figures, plots, hard examples and lineage. It needs no network.
    """
    from natix_hf.report.page import write_report

    say(str(write_report(run_dir, to)))


@app.command(cls=Command)
def doctor() -> None:
    """Show versions, devices, memory, disk and Hub access."""
    from natix_hf.cli.doctor import check

    facts, warnings = check()
    for fact in facts:
        say(fact)
    for warning in warnings:
        say(f"warning: {warning}")
