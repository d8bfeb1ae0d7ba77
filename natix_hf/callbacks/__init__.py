"""Trainer callbacks: the proof of a merge, AdaLoRA's budget."""
