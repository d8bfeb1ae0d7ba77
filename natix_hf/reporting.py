"""What a command says: plain lines on standard output, one line and an exit code for an error."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def errors_in_one_line(debug: bool) -> Iterator[None]:
    """Ends the process with one line and an exit code where something goes wrong that has a name; not with `debug`."""
    try:
        yield
    except NatixError as error:
        if debug:
            raise
        fail(error)
    except OSError as error:
        if debug:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space, the same --run-dir continues" if full else "--debug shows where"
        fail(NatixError(f"{error.strerror or error} {error.filename or ''}".strip() + f" ({advice})"))
