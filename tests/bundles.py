"""What somebody does to a bundle who means it: files edited, and every checksum made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.provenance.files import describe_files, list_files, write_json


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path: Path, **changed: Any) -> None:
    write_json(path, read(path) | changed)


def describe(bundle: Path, **changed: Any) -> None:
    """Makes the manifest fit whatever lies there now; `changed` are fields of it."""
    names = [name for name in list_files(bundle) if name != BUNDLE_MANIFEST]
    edit(bundle / BUNDLE_MANIFEST, **{"files": describe_files(bundle, names)} | changed)
