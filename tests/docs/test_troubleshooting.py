"""The troubleshooting page quotes lines that the package can say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def quoted() -> list[str]:
    """What the page tells people to look for: the code in the first column of its tables."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    return [quote for row in rows for quote in re.findall(r"`([^`]+)`", row)]


def sayable() -> str:
    """Every text in the package's code, one a line; a formatted text by the parts that do not change."""
    found = []
    for path in sorted((ROOT / "natix_hf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_quoted_line_can_be_said() -> None:
    said, quotes = sayable(), quoted()
    assert len(quotes) >= 40 and "the moon is out of cheese" not in said
    assert [quote for quote in quotes if quote.lower() not in said.lower()] == []
