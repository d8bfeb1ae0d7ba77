"""Commands about the StreetVision subnet: reward."""

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
    data: Annotated[str, typer.Option(help="Labelled pictures: a folder, or a Hub dataset id.")],
    label_rule: Annotated[str, typer.Option(help="scene_description, the validator's, or none.")] = "none",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the bundle on the Hub.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the exam's views.")] = 0,
) -> None:
    """Estimate what the subnet would pay for a bundle.

    The bundle is examined on real pictures, which are half of what the subnet asks.
    """
    if label_rule not in ("none", "scene_description"):
        raise UsageError(f"--label-rule {label_rule!r}: give none or scene_description")
    from natix_hf.bundle.examine import examine
    from natix_hf.bundle.load import load_bundle
    from natix_hf.data.config import DataConfig

    rule: Any = label_rule
    found = examine(load_bundle(bundle, revision), DataConfig(source=data, label_rule=rule, seed=seed))
    say(f"{found.rows} pictures, {found.positives} with roadwork, each at four levels; no synthetic ones")
    say("level     TPR    TNR    MCC")
    for name, rates in found.levels.items():
        say(f"{name:6s} {rates.tpr:6.3f} {rates.tnr:6.3f} {rates.mcc:6.3f}")
    ways = {"fitted": "the bundle's threshold", "half": "without it, at 0.5", "best": "the best threshold here"}
    for name, way in ways.items():
        paid = found.rewards[name]
        low, high = paid.range
        say(
            f"reward {paid.expected:.3f}, 95% of them from {low:.3f} to {high:.3f}: {way} "
            f"(TPR {paid.tpr:.3f}, TNR {paid.tnr:.3f})"
        )
