"""The errors that people read: one line each, with the exit code of the command line."""

from __future__ import annotations

import difflib
import functools
import os
import re
import sys
from collections.abc import Iterable

_LONGEST_WORD = 200  # characters of a word that may be a misspelt one
_LONGEST_LINE = 2000  # characters of a message, whatever went into it


class NatixError(Exception):
    """Base class of the errors that this package raises on purpose. The text is one line: what is wrong, where, and
    what to do."""

    exit_code = 1

    def __str__(self) -> str:
        # names of files and classes may hold anything
        return shortened(printable("\\n".join(super().__str__().splitlines())), _LONGEST_LINE)


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
        raise RecipeError(f"{key} is {cut(value)}: it must be {allowed}")


LONGEST_VALUE = 80  # characters of a value in a message


def cut(value: object, most: int = LONGEST_VALUE) -> str:
    """A user's value for a message: as Python writes it, in one line, without secrets, at most 80 characters."""
    try:
        text = redacted(repr(value))
    except (RecursionError, ValueError):  # a value nested without end, a number of thousands of digits
        text = f"a {type(value).__name__} too large to show"
    return shortened(text, most)


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """A text of at most so many characters: its beginning and its end."""
    return text if len(text) <= most else f"{text[: most * 2 // 3 - 1]}…{text[len(text) - most // 3 :]}"


def printable(text: object) -> str:
    """A text for a message or a log: without secrets, and without characters that break a line or steer a terminal."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], redacted(str(text)))


# Control characters, line and paragraph separators, marks that turn the direction of a text, and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_SECRETS = re.compile(
    r"(?:hf|api_org)_[A-Za-z0-9]{16,}"  # tokens of the Hub
    r"|(?<=://)[^/\s@'\"]+(?=@)"  # user and password of a URL
    r"|(?<=bearer )[\w.~+/=-]{8,}"
    r"|(?:(?<=[?&;]token=)|(?<=[?&;]key=)|(?<=[?&;]sig=)|(?<=_token=)|(?<=[_-]key=)|(?<=apikey=)|(?<=password=)"
    r"|(?<=secret=)|(?<=-signature=)|(?<=[?&;]signature=)|(?<=-credential=)|(?<=security-token=))[^&\s'\"#;)]+",
    re.IGNORECASE,
)
HIDDEN = "***"
_SHORTEST_TOKEN = 6  # characters: less would hide words


def redacted(text: str) -> str:
    """A text without secrets: tokens of the Hub, this process's own token, and what a URL holds to sign in with."""
    for secret in _own_tokens():
        text = text.replace(secret, HIDDEN)
    return _SECRETS.sub(HIDDEN, text)


def _own_tokens() -> list[str]:
    """The tokens that this process may send."""
    constants = sys.modules.get("huggingface_hub.constants")
    known = [os.environ.get(name, "").strip() for name in _TOKEN_VARIABLES]
    known.append(_stored_token(str(constants.HF_TOKEN_PATH)) if constants is not None else "")
    return [token for token in known if len(token) >= _SHORTEST_TOKEN]


@functools.cache  # a message is no reason to read a file again
def _stored_token(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(1000).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def holds_secret(text: str) -> bool:
    """Whether a text holds something to sign in with."""
    return redacted(text) != text


def first_line(error: object) -> str:
    """The first line of an error's text, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(word: object, known: Iterable[object]) -> str | None:
    """The known word that is closest to `word`, or None if none is close."""
    if len(str(word)) > _LONGEST_WORD:
        return None
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return close[0] if close else None


def did_you_mean(word: object, known: Iterable[object], otherwise: str = "") -> str:
    """The end of an error line: the closest known word as a question, or `otherwise` if none is close."""
    close = nearest(word, known)
    return otherwise if close is None else f", did you mean {cut(close)}?"
