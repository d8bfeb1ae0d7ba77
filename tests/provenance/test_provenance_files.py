"""The old file or the whole new one, whatever happens in between; and checksums that notice one byte."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from facts import tells
from refusals import refused

from natix_hf.errors import VerificationError
from natix_hf.provenance import durable, files
from natix_hf.provenance.files import (
    atomic_file,
    atomic_folder,
    check_files,
    describe_files,
    file_sha256,
    folder_fingerprint,
    ids_sha256,
    json_sha256,
    list_files,
    read_json,
    write_json,
    write_text,
)


def everything(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.bin"
    for content in (b"old", b"new"):
        with atomic_file(target) as temporary:
            temporary.write_bytes(content)
            assert temporary.parent == target.parent, "os.replace is atomic within a file system only"
        assert everything(tmp_path) == {"new/a.bin": content}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for names in (["old", "sub/old"], ["new"]):
        with atomic_folder(tmp_path / "folder") as temporary:
            for name in names:
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_text(name)
        assert everything(tmp_path) == {f"folder/{name}": name.encode() for name in names}
        assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def _make_old(path: Path, is_folder: bool) -> None:
    if is_folder:
        path.mkdir()
        path = path / "a"
    path.write_text("old")


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("existed", [False, True])
def test_an_error_inside_leaves_the_old_content_and_nothing_else(
    is_folder: bool, existed: bool, tmp_path: Path
) -> None:
    if existed:
        _make_old(tmp_path / "x", is_folder)
    before = everything(tmp_path)
    with pytest.raises(RuntimeError), (atomic_folder if is_folder else atomic_file)(tmp_path / "x") as temporary:
        (temporary / "a" if is_folder else temporary).write_text("half")
        assert list_files(tmp_path) == list(before), "what is unfinished is not listed"
        raise RuntimeError
    assert everything(tmp_path) == before and len(list(tmp_path.iterdir())) == existed


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_replace_that_fails_leaves_the_old_content(
    is_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or a file that another program holds open on Windows."""
    _make_old(tmp_path / "x", is_folder)
    before, real = everything(tmp_path), os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "x" and not Path(source).name.startswith(".tmp-back"):
            monkeypatch.setattr(files.os, "replace", real)
            raise PermissionError(13, "held open")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises(PermissionError), (atomic_folder if is_folder else atomic_file)(tmp_path / "x") as temporary:
        (temporary / "a" if is_folder else temporary).write_text("new")
    assert everything(tmp_path) == before


def test_content_is_flushed_before_its_name_and_that_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    write_text(tmp_path / "a", "text")
    with atomic_folder(tmp_path / "b") as temporary:
        (temporary / "x").write_text("1")
        (temporary / "y").write_text("2")
    folders = 0 if os.name == "nt" else 1  # which Windows cannot flush
    of_a_file = ["fsync", "replace", *["fsync"] * folders]
    assert order == [*of_a_file, "fsync", "fsync", *["fsync"] * 2 * folders, "replace", *["fsync"] * folders]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_get_the_permissions_that_open_gives(umask: int, tmp_path: Path) -> None:
    """safetensors writes for the owner alone, and so does whatever makes temporary files and folders."""
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "new" / "a") as temporary:
            temporary.unlink()
            temporary.touch(mode=0o600)
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "inner").mkdir(mode=0o700)
            for name in ("b", "inner/c"):
                (temporary / name).touch(mode=0o600)
            (temporary / "d").touch(mode=0o444)
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError), atomic_file(tmp_path / "file" / "a"):
        raise AssertionError("the work began")


def test_a_folder_is_removed_whole_with_what_an_earlier_call_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("checkpoints/1/a", ".tmp-checkpoints-01234567/b", "kept/c"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    seen = []
    real = durable.shutil.rmtree
    monkeypatch.setattr(durable.shutil, "rmtree", lambda path, **_: (seen.append(path.name), real(path))[1])
    durable.remove_folder(tmp_path / "checkpoints")
    durable.remove_folder(tmp_path / "checkpoints")
    assert everything(tmp_path) == {"kept/c": b""}
    assert len(seen) == 2 and all(name.startswith(".tmp-checkpoints-") for name in seen)


def test_temporaries_of_safetensors_are_no_results(tmp_path: Path) -> None:
    for name in (".tmpAb3xYz", "model/.tmp000000", ".tmp-a-01234567", ".tmpnotes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_files(tmp_path) == [".tmpnotes.txt"]
    files.remove_temporaries(tmp_path)
    assert everything(tmp_path) == {".tmpnotes.txt": b""}


def test_text_and_json_have_the_same_bytes_everywhere(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"
    value = {"b": [1, None, "é"], "a": 0.1}
    write_json(tmp_path / "b.json", value)
    assert read_json(tmp_path / "b.json") == value
    assert b"\r" not in (tmp_path / "b.json").read_bytes()
    with pytest.raises(ValueError):
        write_json(tmp_path / "b.json", float("nan"))
    assert read_json(tmp_path / "b.json") == value


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", None])
def test_unreadable_json_names_the_file(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    refused(VerificationError, lambda: read_json(path), path, *([] if content is not None else ["missing"]))
    (tmp_path / "a").write_text("a file where a folder should be")
    refused(VerificationError, lambda: read_json(tmp_path / "a" / "b.json"), tmp_path / "a" / "b.json", "missing")


def test_hashes_of_values() -> None:
    assert json_sha256({"a": 1, "b": [2]}) == json_sha256({"b": [2], "a": 1}) != json_sha256({"a": 1, "b": [3]})
    assert ids_sha256(["a", "b"]) == ids_sha256(["b", "a"]) != ids_sha256(["a"])
    assert ids_sha256(["ab"]) != ids_sha256(["a", "b"])


def test_check_files_names_what_is_off_and_nothing_else(tmp_path: Path) -> None:
    for name in ("whole", "sub/gone", "short", "flipped", "unlisted"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(range(100)))
    described = describe_files(tmp_path, ["whole", "sub/gone", "short", "flipped"])
    assert check_files(tmp_path, described) == []
    assert described["whole"] == {"sha256": file_sha256(tmp_path / "whole"), "size": 100}
    (tmp_path / "sub/gone").unlink()
    (tmp_path / "short").write_bytes(bytes(range(99)))
    (tmp_path / "flipped").write_bytes(bytes([*range(99), 0]))
    (tmp_path / "unlisted").unlink()
    flipped, short, gone = check_files(tmp_path, described)
    assert tells(gone, tmp_path / "sub/gone", "missing") and tells(flipped, tmp_path / "flipped", "sha256")
    assert tells(short, tmp_path / "short", 99, 100)


def test_a_fingerprint_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    def make(folder: Path) -> Path:
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "a").write_text("1")
        (folder / "b").write_text("2")
        return folder

    one = folder_fingerprint(make(tmp_path / "one"))
    other = make(tmp_path / "elsewhere" / "two")
    os.utime(other / "b", (0, 0))
    (other / ".tmp-b-12345678").write_text("left by a killed process")
    assert folder_fingerprint(other) == one
    seen = {one}
    for change in (
        lambda: (other / "b").write_text("3"),
        lambda: (other / "b").write_text("33"),
        lambda: (other / "b").rename(other / "c"),
        lambda: (other / "sub" / "d").write_text(""),
        lambda: (other / "sub" / "a").unlink(),
    ):
        change()
        seen.add(folder_fingerprint(other))
    assert len(seen) == 6
