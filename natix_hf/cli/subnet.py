"""Commands for the StreetVision subnet: reward."""

from __future__ import annotations

from typing import Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.errors import DataError
from natix_hf.terminal import say, tell


@app.command(cls=Command)
def reward(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A bundle folder, a run folder or a Hub repository.")
    ],
    data: Annotated[str, typer.Option(help="Ask about the labelled pictures of this folder or Hub dataset.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="data.KEY=VALUE", help="Keys of the data section that differ from the bundle's."),
    ] = None,
    label_rule: Annotated[
        str | None,
        typer.Option(
            help="Label by the column (none) or by the validator's rule (scene_description). Default: as the bundle."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Take this branch, tag or commit of the bundle.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draw the views of the exam with this seed.")] = 0,
) -> None:
    """Estimate the subnet's reward for a bundle.

    The labels are read as in the bundle's own data. The exam uses real pictures only. They are half of what the subnet
    asks.
    """
    from natix_hf.bundle.examine import data_keys, exam_rows, mark
    from natix_hf.bundle.load import load_bundle
    from natix_hf.data.config import DataConfig
    from natix_hf.data.reading import told_counts
    from natix_hf.recipe import data_config

    loaded = load_bundle(bundle, revision)
    own = data_keys(loaded)
    rule = [f"data.label_rule={label_rule}"] if label_rule is not None else []
    given = [f"data.seed={seed}", *rule, *(overrides or [])]
    config = data_config(data, given, own)
    asked_for = {override.partition("=")[0].removeprefix("data.") for override in given}
    own = {key: value for key, value in own.items() if key not in asked_for}
    try:
        rows = exam_rows(config, if_known=own.keys() & {"positive_class", "exclude_classes"})
    except DataError as error:
        defaults = DataConfig()
        changed = [f"data.{key}={value}" for key, value in own.items() if value != getattr(defaults, key)]
        raise DataError(f"{error}; from the bundle: {', '.join(changed)}" if changed else str(error)) from None
    for note in rows.notes:
        tell(f"warning  {note}")
    for label, classes in enumerate(rows.classes):
        tell(f"label {label}  {told_counts(classes)}")
    found = mark(loaded, rows)
    say(
        f"{found.rows} real pictures, {found.positives} labelled {loaded.policy.labels.yes}, each asked at four levels"
    )
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
