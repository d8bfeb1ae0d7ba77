"""Appends a benchmark's outcome to RESULTS.md, with date, cores and versions."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEADER = "# Measured\n\n| date | benchmark | outcome | cores, threads | versions |\n|---|---|---|---|---|\n"


def record(benchmark: str, outcome: str, packages: Sequence[str] = ("torch", "transformers")) -> None:
    """Prints the outcome and appends it as a row, with the versions of the packages that it depends on."""
    print(f"{benchmark}: {outcome}")
    if not RESULTS.is_file():
        RESULTS.write_text(_HEADER, encoding="utf-8")
    cores = f"{os.cpu_count()}, {torch.get_num_threads()}"
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    with RESULTS.open("a", encoding="utf-8") as handle:
        handle.write(f"| {time.strftime('%Y-%m-%d')} | {benchmark} | {outcome} | {cores} | {versions} |\n")
