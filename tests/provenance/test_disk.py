"""Errors of a disk, as libraries really report them: recognised, with the place, and the variable that moves it."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from facts import tells
from refusals import refused

from natix_hf import disk
from natix_hf.disk import cache_folders, disk_error, disk_line, refused_write, require_writable
from natix_hf.errors import DataError, UsageError

FULL = Path("/dev/full")  # where Linux has a disk that is always full


def _torch() -> None:
    import torch

    with FULL.open("wb") as file:
        torch.save({"a": torch.zeros(100_000)}, file)


def _parquet() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with FULL.open("wb") as file:  # of a path that it could not write pyarrow removes the file, and here the device
        pq.write_table(pa.table({"a": list(range(100_000))}), file)


def _text() -> None:
    FULL.write_text("x" * 10**6)


def _sqlite() -> None:
    with closing(sqlite3.connect(":memory:")) as base:
        base.executescript("PRAGMA max_page_count=2; CREATE TABLE one (of TEXT);")
        base.execute("INSERT INTO one VALUES (?)", ("x" * 10**6,))


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("write", [_torch, _parquet, _text, _sqlite])
def test_a_full_disk_is_recognised_whoever_reports_it(write: Callable[[], None]) -> None:
    with pytest.raises(Exception) as caught:
        write()
    found = disk_error(caught.value)
    assert found is not None and found.errno == errno.ENOSPC


def chained(outer: Exception, inner: Exception, said: bool = True) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            if said:
                raise outer from error
            raise outer  # noqa: B904
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("I/O error: Read-only file system (os error 30)"), errno.EROFS),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), errno.EROFS),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), errno.EACCES),
        (chained(RuntimeError("generating failed"), OSError(errno.ENOSPC, "No space left")), errno.ENOSPC),
        (chained(ValueError("a bug"), OSError(errno.ENOSPC, "No space left"), said=False), errno.ENOSPC),
        (PermissionError(errno.EACCES, "of a socket"), None),
        (FileNotFoundError(2, "No such file", "/a"), None),
        (chained(ValueError("a bug"), PermissionError(errno.EACCES, "tried first", "/a"), said=False), None),
        (ConnectionResetError(errno.ECONNRESET, "reset"), None),
        (ValueError("28 rows"), None),
    ],
)
def test_errors_of_libraries(error: Exception, code: int | None) -> None:
    found = disk_error(error)
    assert (found.errno if found is not None else None) == code


def test_the_variable_that_decides_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "NATIX_HF_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "home" / "datasets" / "a.arrow"))
    assert tells(disk_line(full), "HF_HOME", full.filename, "free") and "HF_DATASETS" not in disk_line(full)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "home" / "datasets"))
    assert tells(disk_line(full), "HF_DATASETS_CACHE") and "HF_HOME" not in disk_line(full)
    in_run = disk_line(full, run_dir=tmp_path / "home")
    assert tells(in_run, "--run-dir", full.filename) and "HF_" not in in_run


def test_the_caches_are_those_that_the_libraries_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    from natix_hf.models.features import cache_folder

    folders = cache_folders()
    assert folders["datasets"][1] == Path(datasets.config.HF_DATASETS_CACHE)
    assert folders["hub"][1] == Path(constants.HF_HUB_CACHE)
    assert folders["features"][1] == cache_folder()
    assert folders["temporary"][1] == Path(tempfile.gettempdir())


def test_a_folder_is_tried_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused_write(tmp_path / "not" / "yet") is None and not list(tmp_path.iterdir())
    real = os.fsync

    def full(opened: int) -> None:
        real(opened)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    [line] = require_writable(["datasets"])
    assert tells(line, tmp_path / "datasets", "HF_DATASETS_CACHE", "free") and not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_named_before_any_work(
    tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from natix_hf.pipeline import run_recipe

    closed = OSError(errno.EROFS, "Read-only file system", str(tmp_path / "hf" / "datasets"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf" / "datasets"))
    monkeypatch.setattr(disk, "refused_write", lambda folder: closed if tmp_path in folder.parents else None)
    run = lambda: run_recipe(str(tiny_recipe_file), run_dir=tmp_path / "run")  # noqa: E731
    refused(UsageError, run, "HF_DATASETS_CACHE", "Read-only")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name != "posix", reason="pipes have no paths there")
def test_a_folder_whose_path_no_socket_can_have_is_named_before_any_work(
    tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader's process would wait for ever for the picture that another could not send."""
    from multiprocessing.connection import Listener

    from natix_hf.pipeline import run_recipe

    for length, fits in ((71, True), (80, False)):  # macOS ends between the two
        folder = Path(tempfile.mkdtemp(prefix="x", dir="/".join(["", "tmp"])))
        long = folder / ("y" * (length - len(str(folder)) - 1))
        long.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        assert disk.sockets_fit() is fits
        path = long / "pymp-12345678" / "listener-12345678"
        path.parent.mkdir()
        if fits:
            Listener(str(path)).close()
        else:
            with pytest.raises(OSError, match="too long"):
                Listener(str(path))
            run = lambda: run_recipe(str(tiny_recipe_file), run_dir=tmp_path / "run")  # noqa: E731
            refused(UsageError, run, "TMPDIR", long)
        shutil.rmtree(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cache", ["raw", "jpeg"])
def test_copies_that_will_not_fit_are_refused_before_the_first(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset
    from PIL import Image

    from natix_hf.data import space

    Image.new("RGB", (400, 200)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    cells = [{"bytes": None, "path": str(tmp_path / name)} for name in ("a.png", "b.png")]
    rows = Dataset.from_dict({"image": cells * 500})
    needed = 1000 * (200 * 100 * 3 // (6 if cache == "jpeg" else 1) + space._ROW_BYTES)
    file = tmp_path / "natix_hf" / "decoded-0.arrow"
    monkeypatch.setattr(space, "free_bytes", lambda _: needed + 1)
    space.require_space(rows, "image", 100, cache, file)  # type: ignore[arg-type]
    monkeypatch.setattr(space, "free_bytes", lambda _: needed - 1000)
    call = lambda: space.require_space(rows, "image", 100, cache, file)  # type: ignore[arg-type]  # noqa: E731
    refused(DataError, call, 1000, disk.as_size(needed), file.parent, "HF_")
    file.parent.mkdir()
    (file.parent / "decoded-0_00000_of_00002.arrow").touch()
    call()  # they are there already


def test_sizes_for_people() -> None:
    sizes = {0: "0 B", 999: "999 B", 1000: "1.0 kB", 99_400: "99.4 kB", 999_600: "1.0 MB", 1.5e9: "1.5 GB"}
    assert {count: disk.as_size(count) for count in sizes} == sizes


def test_a_full_cache_is_named_although_the_library_has_tidied_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no damage of the source, and no fault of the run's own disk."""
    from natix_hf.intake.columns import load_splits

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))

    def load() -> None:
        raise chained(ValueError("generating failed"), OSError(errno.ENOSPC, "No space left on device"))

    with pytest.raises(OSError) as caught, disk.naming_cache("datasets"):
        load_splits(load, "data.source", "somewhere")
    assert tells(disk_line(caught.value, tmp_path / "run"), tmp_path / "datasets", "HF_DATASETS_CACHE", "disk is full")
