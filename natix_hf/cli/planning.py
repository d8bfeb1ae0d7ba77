"""Commands that say beforehand what something takes: plan."""

from __future__ import annotations

from typing import Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.terminal import say


@app.command(cls=Command)
def plan(
    alpha: Annotated[float, typer.Option(help="The highest risk allowed among the accepted answers.")],
    delta: Annotated[float, typer.Option(help="The highest allowed probability of a false promise.")],
    error_rate: Annotated[float, typer.Option(help="Expected error rate of the accepted answers.")] = 0.0,
    coverage: Annotated[float, typer.Option(help="Expected share of accepted answers.")] = 1.0,
) -> None:
    """Say how many calibration groups a guarantee needs."""
    from natix_hf.calibration import groups_needed

    found = groups_needed(alpha, delta, error_rate, coverage)
    say(f"{found.groups} calibration groups (videos, or rows that are their own group)")
    say(f"{found.accepted} of them accepted, with at most {found.allowed_errors} wrong, certify a risk of {alpha:g}")
    if error_rate:
        say(f"with {error_rate:g} of the accepted answers wrong that succeeds in {found.probability:.0%} of all draws")
    say(f"a false promise comes with probability {delta:g} at most; the phases put 15 to 17.5 % of the groups there")
