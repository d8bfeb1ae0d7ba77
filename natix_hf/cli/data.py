"""Commands about data: inspect."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.terminal import say


@app.command(cls=Command)
def inspect(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, an archive, a table, a Hub dataset or a recipe.yaml.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="data.KEY=VALUE", help="Keys of the recipe's data section.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a run would read: files, classes, splits, groups, duplicates.

    Nothing is trained. Every picture is decoded once, as in a run, and the copies are kept for it.
    """
    from datasets import disable_progress_bars

    from natix_hf.data.reading import reading_lines, reading_of, split_lines
    from natix_hf.data.rows import load_image_data
    from natix_hf.recipe import inspected_config

    config = inspected_config(source, overrides or [])
    if not sys.stderr.isatty():  # in a file or a pipe every update would be a line of its own
        disable_progress_bars()
    reading = reading_of(load_image_data(config))
    if as_json:
        say(json.dumps(reading, ensure_ascii=False))
        return
    for line in (*reading_lines(reading), "", *split_lines(reading)):
        say(line, hang=9)
