"""The errors that people read: one line each, with the exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NatixError(Exception):
    """Base class of the errors that this package raises on purpose. The text is one line: what is wrong, where, and
    what to do."""

    exit_code = 1

    def __str__(self) -> str:
        return "\\n".join(super().__str__().splitlines())  # names of files and classes may hold line breaks


class UsageError(NatixError):
    """Bad usage, a bad recipe or bad input, found before any work begins."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that cannot be read, or that has an unknown key or an impossible value."""


class DataError(UsageError):
    """A data source that is missing or empty, or that does not match the recipe."""


class LeakageError(NatixError):
    """A phase asked for rows that it must not read, or rows of one split appear in another."""


class RunError(NatixError):
    """A phase could not finish. It wrote no manifest; complete checkpoints stay."""


class MergeMismatchError(RunError):
    """A merged model on disk does not answer like the trained one. The unmerged weights stay."""


class HubError(NatixError):
    """The Hub or the connection to it failed. The same request can be made again."""


class VerificationError(NatixError):
    """A file, manifest or bundle does not match its checksums."""


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raise a `RecipeError` that names the key, its value and what is allowed, unless `holds` is true."""
    if not holds:
        raise RecipeError(f"{key} is {value!r}: it must be {allowed}")


def first_line(error: object) -> str:
    """The first line of an error's text, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(word: object, known: Iterable[object]) -> str | None:
    """The known word that is closest to `word`, or None if none is close."""
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return close[0] if close else None


def did_you_mean(word: object, known: Iterable[object], otherwise: str = "") -> str:
    """The end of an error line: the closest known word as a question, or `otherwise` if none is close."""
    close = nearest(word, known)
    return otherwise if close is None else f", did you mean {close!r}?"
