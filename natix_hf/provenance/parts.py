"""A finished part of a phase: a report that names the files of the part with their checksums.

A phase that was interrupted has no manifest yet. By the report a later attempt knows what it may keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from natix_hf.errors import VerificationError
from natix_hf.provenance.files import check_files, describe_files, list_files, read_json, write_json
from natix_hf.provenance.manifest import MANIFEST, manifest_problems

_FILES = "files"
# What differs between two attempts whose results are equal.
_OF_THE_ATTEMPT = ("train_s", "pace", "resumed_from", "speed")


def write_part(path: Path, report: dict[str, Any], names: Iterable[str]) -> None:
    """Write the report of a finished part, without what is only true of this attempt.

    Args:
        path: The file, in the folder of the part.
        names: The files and folders of the part, in the same folder. Those that do not exist are left out.
    """
    whole = tuple(names)
    files = [name for name in list_files(path.parent) if name in whole or name.split("/")[0] in whole]
    stable = {key: value for key, value in report.items() if key not in _OF_THE_ATTEMPT}
    write_json(path, stable | {_FILES: describe_files(path.parent, files)})


def parts_to_keep(key_file: Path, key: dict[str, Any], names: Iterable[str]) -> list[str]:
    """What a new attempt at a phase may keep: the file of the key and the parts, or nothing if they were made with
    another key, or if the phase has finished and is damaged.

    Args:
        key_file: In the folder of the phase.
        key: All that the parts depend on, as JSON values.
        names: The files and folders of the parts.
    """
    folder = key_file.parent
    try:
        same = key_file.is_file() and read_json(key_file) == key
    except VerificationError:
        same = False
    if not same or ((folder / MANIFEST).is_file() and manifest_problems(folder)):
        return []
    return [key_file.name, *names]


def read_part(path: Path, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any] | None:
    """The report of a finished part, or None if there is none or nothing shows that its files are whole.

    Args:
        tell: Called with one line about the damage.
    """
    if not path.is_file():
        return None
    try:
        report = dict(read_json(path))
        recorded = report.pop(_FILES, None)
        problems = (
            [f"{path} is of an older version, which recorded no checksums"]
            if recorded is None
            else check_files(path.parent, recorded)
        )
    except (VerificationError, AttributeError, KeyError, TypeError, ValueError):
        problems = [f"{path} was damaged after it was written"]
    if problems:
        tell(f"{problems[0]}: this part is made again")
        return None
    return report
