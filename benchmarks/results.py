"""Appends a benchmark's outcome to RESULTS.md, with date, cores and versions."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEADER = "# Measured\n\n| date | benchmark | outcome | cores, threads | versions |\n|---|---|---|---|---|\n"


def record(benchmark: str, outcome: str, packages: Sequence[str] = ("torch", "transformers")) -> None:
    """Prints the outcome and appends it as a row, with the versions of the packages that it depends on."""
    print(f"{benchmark}: {outcome}")
    if not RESULTS.is_file():
        RESULTS.write_text(_HEADER, encoding="utf-8")
    cores = f"{os.cpu_count()}, {_threads()}"
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    with RESULTS.open("a", encoding="utf-8") as handle:
        handle.write(f"| {time.strftime('%Y-%m-%d')} | {benchmark} | {outcome} | {cores} | {versions} |\n")


def _threads() -> str:
    """Risk control needs no torch, and the environment that MAPIE is in may have none."""
    if find_spec("torch") is None:
        return os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    return str(import_module("torch").get_num_threads())
