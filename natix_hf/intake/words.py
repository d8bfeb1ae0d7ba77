"""Class names as people write them, and the pairs that are plain about which one means yes."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from natix_hf.errors import DataError

# Pairs of names that are clear about which one is label 1.
_PAIRS = (
    ("none", "roadwork"),
    ("0", "1"),
    ("no", "yes"),
    ("n", "y"),
    ("false", "true"),
    ("neg", "pos"),
    ("negative", "positive"),
)
UNLABELLED = "(no label)"  # the class of a row that is marked as having none
_WHOLE = re.compile(r"(-?\d+)\.0*")
_MISSING = frozenset({"nan", "<na>"})  # what pandas writes for a missing value
_NEGATIONS = tuple(word + joint for word in ("no", "not", "non", "without") for joint in ("", " ", "_", "-"))


def spelled(name: str) -> str:
    """A name without the differences that people do not mean: case, outer blanks, composed or decomposed accents."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def meaning(names: Iterable[str]) -> dict[str, int] | None:
    """The label of each name (as `spelled`), if the names plainly say yes and no, or only one of both. Else None.

    Plain are the usual pairs, and a name beside its negation: `cracked` and `not_cracked`.
    """
    known = {spelled(name) for name in names}
    for no, yes in _PAIRS:
        if known and known <= {no, yes}:
            return {name: int(name == yes) for name in known}
    if len(known) == 2:
        for name in known:
            [other] = known - {name}
            if name in {word + other for word in _NEGATIONS}:
                return {name: 0, other: 1}
    return None


def says_yes_or_no(names: Iterable[str]) -> bool:
    """True if the names are the two sides of a plain pair."""
    found = meaning(names)
    return found is not None and len(found) == 2


def class_name(value: Any, where: str) -> str | None:
    """A label as the name of a class; None if it is missing. -1 and other negative whole numbers give `UNLABELLED`.

    Args:
        value: Text, a bool, a whole number (1 or 1.0), or a one-hot list, whose class is the place of its 1.
        where: The row, for the error.

    Raises:
        DataError: If the value is no class, such as 0.5.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = unicodedata.normalize("NFC", value).strip()
        whole = _WHOLE.fullmatch(text)
        text = whole.group(1) if whole else text
        if re.fullmatch(r"-\d+", text):
            return UNLABELLED
        return text if text and text.casefold() not in _MISSING else None
    if isinstance(value, int | float) and float(value).is_integer():
        return str(int(value)) if value >= 0 else UNLABELLED
    hot = list(value) if isinstance(value, list | tuple) else []
    if len(hot) > 1 and all(item in (0, 1) for item in hot) and sum(hot) == 1:
        return str(hot.index(1))
    raise DataError(
        f"{where} has label {str(value)[:80]}: a label is text, true or false, a whole number such as 0 or 1, or a "
        "one-hot list"
    )
