"""The phases and what each may read, needs and uses. `graph.py` is the table; one file a phase."""
