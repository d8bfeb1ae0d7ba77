"""What a command says: plain lines on standard output, one line and an exit code for an error, a copy in a log."""

from __future__ import annotations

import enum
import errno
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from natix_hf.errors import NatixError

# How much is told, for this process and those that it starts.
VERBOSITY = "NATIX_HF_VERBOSITY"


class Verbosity(enum.IntEnum):
    """`QUIET`: results and errors; `NORMAL`: also what is going on; `VERBOSE`: also details."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


_logs: list[Path] = []


def set_verbosity(level: Verbosity) -> None:
    os.environ[VERBOSITY] = str(int(level))


def verbosity() -> Verbosity:
    given = os.environ.get(VERBOSITY, "")
    return Verbosity(int(given)) if given in ("0", "1", "2") else Verbosity.NORMAL


def robust_streams() -> None:
    """A path that the console's encoding lacks is shown escaped; it must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str = "") -> None:
    """A result: an answer, a figure, a place. It is always shown."""
    _show(line, Verbosity.QUIET)


def tell(line: str) -> None:
    """What is going on. `--quiet` hides it."""
    _show(line, Verbosity.NORMAL)


def detail(line: str) -> None:
    """What only somebody who looks closely wants to know. `--verbose` shows it."""
    _show(line, Verbosity.VERBOSE)


def _show(line: str, least: Verbosity) -> None:
    _log(line)
    if verbosity() >= least:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _log(line: str) -> None:
    for path in _logs:
        with suppress(OSError), path.open("a", encoding="utf-8") as file:  # a full disk ends no run by its log
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}  {line}\n")


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Inside, every line that is said goes to the end of a file too, with its time, whatever the verbosity; and an
    error that ends the block."""
    _logs.append(path)
    try:
        yield
    except BaseException as error:
        _log(f"ended by {type(error).__name__}: {' '.join(str(error).split())}")
        raise
    finally:
        _logs.remove(path)


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


def minutes(seconds: float) -> str:
    """A duration as a person says it: `48 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole, rest = divmod(round(seconds), 60)
    return f"{whole // 60} h {whole % 60:02d} min" if whole >= 60 else f"{whole} min {rest:02d} s"
