"""The names of the two answers, as the subnet asks for them. `config.json` of every model repeats them."""

from __future__ import annotations

ID2LABEL = {0: "None", 1: "Roadwork"}
