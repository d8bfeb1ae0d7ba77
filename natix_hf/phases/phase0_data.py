"""Phase 0: load the source, decode every image once, and split the rows. Writes `splits.json`."""

from __future__ import annotations

from natix_hf.data.splits import SPLITS, say_dropped, write_splits
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.terminal import LABEL, tell


def run(context: PhaseContext) -> Outcome:
    """Leave `splits.json` and show the size of each split."""
    splits = context.load_data().splits
    write_splits(context.folder / SPLITS, splits)
    counts, dropped = splits.counts(), len(splits.dropped)
    tell(f"{'split':>{LABEL + 10}}  {'rows':>8}  {'groups':>8}")
    for role, count in counts.items():
        tell(f"{role:>{LABEL + 10}}  {count['rows']:>8,}  {count['groups']:>8,}")
    if dropped:
        tell(f"{' ' * LABEL}rows left out: {say_dropped(splits.dropped)} ({SPLITS} lists them)", hang=LABEL)
    rows, groups = (sum(count[what] for count in counts.values()) for what in ("rows", "groups"))
    told = f"{rows:,} rows in {groups:,} groups" + (f", {dropped:,} rows left out" if dropped else "")
    return Outcome({"counts": counts, "dropped": dropped}, told)
