"""What a command says: plain lines on standard output, one line and an exit code for an error."""

from __future__ import annotations

import sys
from typing import NoReturn

from natix_hf.errors import NatixError


def say(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def fail(error: NatixError) -> NoReturn:
    sys.stderr.write(f"natix-hf: {error}\n")
    raise SystemExit(error.exit_code)
