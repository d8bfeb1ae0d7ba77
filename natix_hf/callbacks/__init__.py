"""Trainer callbacks: merging with proof, AdaLoRA's budget, facts for the model card."""
