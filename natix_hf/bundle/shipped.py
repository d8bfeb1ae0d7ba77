"""`read_policy.py` in a bundle: our own file, whose bytes are known, so that nobody runs a stranger's in its place."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path

from natix_hf.bundle.names import READ_POLICY
from natix_hf.provenance.files import file_sha256

# The sha256 of every version that an export has shipped, oldest first. A change of the file adds a row.
VERSIONS = (
    "1915986896e13651f8ce59fe9630474d18f7078627aaa3b479e506408871f3e8",
    "f3892c8461dcfd38f2c766c738864f40484b3c2f210327613f56bac43953379d",
)


def shipped_source() -> str:
    """The text of `read_policy.py` as an export writes it, with Unix line ends."""
    return (files("natix_hf.bundle") / READ_POLICY).read_text(encoding="utf-8")


def shipped_sha256() -> str:
    """The sha256 of the file that an export writes."""
    return hashlib.sha256(shipped_source().encode()).hexdigest()


def shipped_problems(folder: Path, named: Collection[str]) -> list[str]:
    """One line if a bundle names a `read_policy.py` that no natix_hf has shipped. An older bundle has none.

    Args:
        named: The files that the manifest names.
    """
    path = folder / READ_POLICY
    if READ_POLICY not in named or not path.is_file() or file_sha256(path) in (*VERSIONS, shipped_sha256()):
        return []
    return [f"{path} is none that natix_hf has shipped: do not run it; a newer natix_hf may know it"]
