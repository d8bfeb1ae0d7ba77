"""What was read from the source, in short, for page and card: without any path of this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from natix_hf.data.reading import Reading, reading_facts
from natix_hf.runs.lineage import public_text

_LONGEST = 16
_TITLES = {
    "files": "files",
    "label 0": "label 0",
    "label 1": "label 1",
    "no row": "classes left out",
    "groups": "groups",
    "sources": "rows by source",
    "reviewed": "after review",
    "splits": "splits",
    "alike": "look-alikes",
}


@dataclass(frozen=True)
class ReadInShort:
    """Counts with a title, and the warnings in full."""

    facts: dict[str, str]
    warnings: list[str]


def read_in_short(reading: Reading, source: Any) -> ReadInShort:
    """Shorten the block about what was read.

    Args:
        source: `data.source`, as the manifest of phase 0 holds it.
    """
    facts = {_TITLES[word]: public_text(text, source) for word, text in reading_facts(reading)}
    return ReadInShort(facts, [public_text(line, source) for line in reading["warnings"]])


def in_markdown(text: str) -> str:
    """Escape a text that holds other people's names, so that Markdown shows it as it is, in one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    escaped = re.sub(r"[\\`*_{}\[\]<>|~&$#]", r"\\\g<0>", line)
    return re.sub(r"(?i)(?<=\bwww)(?=\.)|(?=://)|(?=@)", r"\\", escaped)


def in_code(text: str) -> str:
    """A name as code in Markdown, whatever backticks it holds."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def in_cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table. A name without blanks may break after every 16 characters, so that
    the table fits a narrow window."""
    words = (re.findall(f".{{1,{_LONGEST}}}", word) for word in " ".join(text.split()).split(" "))
    return " ".join("<wbr>".join(in_markdown(part) for part in parts) for parts in words)
