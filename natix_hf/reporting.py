"""What a command says: plain lines on standard output, one line and an exit code for an error."""

from __future__ import annotations

import io
import sys
from typing import NoReturn

from natix_hf.errors import NatixError


def robust_streams() -> None:
    """A path that the console's encoding lacks is shown escaped; it must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def fail(error: NatixError) -> NoReturn:
    sys.stderr.write(f"natix-hf: {error}\n")
    raise SystemExit(error.exit_code)
