"""Phase 0: load the source, decode every image once, divide the rows. Writes `splits.json`."""

from __future__ import annotations

from natix_hf.data.splits import say_dropped, write_splits
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.terminal import tell

SPLITS = "splits.json"


def run(context: PhaseContext) -> Outcome:
    splits = context.load_data().splits
    write_splits(context.folder / SPLITS, splits)
    if splits.dropped:
        tell(f"rows left out: {say_dropped(splits.dropped)} ({SPLITS} lists them)")
    counts = splits.counts()
    told = ", ".join(f"{role} {count['rows']} in {count['groups']} groups" for role, count in counts.items())
    return Outcome({"counts": counts, "dropped": len(splits.dropped)}, told)
