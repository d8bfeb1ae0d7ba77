"""Commands for the StreetVision subnet: reward."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from natix_hf.cli.app import Command, app
from natix_hf.errors import UsageError
from natix_hf.terminal import say


@app.command(cls=Command)
def reward(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A bundle folder, a run folder or a Hub repository.")
    ],
    data: Annotated[str, typer.Option(help="Ask about the labelled pictures of this folder or Hub dataset.")],
    label_rule: Annotated[
        str, typer.Option(help="Label by the column (none) or by the validator's rule (scene_description).")
    ] = "none",
    revision: Annotated[str | None, typer.Option(help="Take this branch, tag or commit of the bundle.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draw the views of the exam with this seed.")] = 0,
) -> None:
    """Estimate the subnet's reward for a bundle.

    The exam uses real pictures only. They are half of what the subnet asks.
    """
    if label_rule not in ("none", "scene_description"):
        raise UsageError(f"--label-rule is {label_rule!r}: use none or scene_description")
    from natix_hf.bundle.examine import examine
    from natix_hf.bundle.load import load_bundle
    from natix_hf.data.config import DataConfig

    rule: Any = label_rule
    found = examine(load_bundle(bundle, revision), DataConfig(source=data, label_rule=rule, seed=seed))
    say(f"{found.rows} real pictures, {found.positives} with roadwork, each asked at four levels")
    say("level     TPR    TNR    MCC")
    for name, rates in found.levels.items():
        say(f"{name:6s} {rates.tpr:6.3f} {rates.tnr:6.3f} {rates.mcc:6.3f}")
    ways = {
        "fitted": "with the bundle's threshold",
        "half": "with a cut at 0.5",
        "best": "with the best threshold for these pictures",
    }
    for name, way in ways.items():
        paid = found.rewards[name]
        low, high = paid.range
        say(
            f"reward {paid.expected:.3f} {way}; 95% of rewards lie in {low:.3f} to {high:.3f} "
            f"(TPR {paid.tpr:.3f}, TNR {paid.tnr:.3f})"
        )
