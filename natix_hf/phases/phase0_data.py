"""Phase 0: load the source, decode every image once, and split the rows. Writes `splits.json`."""

from __future__ import annotations

from natix_hf.data.groups import NONE
from natix_hf.data.reading import reading_lines, reading_of, split_lines
from natix_hf.data.splits import SPLITS, say_dropped, write_splits
from natix_hf.runs.context import Outcome, PhaseContext
from natix_hf.terminal import LABEL, tell


def run(context: PhaseContext) -> Outcome:
    """Leave `splits.json` and show the size of each split."""
    data = context.load_data()
    splits, reading = data.splits, reading_of(data)
    write_splits(context.folder / SPLITS, splits, reading)
    for line in (*reading_lines(reading), *split_lines(reading)):
        tell(f"{' ' * LABEL}{line}", hang=LABEL + 9)
    counts, dropped = splits.counts(), len(splits.dropped)
    if dropped:
        tell(f"{' ' * LABEL}rows left out: {say_dropped(splits.dropped)} ({SPLITS} lists them)", hang=LABEL)
    groups = f" in {reading['groups']['count']:,} groups" if reading["groups"]["from"] != NONE else ""
    told = f"{reading['rows']:,} rows{groups}" + (f", {dropped:,} rows left out" if dropped else "")
    return Outcome({"counts": counts, "dropped": dropped}, told)
