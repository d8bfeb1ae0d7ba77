"""What somebody does to a bundle who means it: files edited, and every checksum made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from natix_hf.bundle.manifest import sealed
from natix_hf.bundle.names import BUNDLE_MANIFEST, CONFIG, POLICY, PROCESSOR
from natix_hf.provenance.files import describe_files, file_sha256, ids_sha256, list_files, write_json
from natix_hf.provenance.manifest import manifest_digest, manifest_seal
from natix_hf.runs.graph import ORDER, PHASES

BOUND = {"config_sha256": CONFIG, "processor_sha256": PROCESSOR}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path: Path, **changed: Any) -> None:
    """A file with other values, and with a seal that fits them if it has one."""
    content = read(path) | changed
    if path.name == BUNDLE_MANIFEST and isinstance(content["files"], dict) and content["schema"] == 2:
        content = sealed(content)
    elif "seal" in content:
        content["seal"] = manifest_seal(content)
    write_json(path, content)


def bind(bundle: Path) -> None:
    """Makes the policy name the configs that lie there now."""
    if (bundle / POLICY).is_file():
        found = {key: file_sha256(bundle / name) for key, name in BOUND.items() if (bundle / name).is_file()}
        if set(read(bundle / POLICY)) > set(BOUND):
            edit(bundle / POLICY, **found)


def describe(bundle: Path, **changed: Any) -> None:
    """Makes the manifest fit whatever lies there now; `changed` are fields of it."""
    names = [name for name in list_files(bundle) if name != BUNDLE_MANIFEST]
    content = read(bundle / BUNDLE_MANIFEST) | {"files": describe_files(bundle, names)} | changed
    write_json(bundle / BUNDLE_MANIFEST, sealed(content))


def unbind(bundle: Path) -> None:
    """Makes it a bundle of the last version that bound no configs and sealed nothing."""
    policy, manifest = read(bundle / POLICY), read(bundle / BUNDLE_MANIFEST)
    write_json(bundle / POLICY, {k: v for k, v in policy.items() if k not in ("seal", *BOUND)} | {"schema": 4})
    describe(bundle)
    manifest = read(bundle / BUNDLE_MANIFEST)
    write_json(bundle / BUNDLE_MANIFEST, {"schema": 1, "files": manifest["files"], "lineage": manifest["lineage"]})


def redescribe(run: Path, *numbers: int) -> None:
    """Makes the manifests of phases of a run (all, in order) fit whatever lies there now."""
    there = [n for n in ORDER if (run / PHASES[n].folder / "manifest.json").is_file()]
    for phase in [PHASES[n] for n in numbers or there]:
        folder = run / phase.folder
        manifest = read(folder / "manifest.json")
        manifest["files"] = describe_files(folder, (n for n in list_files(folder) if n != "manifest.json"))
        if not numbers:
            manifest["upstream"] = {
                name: read(run / name / "manifest.json")["digest"] for name in manifest["upstream"]
            }
        manifest["inputs"] = {name: file_sha256(run / name) for name in manifest["inputs"]}
        rows = read(folder / "rows_read.json")
        manifest["rows"] = {role: {"count": len(ids), "sha256": ids_sha256(ids)} for role, ids in rows.items()}
        manifest["digest"] = manifest_digest(manifest)
        manifest["seal"] = manifest_seal(manifest)
        write_json(folder / "manifest.json", manifest)
