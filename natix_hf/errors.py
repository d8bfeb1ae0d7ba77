"""The errors that a person reads: one line each, with the exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NatixError(Exception):
    """Base of every error that this package raises on purpose. Its text is one line: what, where, what to do."""

    exit_code = 1


class UsageError(NatixError):
    """Bad usage, a bad recipe or bad input, found before any work began."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that cannot be read, or a key or value in it that cannot be right."""


class DataError(UsageError):
    """A data source that is missing, empty, or not what the recipe says it is."""


class LeakageError(NatixError):
    """A phase asked for rows of a role that it must not read, or rows of one role appear in another."""


class RunError(NatixError):
    """A phase could not finish. No manifest was written; complete checkpoints stay."""


class MergeMismatchError(RunError):
    """A merged model on disk does not answer as the trained one did. The unmerged weights stay."""


class HubError(NatixError):
    """The Hub or the way to it failed. What was asked for may be asked for again."""


class VerificationError(NatixError):
    """A file, manifest or bundle is not what its checksums say."""


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raises `RecipeError` naming the key, its value and what is allowed, unless `holds`."""
    if not holds:
        raise RecipeError(f"{key} is {value!r}: it must be {allowed}")


def first_line(error: object) -> str:
    """The first line of an error's text, or the name of its class where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(word: object, known: Iterable[object]) -> str | None:
    """The known word that `word` was most likely meant to be, or None where none is close."""
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return close[0] if close else None


def did_you_mean(word: object, known: Iterable[object], otherwise: str = "") -> str:
    """The end of an error line: the nearest known word as a question, or `otherwise` where none is close."""
    close = nearest(word, known)
    return otherwise if close is None else f", did you mean {close!r}?"
