"""The command line, one file per kind of command.

Heavy imports are inside the commands that need them, so that --help answers at once.
"""

from __future__ import annotations

from natix_hf.cli import (
    audit,
    bundles,
    certify,
    data,
    deploy,
    forecast,
    housekeeping,
    planning,
    predict,
    running,
    serve,
    subnet,
)
from natix_hf.cli.app import app, main

__all__ = [
    "app",
    "audit",
    "bundles",
    "certify",
    "data",
    "deploy",
    "forecast",
    "housekeeping",
    "main",
    "planning",
    "predict",
    "running",
    "serve",
    "subnet",
]
