"""The names of the two answers, as the subnet uses them. Every model's `config.json` repeats them."""

from __future__ import annotations

ID2LABEL = {0: "None", 1: "Roadwork"}
