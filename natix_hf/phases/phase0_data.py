"""Phase 0: load the source, decode every image once, divide the rows. Writes `splits.json`."""

from __future__ import annotations

from typing import Any

from natix_hf.data.splits import write_splits
from natix_hf.phases.context import PhaseContext

SPLITS = "splits.json"


def run(context: PhaseContext) -> dict[str, Any]:
    splits = context.load_data().splits
    write_splits(context.folder / SPLITS, splits)
    return {"counts": splits.counts(), "dropped": len(splits.dropped)}
