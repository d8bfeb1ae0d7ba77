"""`bundle_manifest.json`: every other file with its sha256 and size, and the lineage of the bundle, under a seal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from natix_hf.bundle.names import BUNDLE_MANIFEST, MODEL_CARD
from natix_hf.errors import RunError, VerificationError, cut
from natix_hf.provenance.files import describe_files, json_sha256, list_files, write_json
from natix_hf.provenance.manifest import manifest_seal
from natix_hf.provenance.strict import read_strictly

SCHEMA = 2
_READ = (1, 2)  # 1 has neither digest nor seal
_MOST_BYTES = 4 * 2**20
_ALLOWED = re.compile(
    r"config\.json|model\.safetensors|preprocessor_config\.json|README\.md|model_card\.json|policy\.json"
    r"|evaluation\.json|gate\.safetensors|model\.onnx|read_policy\.py|plots/[a-z0-9_]+\.png"
)
_KEYS = {1: {"schema", "files", "lineage"}, 2: {"schema", "files", "lineage", "digest", "seal"}}
# What is another in every run: the subnet's card names the time, and README.md the run.
_OF_ONE_RUN = (MODEL_CARD, "README.md")


def is_allowed(name: str) -> bool:
    """True if a bundle may hold a file with this relative POSIX path."""
    return _ALLOWED.fullmatch(name) is not None


def write_bundle_manifest(bundle: Path, lineage: dict[str, Any]) -> None:
    """Write `bundle_manifest.json` with the checksum of every file.

    Raises:
        RunError: if the folder holds a file that a bundle may not hold.
    """
    names = [name for name in list_files(bundle) if name != BUNDLE_MANIFEST]
    strangers = [name for name in names if not is_allowed(name)]
    if strangers:
        raise RunError(f"{bundle / strangers[0]} is not a file that a bundle may hold: remove it")
    content = {"schema": SCHEMA, "files": describe_files(bundle, names), "lineage": lineage}
    write_json(bundle / BUNDLE_MANIFEST, sealed(content))


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest of the present schema with its digest and seal."""
    manifest = manifest | {"digest": bundle_digest(manifest["files"])}
    return manifest | {"seal": manifest_seal(manifest)}


def bundle_digest(files: dict[str, dict[str, Any]]) -> str:
    """Compute the sha256 over the files that answer and that measure. Equal runs have equal digests: README.md and
    model_card.json, which name the run and the time, do not count."""
    return json_sha256({name: facts for name, facts in files.items() if name not in _OF_ONE_RUN})


def read_bundle_manifest(bundle: Path) -> dict[str, Any]:
    """Read `bundle_manifest.json` and check its form and its seal, and nothing else.

    Raises:
        VerificationError: if it is missing, damaged, of another schema, or was edited.
    """
    path = bundle / BUNDLE_MANIFEST
    manifest = read_strictly(path, _MOST_BYTES)
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is not int or schema not in _READ:
        raise VerificationError(f"{path} is not a bundle manifest of schema {SCHEMA}")
    wrong = sorted(set(manifest) ^ _KEYS[schema])
    if wrong:
        has = "has the unknown key" if wrong[0] in manifest else "lacks"
        raise VerificationError(f"{path} is damaged: it {has} {cut(wrong[0])}")
    files = manifest["files"]
    if not isinstance(files, dict) or not isinstance(manifest["lineage"], dict):
        raise VerificationError(f"{path} is not a bundle manifest: its files or its lineage is no object")
    if not all(isinstance(facts, dict) and _is_described(facts) for facts in files.values()):
        raise VerificationError(f"{path} is damaged: a file in it has no sha256 or no size")
    if schema > 1 and (manifest["digest"], manifest["seal"]) != (bundle_digest(files), manifest_seal(manifest)):
        raise VerificationError(f"{path} was changed: its seal does not fit its content")
    checked: dict[str, Any] = manifest
    return checked


def _is_described(facts: dict[str, Any]) -> bool:
    sha256, size = facts.get("sha256"), facts.get("size")
    return set(facts) == {"sha256", "size"} and isinstance(sha256, str) and type(size) is int and size >= 0
