"""Commands about labels: audit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.terminal import say


@app.command(cls=Command)
def audit(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder whose phase 1 ran with phase1.folds.")],
    hard: Annotated[
        bool, typer.Option("--hard", help="List rows with a right label and a wrong answer instead.")
    ] = False,
    to: Annotated[Path | None, typer.Option(help="Write to this folder. Default: audit in the run folder.")] = None,
) -> None:
    """List the labels of a run that look wrong, to review and train again.

    Writes audit.csv, audit.html and audit.json (with --hard hard.csv and hard.html). Only rows of train and
    val_select are looked at.
    """
    from datasets import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    if hard:
        from natix_hf.report.hard import told_hard, write_hard

        lines = told_hard(*write_hard(run_dir, to))
    else:
        from natix_hf.report.audit import told_audit, write_audit

        lines = told_audit(*write_audit(run_dir, to))
    for line in lines:
        say(line, hang=10)
