"""Every key of a recipe with its type, default and meaning, for `natix-hf keys` and docs/keys.md.

`python -m natix_hf.keys > docs/keys.md` writes the page.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import MISSING, dataclass, fields
from typing import Any

from natix_hf.errors import UsageError, cut, did_you_mean
from natix_hf.recipe import Recipe
from natix_hf.section import (
    Section,
    describe,
    item_section_of,
    key_meanings,
    key_name,
    key_types,
    section_of,
    unknown_key,
)
from natix_hf.trainers.config import Argument, TrainingSection

_WIDEST = 100  # columns; longer lines are hard to read, however wide the terminal is
_OWN = "its own defaults"
_FURTHER = "Any other field of transformers.TrainingArguments is a key of this section too."
_INTRODUCTION = """\
# Every key of a recipe

`python -m natix_hf.keys > docs/keys.md` makes this page from the code. `natix-hf keys SECTION` prints the same in a
terminal. A key under `phase1:` in the YAML file is `phase1.KEY=VALUE` on the command line."""


@dataclass(frozen=True)
class Key:
    """One row of the table: `type`, `default` and `meaning` are text."""

    name: str
    type: str
    default: str
    meaning: str


def sections() -> dict[str, type[Section]]:
    """Every section of a recipe by its place, such as `data.augment`; "" is the recipe itself."""
    found: dict[str, type[Section]] = {"": Recipe}
    waiting = [""]
    while waiting:
        place = waiting.pop(0)
        hints = key_types(found[place])
        inner = {name: section_of(hint) or item_section_of(hint) for name, hint in hints.items()}
        for name, section in inner.items():
            if section is not None:
                found[f"{place}.{name}".lstrip(".")] = section
                waiting.append(f"{place}.{name}".lstrip("."))
    return dict(sorted(found.items()))


def keys_of(section: type[Section]) -> list[Key]:
    """The keys of a section: its own keys first, then the fields of TrainingArguments that have a default here."""
    types, meanings = key_types(section), key_meanings(section)
    defaults = {
        key_name(f): f.default if f.default_factory is MISSING else f.default_factory() for f in fields(section)
    }
    names = sorted(types, key=lambda name: isinstance(meanings[name], Argument))
    rows = []
    for name in names:
        inner = section_of(types[name])
        meaning = meanings[name] or (summary(inner) if inner is not None else "")
        rows.append(Key(name, describe(types[name]), _default(defaults[name]), meaning))
    return rows


def summary(section: type[Section]) -> str:
    """The first line of a section's docstring, which says what the section is about."""
    return (section.__doc__ or "").strip().splitlines()[0]


def as_text(place: str | None = None, width: int = 80) -> str:
    """The text that `natix-hf keys` prints about all sections, one section or one key.

    Raises:
        UsageError: if there is no such section or key.
    """
    known = sections()
    if place is None:
        return "\n\n".join(_text(name, section, keys_of(section), width) for name, section in _listed(known).items())
    if place in known:
        return _text(place, known[place], keys_of(known[place]), width)
    outer, _, name = place.rpartition(".")
    if outer not in known:
        listed = ", ".join(name for name in known if name)
        raise UsageError(
            f"no section {cut(outer)}{did_you_mean(outer, known, otherwise=f': the sections are {listed}')}"
        )
    rows = keys_of(known[outer])
    if name not in [key.name for key in rows]:
        raise unknown_key(name, outer, [key.name for key in rows], note=_note(known[outer]))
    return _text(outer, known[outer], [key for key in rows if key.name == name], width)


def as_markdown() -> str:
    """The text of docs/keys.md."""
    parts = [_INTRODUCTION]
    for place, section in _listed(sections()).items():
        head = f"## `{place}`" if place else "## At the top"
        rows = [
            f"| `{key.name}` | {_cell(key.type)} | {_code(key.default)} | {_cell(key.meaning)} |"
            for key in keys_of(section)
        ]
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
        further = [_FURTHER] if issubclass(section, TrainingSection) else []
        parts += [head, summary(section), table, *further]
    return "\n\n".join(parts) + "\n"


def terminal_width() -> int:
    return min(_WIDEST, shutil.get_terminal_size().columns)


def _listed(known: dict[str, type[Section]]) -> dict[str, type[Section]]:
    """The sections with each class once: `phase4.supervised` has the same keys as `phase1`."""
    firsts: dict[type[Section], str] = {}
    for place, section in known.items():
        firsts.setdefault(section, place)
    return {place: section for section, place in firsts.items()}


def _text(place: str, section: type[Section], rows: list[Key], width: int) -> str:
    lines = [f"{place or 'the recipe'}: {summary(section)}"]
    for key in rows:
        lines += [
            "",
            f"{place}.{key.name}".lstrip("."),
            _wrapped(f"{key.type}; default: {key.default}", width),
            _wrapped(key.meaning, width),
        ]
    if issubclass(section, TrainingSection) and len(rows) > 1:
        lines += ["", _FURTHER]
    return "\n".join(lines)


def _note(section: type[Section]) -> str:
    return ", and every field of TrainingArguments" if issubclass(section, TrainingSection) else ""


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ")


def _default(value: Any) -> str:
    if isinstance(value, Section):
        return _OWN
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(_default, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return text if text == _OWN else f"`{text}`"


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
