"""What was typed in a recipe beside what it stands for: a class may be called `no`, `01` or `1e3`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from natix_hf.errors import RecipeError, cut, holds_secret, shortened


@dataclass(frozen=True)
class Typed:
    """A number, or a word such as `true` or `no`, as it was typed in YAML, and what it stands for.

    A text key takes `text`, so that a class may be called `1`, `no` or `1e3`. Any other key takes `value`.
    """

    text: str
    value: bool | int | float

    @property
    def is_word(self) -> bool:
        """True for `yes`, `no`, `on` and `off`. They mean true or false only where a key takes nothing else."""
        return isinstance(self.value, bool) and self.text.lower() not in ("true", "false")


def as_typed(value: Any) -> Any:
    """A whole number, true or false from Python as a recipe file would hold it, in a list too."""
    if isinstance(value, list | tuple):
        return [as_typed(item) for item in value]
    return Typed(str(value).lower(), value) if isinstance(value, int) else value


def untyped(value: Any) -> Any:
    """Replace what was typed by what it stands for, at any depth."""
    if isinstance(value, Typed):
        return value.value
    if isinstance(value, dict):
        return {key: untyped(item) for key, item in value.items()}
    return [untyped(item) for item in value] if isinstance(value, list) else value


_DEEPEST = 20  # levels of lists and keys in one value


def require_plain(value: Any, key: str, depth: int = 0) -> None:
    """Refuse values that a run could not keep, at any depth: what JSON cannot hold, such as infinity, NaN and dates,
    and what nobody else may read, such as a token.

    Raises:
        RecipeError: if there is one; the line names its key, and never shows a secret.
    """
    if depth > _DEEPEST:
        raise RecipeError(f"{shortened(key)} is nested more than {_DEEPEST} levels deep")
    if isinstance(value, dict):
        for name, item in value.items():
            require_plain(name, f"a key of {key}")
            require_plain(item, f"{key}.{name}", depth + 1)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            require_plain(item, f"{key}[{i}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{shortened(key)} is {cut(value)}: expected a finite number")
    elif not isinstance(value, str | int | float | None):
        kind = type(value).__name__
        raise RecipeError(f"{shortened(key)} is {cut(value)} ({kind}): expected text, a number, true, false or null")
    elif isinstance(value, str):
        if holds_secret(value):
            raise RecipeError(
                f"{shortened(key)} holds a token or a password, and a run writes its recipe down: log in with "
                "`hf auth login` or set HF_TOKEN, and name the source without it"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise RecipeError(
                f"{shortened(key)} is {cut(value)}: it holds half a character, which no file can keep: rename it"
            )
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise RecipeError(f"{shortened(key)} is {cut(value)}: expected a number of less than 64 bits")
