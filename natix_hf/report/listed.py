"""The lists of an audit: tables that a person opens, reviews and gives back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from natix_hf.data.reviewed import actions_in
from natix_hf.errors import UsageError
from natix_hf.provenance.files import write_text


def check_folder(folder: Path, name: str) -> Path:
    """Check that a list of this name may be written to a folder, and return the folder.

    Raises:
        UsageError: If the folder holds such a list that somebody has reviewed, or is no folder.
    """
    path = folder / name
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--to {folder} is a file: name a folder")
    if path.is_file() and (filled := actions_in(path)):
        raise UsageError(
            f"{path} has been reviewed ({len(filled):,} rows have an action) and would be replaced: move it, or write "
            "to another folder with --to"
        )
    return folder


def write_list(path: Path, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Write a table. It begins with the mark by which Excel knows UTF-8."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    write_text(path, "\ufeff" + text.getvalue())
