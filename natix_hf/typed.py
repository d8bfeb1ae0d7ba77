"""What was typed in a recipe beside what it stands for: a class may be called `no`, `01` or `1e3`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
