"""Read JSON files that a stranger may have written: regular files only, bounded in size and strict in form.

A value is never guessed: a key that stands twice, NaN, infinity and a number beyond float64 are refused, although
Python's parser takes them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from natix_hf.errors import VerificationError, cut, shortened

MOST_BYTES = 2**20  # of a file of settings: they have some thousand
_DEEPEST = 50


def regular_size(path: Path) -> int:
    """The size of a regular file in bytes. Links are followed.

    Raises:
        VerificationError: if it is missing, a folder, a pipe, a device or out of reach. The message names it.
    """
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise VerificationError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise VerificationError(
            f"{path} cannot be read ({shortened(str(getattr(error, 'strerror', error)), 200)})"
        ) from None
    if S_ISDIR(facts.st_mode):
        raise VerificationError(f"{path} is a folder: it should be a file")
    if not S_ISREG(facts.st_mode):
        raise VerificationError(f"{path} is no regular file")
    return facts.st_size


def read_strictly(path: Path, most: int = MOST_BYTES) -> Any:
    """Read a JSON file of at most `most` bytes. A larger one is refused before it is opened.

    Raises:
        VerificationError: if it is missing, no regular file, too large, or not strict JSON. The message names it.
    """
    size = regular_size(path)
    if size > most:
        raise VerificationError(f"{path} has {size:,} bytes, and such a file has at most {most:,}")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise VerificationError(f"{path} cannot be read ({error.strerror})") from None
    return parse_strictly(content, path)


def parse_strictly(content: bytes, path: Path, what: str = "readable JSON") -> Any:
    """Parse JSON in UTF-8, with or without an editor's mark before it.

    Args:
        path: The file, for the message.
        what: What it should be, for the message.

    Raises:
        VerificationError: if it is not strict JSON.
    """
    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_object, parse_float=_number, parse_constant=_no_number)
        if _is_deep(value):
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
    except (ValueError, RecursionError) as error:
        raise VerificationError(
            f"{path} is not {what} ({shortened(str(error), 200)}): it was damaged after it was written"
        ) from None
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST + 1):
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {cut(key)} is there twice")
        found[key] = value
    return found


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{cut(text)} is too large a number")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
