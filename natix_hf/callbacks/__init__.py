"""Callbacks for any Trainer: the proof of a merge."""
