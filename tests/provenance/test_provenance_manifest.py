"""A manifest: equal for equal results, different for different ones, and none that was changed passes."""

from __future__ import annotations

import getpass
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from facts import tells
from refusals import refused

from natix_hf.errors import VerificationError
from natix_hf.provenance import manifest as module
from natix_hf.provenance.files import read_json, write_json
from natix_hf.provenance.manifest import (
    MANIFEST,
    Draft,
    manifest_digest,
    manifest_problems,
    manifest_seal,
    read_manifest,
    write_manifest,
)


def draft(**changes: Any) -> Draft:
    given: dict[str, Any] = {
        "run_id": "20260101T000000Z-000000", "recipe": "tiny", "phase": "phase1_baseline",
        "section": {"phase1": {"learning_rate": 1e-4}}, "section_sha256": "5" * 64,
        "upstream": {"phase0_data": "a" * 64}, "seed": 3, "rows": {"train": {"count": 2, "sha256": "b" * 64}},
    }  # fmt: skip
    return Draft(**(given | changes))


def phase_folder(folder: Path, text: str = "weights") -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_text(text)
    (folder / "logits.parquet").write_bytes(b"\0" * 1000)
    return folder


def test_a_manifest_names_every_file_but_itself_and_comes_back(tmp_path: Path) -> None:
    folder = phase_folder(tmp_path / "phase")
    (folder / ".tmp-x-12345678").write_text("left by a killed process")
    for _ in range(2):  # the second replaces the first and does not describe it
        written = write_manifest(folder, draft(), {"mcc": 0.5})
    assert list(written["files"]) == ["logits.parquet", "model/weights"], "relative, with forward slashes"
    assert read_manifest(folder) == written == read_json(folder / MANIFEST)
    assert written["metrics"] == {"mcc": 0.5} and written["seed"] == 3
    assert written["packages"]["torch"] and written["host"]["cpu_count"]
    assert manifest_problems(folder) == []


def test_the_digest_does_not_know_where_and_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = write_manifest(phase_folder(tmp_path / "one"), draft(), {"train_s": 1.0})
    monkeypatch.setattr(module, "host_facts", lambda: {"system": "Plan 9"})
    monkeypatch.setattr(module, "package_versions", lambda: {"torch": "9"})
    monkeypatch.setattr(module, "git_state", lambda: None)
    there = write_manifest(phase_folder(tmp_path / "two"), draft(run_id="another", started=0.0), {"train_s": 2.0})
    assert there["digest"] == here["digest"]
    assert there["started"] != here["started"]


IDENTITY: dict[str, Any] = {
    "phase": "phase4_explora", "section_sha256": "6" * 64, "upstream": {}, "rows": {},
}  # fmt: skip


@pytest.mark.parametrize("key", [*IDENTITY, "files"])
def test_the_digest_changes_with_what_makes_the_result(key: str, tmp_path: Path) -> None:
    one = write_manifest(phase_folder(tmp_path / "one"), draft(), {})
    text = "other weights" if key == "files" else "weights"
    changed = draft(**{key: IDENTITY[key]}) if key in IDENTITY else draft()
    other = write_manifest(phase_folder(tmp_path / "two", text), changed, {})
    assert {k for k in module._IDENTITY if one[k] != other[k]} == {key}
    assert one["digest"] != other["digest"]


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest | {"seal": manifest_seal(manifest)}


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "rows": lambda m: m | {"rows": {"train": {"count": 3, "sha256": "b" * 64}}},
    "no file listed": lambda m: m | {"files": {}},
    "a checksum": lambda m: m | {"files": m["files"] | {"model/weights": {"sha256": "0" * 64, "size": 7}}},
    "upstream": lambda m: m | {"upstream": {}},
    "the digest": lambda m: m | {"digest": "0" * 64},
    "the digest, sealed anew": lambda m: sealed(m | {"digest": "0" * 64}),
    "the schema, sealed anew": lambda m: sealed(m | {"schema": 2}),
    "a figure": lambda m: m | {"metrics": {"mcc": 1.0}},
    "no digest": lambda m: {k: v for k, v in m.items() if k != "digest"},
    "no rows": lambda m: {k: v for k, v in m.items() if k != "rows"},
    "no rows and a fitting digest": lambda m: (
        (n := {k: v for k, v in m.items() if k != "rows"}) | {"digest": manifest_digest(n)}
    ),
    "another schema": lambda m: m | {"schema": 2},
    "a list": lambda m: [m],
    "files as text and a fitting digest": lambda m: (n := m | {"files": "none"}) | {"digest": manifest_digest(n)},
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_manifest_edited_by_hand_is_found(edit: str, tmp_path: Path) -> None:
    folder = phase_folder(tmp_path)
    write_manifest(folder, draft(), {})
    write_json(folder / MANIFEST, EDITS[edit](read_json(folder / MANIFEST)))
    refused(VerificationError, lambda: read_manifest(folder), folder / MANIFEST)
    assert len(manifest_problems(folder)) == 1


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"schema": 1', b"\xff"])
def test_a_missing_or_damaged_manifest_is_one_problem(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    (line,) = manifest_problems(tmp_path)
    assert tells(line, tmp_path / MANIFEST)


def test_a_changed_file_is_a_problem_and_no_path_or_name_is_told(tmp_path: Path) -> None:
    folder = phase_folder(tmp_path / "private")
    write_manifest(folder, draft(), {})
    text, host = (folder / MANIFEST).read_text(), json.dumps(read_json(folder / MANIFEST)["host"])
    assert str(tmp_path) not in text and "/home" not in text
    assert platform.node() not in host and getpass.getuser() not in host
    (folder / "model" / "weights").write_text("Weights")
    (line,) = manifest_problems(folder)
    assert tells(line, folder / "model" / "weights", "sha256")
