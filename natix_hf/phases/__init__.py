"""The phases, one file each. `runs/graph.py` holds the table of what each phase needs, uses and may read."""
