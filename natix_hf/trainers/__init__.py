"""Trainer subclasses and the supervised stage that phases share."""
