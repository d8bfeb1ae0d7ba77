"""Trainer subclasses, their callbacks, and the training stages that the phases use."""
