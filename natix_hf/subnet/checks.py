"""One line for each thing that is checked before a miner is deployed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """What was looked at, and what was found.

    Args:
        what: The thing, in one or two words.
        state: `"ok"`; `"wrong"`: the miner would fail or answer otherwise; `"warning"`: it works and costs something;
            `"unknown"`: it could not be looked at.
        line: What was found; if it is not ok, what to do.
    """

    what: str
    state: Literal["ok", "wrong", "warning", "unknown"]
    line: str


def either(what: str, holds: bool, ok: str, wrong: str) -> Check:
    """A check that is ok or wrong."""
    return Check(what, "ok" if holds else "wrong", ok if holds else wrong)
