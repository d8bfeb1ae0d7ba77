"""A part of a training phase that is made once: an interrupted or later attempt takes it as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState

from natix_hf.provenance.parts import read_part, write_part
from natix_hf.runs.context import PhaseContext


def made_once(
    context: PhaseContext,
    done: Path,
    files: Iterable[str],
    make: Callable[[], dict[str, Any]],
    enough: Callable[[dict[str, Any]], bool] = lambda report: True,
) -> dict[str, Any]:
    """Make a part, unless an attempt has already done so. Every rank calls it.

    Args:
        done: The report of the part. It is written last.
        files: The files and folders of the part, beside the report.
        make: Makes them and returns the report. Every rank calls it; only the process that writes keeps the report.
        enough: Takes a report that was found and returns False if the part has to be made again.
    """
    found = read_part(done, context.tell)
    PartialState().wait_for_everyone()  # every rank looks for the report before rank 0 writes it
    if found is not None and enough(found):
        return found
    report = make()
    if context.is_main:
        write_part(done, report, files)
    PartialState().wait_for_everyone()
    return report
