"""What a bad connection leaves in the Hub's cache: what it damaged goes, and nothing else does."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from bundles import read
from conftest import REPO, Command, refused
from local_hub import LocalHub

from natix_hf.bundle import fetch
from natix_hf.bundle.contents import bundle_problems
from natix_hf.bundle.load import load_bundle
from natix_hf.bundle.names import BUNDLE_MANIFEST
from natix_hf.bundle.push import Published
from natix_hf.errors import NatixError, VerificationError


def change(path: Path, old: bytes, new: bytes) -> None:
    """In a blob of the cache, past the link to it; of the same length, as bytes that were changed on the way."""
    content = path.read_bytes()
    assert content.count(old) >= 1 and len(old) == len(new)
    path.resolve().write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize("pinned", [True, False])
def test_a_manifest_damaged_on_the_way_that_still_is_one(pinned: bool, published: Published, hub: LocalHub) -> None:
    """In a figure of a file it shows by itself, in the lineage to whoever expects another one. The cache is healed."""
    folder = load_bundle(REPO).folder
    manifest = read(folder / BUNDLE_MANIFEST)
    old = manifest["lineage"]["run_id"] if pinned else manifest["files"]["README.md"]["sha256"]
    change(folder / BUNDLE_MANIFEST, old.encode(), old[::-1].encode())
    expected = published.manifest_sha256 if pinned else None
    with refused(VerificationError, REPO, "again"):
        load_bundle(REPO, expected=expected)
    before = len(hub.asked("GET", "/resolve/"))
    assert load_bundle(REPO, expected=published.manifest_sha256).folder == folder
    assert [request.path.rsplit("/", 1)[1] for request in hub.asked("GET", "/resolve/")[before:]] == [BUNDLE_MANIFEST]


def test_verify_heals_too(published: Published, hub: LocalHub, command: Command) -> None:
    hub.fail("wrong_bytes", "GET", "/resolve/.*model.safetensors")
    code, out, _ = command("verify", REPO)
    assert code == 1 and "model.safetensors" in out
    hub.heal()
    assert command("verify", REPO)[0] == 0


def test_what_was_published_like_that_is_not_downloaded_again(published: Published, hub: LocalHub) -> None:
    hub.commit(REPO, {"README.md": b"# later"})
    for _ in range(2):
        with refused(VerificationError, REPO, "README.md"):
            load_bundle(REPO)
    assert len([r for r in hub.asked("GET", r"/resolve/.*README\.md") if r.status == 200]) == 1 + 1  # read back, once


def test_a_wrong_pin_costs_nobody_the_copy(published: Published, hub: LocalHub) -> None:
    folder = load_bundle(REPO).folder
    hub.stop()
    with refused(VerificationError, BUNDLE_MANIFEST, "0" * 64):
        load_bundle(REPO, expected="0" * 64)
    assert load_bundle(REPO, expected=published.manifest_sha256).folder == folder


@pytest.mark.parametrize("missing", [BUNDLE_MANIFEST, "model.safetensors", "policy.json"])
def test_a_download_that_was_cut_off_costs_nobody_the_older_copy(
    missing: str, published: Published, hub: LocalHub
) -> None:
    """The two revisions share all blobs but one."""
    older = load_bundle(REPO, "v1").folder
    hub.commit(REPO, {"plots/later.png": b"x"})
    snapshot = older.with_name(hub.commits(REPO)[0])
    shutil.copytree(older, snapshot, symlinks=True)  # as far as the connection went
    (snapshot / missing).unlink()
    (older.parent.parent / "refs" / "main").write_text(snapshot.name, encoding="ascii")
    hub.stop()
    with pytest.raises(NatixError):
        load_bundle(REPO)
    assert load_bundle(REPO, "v1").folder == older and bundle_problems(older) == []


def test_a_cache_that_others_own(published: Published, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong is told, whether it can be taken out or not."""
    folder = load_bundle(REPO).folder
    change(folder / "README.md", b"#", b"!")

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with refused(VerificationError, "README.md", "Permission denied"):
        load_bundle(REPO)


def test_the_hubs_notes_are_for_a_folder_not_for_a_repository(published: Published, hub: LocalHub) -> None:
    """`.cache/huggingface` is what a download leaves in a folder; in a repository it could hold anything."""
    for name in (".cache/huggingface/pytorch_model.bin", ".cache/x", ".gitattributes/x"):
        hub.commit(REPO, {name: b"\x80pickle"})
        with refused(VerificationError, REPO, name):
            load_bundle(REPO)
        assert not hub.asked("GET", f"/resolve/.*{name}")
        hub.commit(REPO, {name: None})
    load_bundle(REPO)


def test_a_folder_that_the_client_itself_filled_is_a_bundle(published: Published, tmp_path: Path) -> None:
    """`hf download --local-dir`: with the Hub's own file and its notes beside the bundle's."""
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(REPO, local_dir=tmp_path / "here"))
    assert (folder / ".cache").is_dir() and (folder / ".gitattributes").is_file()
    load_bundle(folder, expected=published.manifest_sha256)


# Pull.


@pytest.mark.parametrize("name", ["roadwork", "", ".", "../x", "a/b/c", "http://host/x"])
def test_pull_wants_the_name_of_a_repository(name: str, hub: LocalHub, tmp_path: Path, command: Command) -> None:
    code, _, err = command("pull", name, "--to", tmp_path / "here")
    assert code == 2 and repr(name) in err and "org/name" in err
    assert not hub.requests and not (tmp_path / "here").exists()


def test_several_problems_are_counted(published: Published) -> None:
    folder = load_bundle(REPO).folder
    for name in ("README.md", "policy.json", "evaluation.json"):
        change(folder / name, b"e", b"E")
    with refused(VerificationError, REPO, "and 2 more", "again"):
        load_bundle(REPO)


def test_a_disk_that_is_full_is_no_bad_connection(
    published: Published, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    code, _, err = command("verify", REPO)
    assert code == 1 and "No space left on device" in err and "connection" not in err


def test_a_name_that_is_no_hash_is_not_trusted(tmp_path: Path) -> None:
    """Of a mirror that names its blobs otherwise nothing is known."""
    blob = tmp_path / "an-etag"
    blob.write_bytes(b"x")
    assert not fetch._is_as_named(blob)
