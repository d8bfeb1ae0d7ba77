"""The command line, one file for each kind of command.

Every heavy import is inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

from natix_hf.cli import bundles, planning, running, subnet
from natix_hf.cli.app import app, main

__all__ = ["app", "bundles", "main", "planning", "running", "subnet"]
