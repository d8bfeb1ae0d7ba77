"""Appends a benchmark's outcome to RESULTS.md, with date, cores and versions."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import transformers

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEADER = "# Measured\n\n| date | benchmark | outcome | cores, threads | versions |\n|---|---|---|---|---|\n"


def record(benchmark: str, outcome: str) -> None:
    """Prints the outcome and appends it as a row."""
    print(f"{benchmark}: {outcome}")
    if not RESULTS.is_file():
        RESULTS.write_text(_HEADER, encoding="utf-8")
    cores = f"{os.cpu_count()}, {torch.get_num_threads()}"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    with RESULTS.open("a", encoding="utf-8") as handle:
        handle.write(f"| {time.strftime('%Y-%m-%d')} | {benchmark} | {outcome} | {cores} | {versions} |\n")
