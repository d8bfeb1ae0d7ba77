"""The short form of power_loss.py, and that it notices each flush and each whole removal that is left out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from power_loss import Recording, lose_power

from natix_hf.provenance import durable, files, manifest
from natix_hf.provenance.durable import make_folder
from natix_hf.provenance.files import atomic_folder, write_json
from natix_hf.provenance.manifest import Draft, write_manifest
from natix_hf.trainers import checkpoints

# A folder that a system cannot flush is one that it keeps in order, or so we must hope.
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows flushes no folders")


def test_no_prefix_of_what_real_phases_do_names_what_is_not_there(tmp_path: Path) -> None:
    recording = lose_power(tmp_path, [1, 2], drawn=2)
    assert recording.found == {}
    assert recording.moments > 150 and recording.states > 500


def miniature(root: Path) -> None:
    """What phases do, without a model: a checkpoint, results, a manifest, and the end of the checkpoint."""
    write_json(root / "run.json", {"schema": 1})
    phase = root / "phase1_baseline"
    checkpoint = phase / "checkpoints" / "checkpoint-1"
    make_folder(phase)
    checkpoint.mkdir(parents=True)  # as a library would, and without a flush
    for name in ("model.safetensors", "optimizer.pt"):
        (checkpoint / name).write_text(name)
    checkpoints.mark_complete(checkpoint)
    with atomic_folder(phase / "model") as folder:
        (folder / "weights").write_text("weights")
    (phase / "curve.png").write_text("a file that a library wrote")
    facts = {"section": {}, "section_sha256": "", "upstream": {}, "seed": 0}
    write_manifest(phase, Draft("run", "tiny", "phase1_baseline", **facts), {}, exclude=("checkpoints",))
    checkpoints.remove_folder(phase / "checkpoints")


def recorded(root: Path) -> Recording:
    recording = Recording(root)
    with recording.on():
        miniature(root)
    return recording


FORGOTTEN = {
    "the files of a checkpoint": (checkpoints, "settle", lambda folder: None),
    "the files of a manifest": (manifest, "settle", lambda folder: None),
    "the files of a folder": (files, "settle", lambda folder: None),
    "the content of a file": (files, "settle_file", lambda path, mode: None),
    "any folder": (durable, "sync_folder", lambda folder: None),
    "to remove a checkpoint whole": (checkpoints, "remove_folder", shutil.rmtree),
}


@pytest.mark.parametrize("what", [None, *FORGOTTEN])
def test_what_is_forgotten_is_found(what: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if what is not None:
        monkeypatch.setattr(*FORGOTTEN[what])
        if what == "the files of a folder":  # the manifest would flush them once more, but too late for a bundle
            monkeypatch.setattr(manifest, "settle", lambda folder: None)
    assert bool(recorded(tmp_path).found) == (what is not None)
