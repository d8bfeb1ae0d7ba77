"""The output of a command: plain lines on standard output, one line and an exit code for an error, a copy in a log."""

from __future__ import annotations

import enum
import io
import os
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from natix_hf.disk import disk_error, disk_line
from natix_hf.errors import NatixError, UsageError, cut, holds_secret, printable, redacted

# The columns of the word that opens a line: "device", "phase 1", "bundle". Lines below it are indented as far.
LABEL = 9
# The environment variable that says how much to print, in this process and those that it starts.
VERBOSITY = "NATIX_HF_VERBOSITY"


class Verbosity(enum.IntEnum):
    """How much to print. `QUIET`: results and errors. `NORMAL`: progress too. `VERBOSE`: details too."""

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
    """Escape characters that the console's encoding lacks: a path must not end a run. Tracebacks show no secrets."""
    hide_secrets()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def hide_secrets() -> None:
    """Take the secrets out of tracebacks. Typer puts a hook of its own there whenever a command runs."""
    sys.excepthook = _show_traceback


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


def refuse_secrets(arguments: Iterable[str]) -> None:
    """Refuse a token or a password on a command line, where it stays in the shell's history and others can read it.

    Raises:
        UsageError: if there is one. The line does not show it.
    """
    for argument in arguments:
        if holds_secret(argument):
            raise UsageError(
                f"the argument {cut(argument)} holds a token or a password, which others can read there: log in with "
                "`hf auth login` or set HF_TOKEN, and leave it out"
            )


def say(line: str = "", hang: int = 0) -> None:
    """Print a result: an answer, a figure or a place. It is always shown.

    Args:
        hang: On a terminal, wrap a long line and indent its continuation by this many columns. 0 does not wrap.
    """
    _show(line, Verbosity.QUIET, hang)


def tell(line: str = "", hang: int = 0) -> None:
    """Print progress. `--quiet` hides it. For `hang` see `say`."""
    _show(line, Verbosity.NORMAL, hang)


def detail(line: str) -> None:
    """Print a detail. Only `--verbose` shows it."""
    _show(line, Verbosity.VERBOSE)


def note(line: str) -> None:
    """Append a line to the logs of `log_to`, and print nothing."""
    _log(line)


def _show(line: str, least: Verbosity, hang: int = 0) -> None:
    line = "\n".join(map(printable, line.split("\n")))
    _log(line)
    if verbosity() >= least:
        sys.stdout.write((_wrapped(line, hang) if hang and sys.stdout.isatty() else line) + "\n")
        sys.stdout.flush()


def _wrapped(line: str, hang: int) -> str:
    wrapper = textwrap.TextWrapper(
        shutil.get_terminal_size().columns,
        subsequent_indent=" " * hang,
        break_long_words=False,  # a path stays whole, so that it can be copied
        break_on_hyphens=False,
    )
    return wrapper.fill(line)


def _log(line: str) -> None:
    for path in _logs if line else []:
        with suppress(OSError), path.open("a", encoding="utf-8") as file:  # the log must not end a run on a full disk
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}  {line}\n")


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Inside the block, append every line to a file too, with its time and at any verbosity. An error that ends the
    block is appended as well."""
    _logs.append(path)
    try:
        yield
    except BaseException as error:
        _log(f"ended by {type(error).__name__}: {printable(' '.join(str(error).split()))}")
        raise
    finally:
        _logs.remove(path)


def fail(error: NatixError) -> NoReturn:
    sys.stderr.write(f"natix-hf: {error}\n")
    raise SystemExit(error.exit_code)


@contextmanager
def errors_in_one_line(debug: bool) -> Iterator[None]:
    """Turn a known error into one line and an exit code. With `debug` the error passes through, with its traceback."""
    try:
        yield
    except NatixError as error:
        if debug:
            raise
        fail(error)
    except ModuleNotFoundError as error:  # of an installation without what only other commands need
        if debug or error.name is None or error.name.partition(".")[0] == "natix_hf":
            raise
        fail(NatixError(f"{error.name} is not installed, and this needs the whole package: pip install natix_hf"))
    except Exception as error:
        disk = disk_error(error)
        if disk is not None and not debug:
            fail(NatixError(disk_line(disk)))
        if debug or not isinstance(error, OSError):
            raise
        fail(NatixError(f"{error.strerror or error} {error.filename or ''}".strip() + " (--debug shows where)"))


def minutes(seconds: float) -> str:
    """A duration for people: `48 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole, rest = divmod(round(seconds), 60)
    return f"{whole // 60} h {whole % 60:02d} min" if whole >= 60 else f"{whole} min {rest:02d} s"
