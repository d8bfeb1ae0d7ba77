"""The generated pictures that phase 6 asked about: how many, and which were left out and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from natix_hf.data.splits import short_reason
from natix_hf.provenance.stored import Stored


@dataclass(frozen=True)
class SyntheticHalf(Stored):
    """The pictures of `data.synthetic_half`.

    Args:
        source (`str`): The public name of their source.
        rows, positives (`int`): Number of pictures asked about, and of those with label 1.
        pixels_sha256 (`str`): Hash over their pixels and labels, in order.
        left_out (`dict[str, str]`): Pictures that were not asked about, as id -> reason.
    """

    FILE: ClassVar[str] = "synthetic_half.json"

    source: str
    rows: int
    positives: int
    pixels_sha256: str
    left_out: dict[str, str]

    @property
    def told(self) -> str:
        """The pictures in words."""
        reasons = Counter(short_reason(reason) for reason in self.left_out.values())
        lost = ", ".join(f"{count} x {reason}" for reason, count in reasons.items())
        return f"{self.rows} generated pictures of {self.source}" + (f", left out: {lost}" if lost else "")
