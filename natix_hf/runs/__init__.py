"""The life of a run folder: the table of phases, what is current, what a phase is given, pins, verification."""
