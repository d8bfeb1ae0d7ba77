"""The life of a run folder: the table of phases, freshness, the input of a phase, pinned commits, verification."""
