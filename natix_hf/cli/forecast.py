"""Commands that say what a run will cost: smoke, estimate."""

from __future__ import annotations

from typing import Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.terminal import say, tell

_Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A packaged recipe (see natix-hf recipes) or a YAML file.")
]
_Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to change.")]
_Phases = Annotated[str | None, typer.Option(help="These phases, such as 1,2,6 or all. Default: those of the recipe.")]
_Price = Annotated[
    float | None, typer.Option("--price-per-hour", min=0, help="Price of the machine, for the cost of the run.")
]


@app.command(cls=Command)
def smoke(
    recipe: _Recipe,
    overrides: _Overrides = None,
    phases: _Phases = None,
    price_per_hour: _Price = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Run on the CPU, whatever GPU there is or should be.")] = False,
) -> None:
    """Try every phase for a few steps here, and say what the whole run will take.

    The phases run on a few hundred pictures of the recipe's source, with its model, batches and workers. Nothing is
    kept. The exit code is 1 if a phase fails or something will not fit.
    """
    from natix_hf.models.device import device_line, use_cpu

    if cpu:
        use_cpu()
    tell(f"device   {device_line()}")
    from natix_hf.estimate.smoke import smoke as measure
    from natix_hf.pipeline import hide_progress_bars
    from natix_hf.recipe import load_recipe
    from natix_hf.runs.graph import parse_phases

    hide_progress_bars()
    wanted = parse_phases(phases) if phases is not None else None
    forecast = measure(load_recipe(recipe, overrides or []), wanted, price_per_hour, cpu)
    for line in forecast.told():
        say(line, hang=9)
    if forecast.faults:
        raise typer.Exit(1)


@app.command(cls=Command)
def estimate(
    recipe: _Recipe,
    overrides: _Overrides = None,
    gpu: Annotated[str, typer.Option(help="The GPU, such as a6000, 4090 or h100.")] = "a6000",
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs.")] = 1,
    cores: Annotated[
        int | None, typer.Option(min=1, help="CPU cores of the machine. Default: 8 for each GPU.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=20, help="Number of labelled pictures, where the source is not on this disk.")
    ] = None,
    unlabelled: Annotated[
        int | None, typer.Option(min=0, help="Number of further pictures of phase 4, where they are not here.")
    ] = None,
    phases: _Phases = None,
    price_per_hour: _Price = None,
) -> None:
    """Say what a run would take on a GPU that is not here.

    Memory and computation follow from the shapes of the model, time from the card's data sheet and from what a core of
    this machine makes. The exit code is 1 if something will not fit.
    """
    from natix_hf.estimate.gpus import gpu_of

    card = gpu_of(gpu)
    from natix_hf.estimate.forecast import Machine
    from natix_hf.estimate.forecast import estimate as forecast_of
    from natix_hf.pipeline import hide_progress_bars
    from natix_hf.recipe import load_recipe
    from natix_hf.runs.graph import parse_phases

    hide_progress_bars()
    wanted = parse_phases(phases) if phases is not None else None
    machine = Machine(card, gpus, cores or 8 * gpus)
    forecast = forecast_of(load_recipe(recipe, overrides or []), wanted, machine, rows, unlabelled, price_per_hour)
    for line in forecast.told():
        say(line, hang=9)
    if forecast.faults:
        raise typer.Exit(1)
