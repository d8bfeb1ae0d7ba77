"""Prints pip constraints that pin every package of pyproject.toml to the lowest version declared there.

pip has no such resolution. The script needs nothing installed; it lies beside the test that checks pyproject.toml.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def requirements() -> list[str]:
    """The dependencies of pyproject.toml and those of its extras, each once."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    return list(dict.fromkeys(project["dependencies"] + extras))


def lowest(requirement: str) -> tuple[str, str]:
    """Name and lowest version: `scikit-learn>=1.6,<2` is (`scikit-learn`, `1.6`)."""
    match = re.match(r"([\w.-]+)>=([\w.]+)", requirement)
    if match is None:
        raise SystemExit(f"pyproject.toml: {requirement!r} does not begin as NAME>=VERSION")
    return match[1], match[2]


if __name__ == "__main__":
    print("\n".join("==".join(lowest(requirement)) for requirement in requirements()))
