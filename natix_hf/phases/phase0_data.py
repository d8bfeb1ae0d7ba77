"""Phase 0: load the source, decode every image once, divide the rows. Writes `splits.json`."""

from __future__ import annotations

from typing import Any

from natix_hf.data.splits import say_dropped, write_splits
from natix_hf.phases.context import PhaseContext
from natix_hf.reporting import say

SPLITS = "splits.json"


def run(context: PhaseContext) -> dict[str, Any]:
    splits = context.load_data().splits
    write_splits(context.folder / SPLITS, splits)
    if splits.dropped:
        say(f"rows left out: {say_dropped(splits.dropped)} ({SPLITS} lists them)")
    return {"counts": splits.counts(), "dropped": len(splits.dropped)}
