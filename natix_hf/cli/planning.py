"""Commands that plan ahead: plan."""

from __future__ import annotations

from typing import Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.terminal import say


@app.command(cls=Command)
def plan(
    alpha: Annotated[float, typer.Option(help="Allow at most this risk among the accepted answers.")],
    delta: Annotated[float, typer.Option(help="Allow at most this probability that the promise is false.")],
    error_rate: Annotated[float, typer.Option(help="Expect this error rate of the accepted answers.")] = 0.0,
    coverage: Annotated[float, typer.Option(help="Expect this share of answers to be accepted.")] = 1.0,
) -> None:
    """Compute how many calibration groups a guarantee needs."""
    from natix_hf.calibration import groups_needed

    found = groups_needed(alpha, delta, error_rate, coverage)
    say(f"{found.groups} calibration groups needed (a group is a video, or a row that stands alone)")
    say(
        f"{found.accepted} accepted ones with at most {found.allowed_errors} wrong certify a risk of at most {alpha:g}"
    )
    if error_rate:
        say(f"if {error_rate:g} of the accepted answers are wrong, {found.probability:.0%} of all draws succeed")
    say(f"the promise is false with probability at most {delta:g}; runs calibrate on 15% to 17.5% of the groups")
